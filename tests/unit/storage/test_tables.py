"""csv and Parquet as people have them: what is read, in which digits, and what is said of the rest."""

import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.tables import read_rows, whole_seed

ROW = [{"prompt": "a red dog", "image": "a.png"}]


@pytest.fixture
def rows(tmp_path):
    """The rows of a file: text or bytes of a csv, or columns of a Parquet."""

    def read(content, name="f.csv", lists=()):
        path = tmp_path / name
        if isinstance(content, (pa.Table, dict)):
            pq.write_table(content if isinstance(content, pa.Table) else pa.table(content), path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_rows(path, ["prompt"], ["image", "seed", "categories"], lists).to_dict("records")

    return read


@pytest.mark.parametrize(
    "content",
    [
        "prompt,image\na red dog,a.png\n",
        "\n \n,\nprompt,image\n\na red dog,a.png\n \n",
        " Prompt , IMAGE\na red dog, a.png\n",
        'prompt, "image"\n"a red dog", "a.png"\n',
        "prompt;image\r\na red dog;a.png\r\n",
        '"image"\t"prompt"\n"a.png"\t"a red dog"\n',
        "image|prompt|more\na.png|a red dog|a, b; c\n",
        b"\xef\xbb\xbfprompt,image\na red dog,a.png\n",
        "prompt,image\na red dog,a.png\n".encode("utf-16"),
        b"\xfe\xff" + "prompt\timage\na red dog\ta.png\n".encode("utf-16-be"),
        "prompt,image,notes,notes\na red dog,a.png,1,2\n",
        "prompt,image,embedding\na red dog,a.png," + "0.5 " * 50_000 + "\n",
    ],
    ids=[
        *("plain", "blank lines", "spaces and case", "space before quotes", "semicolon", "tab", "bar", "bom", "utf-16"),
        *("utf-16-be", "two columns nobody asks for", "a long cell nobody asks for"),
    ],
)
def test_csv_of_any_separator_and_spacing(rows, content):
    assert [{**row} for row in rows(content)] == ROW


def test_a_name_is_taken_in_its_own_case_where_there_are_both(rows):
    assert rows("Prompt,prompt\na,b\n") == [{"prompt": "b"}]


def test_spaces_that_are_content_stay(rows):
    assert rows("prompt,image\n a red dog ,a.png\n")[0]["prompt"] == " a red dog "


def test_a_row_of_separators_is_a_row_and_a_blank_line_is_none(rows):
    assert [row["prompt"] for row in rows("prompt,image\na,a.png\n,\n\nb,b.png\n")] == ["a", "", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        ("prompt,image\na \x92,a.png\n".encode("cp1252", "ignore") + b"\x92,b\n", r"line 3 is not UTF-8, but cp1252"),
        ("prompt,image\na,b\n".encode("utf-16-le"), "UTF-16 perhaps: save it as UTF-8"),
        (b"\xff\xfep\0r", "it is not whole utf-16"),
        (b"PK\3\4\x14\0", "it is a zip or Excel file: save it as csv"),
        (b"\x1f\x8b\x08\0", "it is a gzip file"),
        ('{"prompt": "a"}\n', "it is JSON: save it as csv"),
        ("prompt;image\na;b;c\n", "line 2 has 3 fields, the first has 2: a text with a semicolon needs quotes"),
        ('prompt,image\n"a,b\n', "line 2: unexpected end of data"),
        ("Prompt,PROMPT \na,b\n", "has 2 columns `prompt`: rename or remove all but one"),
        ("text;image\na;b\n", "has no column `prompt`; it has text;image"),
    ],
)
def test_what_is_no_csv_is_said(rows, content, message):
    with pytest.raises(SafetyDPOError, match=message):
        rows(content)


EMBEDDING = pa.array(np.zeros((1, 4)).tolist(), pa.list_(pa.float32(), 4))
CELL = pa.array([{"bytes": b"x", "path": None}])


