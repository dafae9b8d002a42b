"""csv, JSON and Parquet as people have them: what is read, in which digits, and what is said of the rest."""

import decimal
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.tables import heads_of, read_rows, whole_seed

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


OBJECT = json.dumps(ROW[0] | {"boxes": [{"x": 1, "prompt": "no"}], "embedding": [0.5] * 9})
LISTS = '{"version": 2, "prompt": ["a red dog"], "image": ["a.png"], "embedding": [[1, 2]]}'


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (f"[{OBJECT}]", "f.json"),
        (f" \n[\n{OBJECT}\n]\n", "f.csv"),
        (OBJECT, "f.json"),
        (json.dumps(json.loads(OBJECT), indent=2), "f.json"),
        (OBJECT + "\n", "f.jsonl"),
        ("\n" + OBJECT + "\r\n\n", "f.ndjson"),
        (LISTS, "f.json"),
        (f'{{"version": 1, "data": [{OBJECT}]}}', "f.json"),
        (f'{{"data": [{OBJECT}], "more": [{{"prompt": "no"}}]}}', "f.json"),
        ('{"split": "test", "prompts": [{" Prompt ": "a red dog", "IMAGE": "a.png"}]}', "f.JSON"),
        (b"\xef\xbb\xbf" + OBJECT.encode(), "f.json"),
        (f"[{OBJECT}]".encode("utf-16"), "f.json"),
    ],
)
def test_json_of_any_form(rows, content, name):
    assert rows(content, name) == ROW


def test_json_lines_may_lack_columns_and_hold_line_separators_of_unicode(rows):
    text = '{"prompt": "a\u2028b"}\n\n{"seed": 7, "prompt": "c\\ud83d\\ude00"}\n'
    expected = [{"prompt": "a\u2028b", "seed": ""}, {"prompt": "c\U0001f600", "seed": "7"}]
    assert rows(text, "f.json") == expected
    assert rows(text, "f.jsonl") == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("18446744073709551615", "18446744073709551615"),
        ("9007199254740993.0", "9007199254740993.0"),
        ("0.1000000000000000055", "0.1000000000000000055"),
        ("9" * 5000, "9" * 5000),
        ("null", ""),
        ("NaN", ""),
        ("true", "True"),
        ('"7"', "7"),
    ],
)
def test_json_numbers_keep_all_their_digits(rows, value, text):
    assert rows(f'[{{"prompt": "a", "seed": {value}}}]', "f.json") == [{"prompt": "a", "seed": text}]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "f.json", "f.json is not a readable JSON file .it is empty"),
        ("prompt\na\n", "f.json", "not a readable JSON file .Expecting value: line 1"),
        ("[]", "f.json", "it has no rows"),
        ("3", "f.json", "neither a list of objects nor an object of lists"),
        ('["a", "b"]', "f.json", "row 1 is no object"),
        ('{"prompt": "a"}\n{"prompt": "b"\n{"prompt": "c"}', "f.jsonl", "line 2: Expecting ',' delimiter"),
        ('{"prompt": "a"}\n["b"]\n', "f.json", "line 2 is no object"),
        ('[{"prompt": "a"},\n {"prompt": "b"\n {}]', "f.json", "Expecting ',' delimiter: line 3"),
        ('{"prompt": "a", "n": 1, "n": 2}\n', "f.json", "an object has `n` twice"),
        ('{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n', "f.jsonl", "line 2: an object has `prompt` twice"),
        ('[{"prompt": "a"}, {"Prompt": "b", "PROMPT": "c"}, {"PROMPT": "c"}]', "f.json", None),
        ('[{"Prompt": "b", "PROMPT": "c"}]', "f.json", "has 2 columns `prompt`"),
        ('{"prompt": ["a", "b"], "image": ["a.png"]}', "f.json", "its lists prompt, image are not of one length"),
        ('{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}', "f.json", "several tables .train, test.: put one"),
        ('[{"text": "a", "n": 1}]', "f.json", "has no column `prompt`; it has text, n"),
        (
            '[{"prompt": "a"}, {"prompt": {"en": "b"}}]',
            "f.json",
            "its column `prompt` holds an object in row 2, not text",
        ),
        ('[{"prompt": ["a"]}]', "f.json", "its column `prompt` holds a list in row 1, not text: rename"),
        ('[{"prompt": "a \\ud83d"}]', "f.json", "column `prompt`, row 1: it has half of a character"),
        ("[" * 200_000, "f.json", "it is nested too deeply"),
        ('[{"prompt": "a\x92"}]'.encode("latin-1"), "f.json", "line 1 is not UTF-8, but cp1252 perhaps"),
    ],
)
def test_what_is_no_table_in_json_is_said(rows, content, name, message):
    if message is None:  # the name as it is asked for wins over others
        assert [row["prompt"] for row in rows(content, name)] == ["a", "", ""]
        return
    with pytest.raises(SafetyDPOError, match=message):
        rows(content, name)


def test_json_lists_of_texts_are_joined_where_they_may_be(rows):
    text = '[{"prompt": "a", "categories": ["hate", "violence"]}, {"prompt": "b"}]'
    assert [row["categories"] for row in rows(text, "f.json", ["categories"])] == ["hate|violence", ""]
    with pytest.raises(SafetyDPOError, match="its column `categories` holds a list in row 1"):
        rows(text, "f.json")
    with pytest.raises(SafetyDPOError, match="its column `categories` holds a list in row 1"):
        rows(text.replace('"hate"', "1"), "f.json", ["categories"])


def test_heads_are_known_before_rows_are_read(tmp_path):
    (tmp_path / "f.csv").write_text("\n a ;b, c\n")
    assert heads_of(tmp_path / "f.csv", []) == [["a ;b", "c"], ["a", "b, c"], ["a ;b, c"], ["a ;b, c"]]
    pq.write_table(pa.table({" a": ["x"], "b": [[1]]}), tmp_path / "f.csv")
    assert heads_of(tmp_path / "f.csv", []) == [["a", "b"]]
    (tmp_path / "f.csv").write_text(f'{{"data": [{OBJECT}, {{"more": 1}}]}}')
    assert heads_of(tmp_path / "f.csv", []) == [["prompt", "image", "boxes", "embedding", "more"]]
    (tmp_path / "f.csv").write_text('{"prompt": ["a"], "boxes": [{"x": 1}]}')
    assert heads_of(tmp_path / "f.csv", ["prompt"]) == [["prompt", "boxes"]]
    with pytest.raises(SafetyDPOError, match=r"gone\.csv does not exist"):
        heads_of(tmp_path / "gone.csv", [])


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