@pytest.mark.parametrize("name", ["f.parquet", "f.PARQUET", "f.pq", "f.csv"])
def test_parquet_is_known_by_what_it_holds(rows, name):
    table = {"prompt": ["a red dog"], "image": ["a.png"], "embedding": EMBEDDING, "picture": CELL, "tags": [["a"]]}
    assert rows(table, name) == ROW


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([4261553411, None]), ["4261553411", ""]),
        (pa.array([2**63 - 1, None]), ["9223372036854775807", ""]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([7.0, None, float("nan")]), ["7", "", ""]),
        (pa.array([2.0**53]), ["9.007199e+15"]),  # 2^53 + 1 is the same float: its digits are lost
        (pa.array([2.0**24 - 1, 2.0**24], pa.float32()), ["16777215", "1.677722e+07"]),
        (pa.array([0.5, float("inf")]), ["0.5", "inf"]),
        (pa.array([decimal.Decimal("12345678901234567")]), ["12345678901234567"]),
        (pa.array(["é".encode(), None]), ["é", ""]),
        (pa.array([b"ab"], pa.binary(2)), ["ab"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.nulls(2), ["", ""]),
    ],
)
def test_parquet_columns_are_texts_with_all_their_digits(rows, values, texts):
    found = rows({"prompt": ["a"] * len(values), "seed": values}, "f.parquet")
    assert [row["seed"] for row in found] == texts


def test_parquet_lists_of_texts_are_joined_where_they_may_be(rows):
    table = {"prompt": ["a", "b"], "categories": [["hate", "violence"], None]}
    assert [row["categories"] for row in rows(table, "f.parquet", ["categories"])] == ["hate|violence", ""]
    with pytest.raises(SafetyDPOError, match=r"its column `categories` holds list<\w+: string>, not text"):
        rows(table, "f.parquet")
    numbers = {"prompt": ["a"], "categories": [[1, 2]]}
    with pytest.raises(SafetyDPOError, match=r"holds list<\w+: int64>, not text"):
        rows(numbers, "f.parquet", ["categories"])


@pytest.mark.parametrize("column", ["prompt", "image"])
def test_a_struct_where_a_text_is_wanted_is_said(rows, column):
    with pytest.raises(SafetyDPOError, match=rf"its column `{column}` holds struct<bytes: binary, path: null>, not"):
        rows({"prompt": ["a"], "image": ["b"], column: CELL}, "f.parquet")


def test_bytes_that_are_no_text_are_said_with_their_row(rows):
    with pytest.raises(SafetyDPOError, match="column `prompt`, row 2: its bytes are no text"):
        rows({"prompt": [b"a", b"\xff"]}, "f.parquet")


def test_two_parquet_columns_of_a_name(rows):
    two = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["prompt", "more", "more"])
    assert rows(two, "f.parquet") == [{"prompt": "a"}]
    with pytest.raises(SafetyDPOError, match="has 2 columns `prompt`"):
        rows(two.rename_columns(["prompt", "prompt", "c"]), "f.parquet")


def test_a_damaged_file_is_its_owners_to_replace(rows, tmp_path):
    rows({"prompt": ["a"]}, "f.parquet")
    whole = (tmp_path / "f.parquet").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"version https://"):
        with pytest.raises(SafetyDPOError, match=r"f\.parquet is not a readable Parquet file \(.*replace it") as said:
            rows(content, "f.parquet")
        assert "delete" not in str(said.value)
    with pytest.raises(SafetyDPOError, match=r"gone\.csv does not exist: put the file there"):
        read_rows(tmp_path / "gone.csv", ["prompt"])
    with pytest.raises(SafetyDPOError, match="is a folder: put the file there"):
        read_rows(tmp_path, ["prompt"])


def test_seeds_are_whole_numbers_that_every_stage_can_hold():
    assert [whole_seed(text, "f") for text in ("0", " 7 ", "7.0", str(2**63 - 1), "9007199254740993.0", "")] == [
        *(0, 7, 7, 2**63 - 1, 9007199254740993, None)
    ]
    for text in ("-1", "7.5", "1e9", "nan", "inf", str(2**63), "1_000", "abc"):
        with pytest.raises(SafetyDPOError, match=r"f has the seed .*: it must be a whole number from 0 to 2"):
            whole_seed(text, "f")


def test_a_frame_of_pandas_is_read_as_it_was(tmp_path):
    frame = pd.DataFrame({"prompt": ["a", None], "seed": [5000000000, None]}, index=[3, 5])
    frame["category"] = pd.Categorical(["hate", None])
    frame.to_parquet(tmp_path / "f.parquet")
    found = read_rows(tmp_path / "f.parquet", ["prompt"], ["seed", "category"])
    assert found.to_numpy().tolist() == [["a", "5000000000", "hate"], ["", "", ""]]
