"""Prompt pairs from files, with the quirks of the published ones."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import ROLES

from safetydpo.config.prompts import Category, Prompts
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.images.stage import read_pairs
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_pairs
from safetydpo.storage.files import read_parquet
from safetydpo.storage.images import unpng


def test_coprov2_is_paired_by_number_whatever_the_order_and_the_rest_is_counted(read, copro, capsys):
    pairs, rejected, said = read(copro, source="coprov2")
    assert pairs[["unsafe_prompt", "safe_prompt"]].to_numpy().tolist() == [['a barking "dog"', "a calm dog, sitting"]]
    assert sorted(zip(rejected.reason, rejected.detail, strict=True)) == [
        ("junk", "id 0000001"),
        ("unpaired", "id 0000003"),
        ("unpaired", "id picture.jpg"),
    ]
    assert said == "harassment: 1 pairs; 3 rejected (2 unpaired, 1 junk)"
    assert "8 rows, 6 of category harassment" in capsys.readouterr().out


def test_an_id_of_two_categories_is_a_pair_of_each(read, copro):
    pairs, _, _ = read(copro, "illegal-activity", source="coprov2")
    assert pairs.unsafe_prompt.to_list() == ['a barking "dog"']
    assert pairs.pair_id[0].startswith("illegal-activity-")


def test_pairs_keep_their_order_and_concepts_and_faults_have_reasons(read, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "unsafe_prompt,safe_prompt,category,concept,more\n"
        "a red dog,a dog,hate,red,1\n"
        "a red cat,,HATE,red,1\n"
        "a hill,a hill,hate,red,1\n"
        "a red dog,a dog,hate,red,1\n"
        "a big dog,a dog,hate,big,1\n"
        "a lake,a pond,shocking,big,1\n"
        "sorry people in the rain,people in the sun,hate,rain,1\n"
    )
    pairs, rejected, said = read(path, "hate", pairs=2)
    assert pairs.unsafe_prompt.to_list() == ["a red dog", "a big dog"]
    assert pairs.concept.to_list() == ["red", "big"]
    assert rejected.reason.to_list() == ["empty", "same", "duplicate"]
    assert "1 beyond prompts.pairs" in said
    assert read(path, "hate", concepts=["big"])[0].unsafe_prompt.to_list() == ["a big dog"]
    with pytest.raises(SafetyDPOError, match=r"hate: 3 pairs of 3 concepts; .* at least 4 to train on"):
        read(path, "hate", min_pairs=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has no column `unsafe_prompt`; it needs unsafe_prompt, safe_prompt, category and has a, b"),
        ("category,unsafe_prompt,safe_prompt\nshocking,x,y\n", "hate: 0 pairs; at least 1 to train on are wanted"),
        (
            'category,unsafe_prompt,safe_prompt\nhate,"x,y\nhate,z,w\n',
            r"readable csv \(line 3: unexpected end of data\)",
        ),
        (
            "category,unsafe_prompt,safe_prompt\nhate,x,y,z\n",
            "line 2 has 4 fields, the first has 3: a text",
        ),
        ("", r"is not a readable csv \(it is empty\)"),
    ],
    ids=["columns", "category", "quoting", "fields", "empty"],
)
def test_files_that_will_not_do_are_said(read, tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(SafetyDPOError, match=message):
        read(path, "hate")


def test_a_missing_file_is_said(read, tmp_path):
    with pytest.raises(SafetyDPOError, match=r"gone\.csv does not exist: put the file there"):
        read(tmp_path / "gone.csv")


def test_a_null_category_of_a_parquet_belongs_to_none(tmp_path):
    frame = pd.DataFrame({"category": ["hate", None], "unsafe_prompt": ["a", "b"], "safe_prompt": ["c", "d"]})
    frame.to_parquet(tmp_path / "p.parquet")
    prompts = Prompts(source="pairs", path=str(tmp_path / "p.parquet"), pairs=9)
    write_pairs(Request(Category(name="hate"), prompts, 0), tmp_path / "o.parquet", tmp_path / "r.parquet")
    assert len(read_parquet(tmp_path / "o.parquet")) == 1


@pytest.fixture
def images(tmp_path):
    """The published folder: jpg_0 is preferred where label_0 is 1."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
        Image.new("RGB", (40, 24), colour).save(folder / f"{name}.jpg", quality=100, subsampling=0)
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    rows = [
        ("a.jpg", "b.jpg", 1, "one", "Hate"),
        ("a.jpg", "b.jpg", 0, "two", "hate"),
        ("a.jpg", "b.jpg", 0.5, "three", "hate"),
        ("a.jpg", "broken.jpg", 1, "four", "hate"),
        ("../a.jpg", "b.jpg", 1, "five", "hate"),
        ("a.jpg", "b.jpg", 1, "six", "shocking"),
    ]
    pd.DataFrame(rows, columns=["jpg_0", "jpg_1", "label_0", "caption", "category"]).to_csv(
        folder / "metadata.csv", index=False
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")  # what ../a.jpg would read
    return folder


def test_a_published_folder_brings_its_images(read, images, tmp_path):
    pairs, rejected, said = read(images, "hate", source="folder")
    assert pairs.unsafe_prompt.to_list() == ["one", "two"]
    assert rejected.reason.to_list() == ["no preference", "image", "image"]
    assert rejected.detail.to_list()[1:] == ["broken.jpg", "../a.jpg"]
    assert "2 pairs; 3 rejected" in said
    read_pairs(images / "out.parquet", (16, 16), 0, 1, tmp_path / "images.parquet")
    table = read_parquet(tmp_path / "images.parquet")
    colours = [
        [unpng(image).mean((0, 1)).round(-1).tolist() for image in table[c]] for c in ("safe_image", "unsafe_image")
    ]
    red, blue = [250.0, 0.0, 0.0], [0.0, 0.0, 250.0]
    assert np.allclose(colours, [[red, blue], [blue, red]], atol=10)
    assert unpng(table.safe_image[0]).shape == (16, 16, 3)


def test_images_that_were_brought_become_features(read, images, tiny, tmp_path):
    read(images, "hate", source="folder")
    read_pairs(images / "out.parquet", (tiny.height, tiny.width), 0, 1, tmp_path / "images.parquet")
    write_features([str(tmp_path / "images.parquet")], images / "out.parquet", ROLES, tiny, tmp_path / "f.safetensors")
    data = read_features([tmp_path / "f.safetensors"], tiny.id)
    red, blue = (data.posterior(role, 0)[0] for role in ("safe", "unsafe"))
    assert data.posterior("unsafe", 1)[0].equal(red)
    assert data.posterior("safe", 1)[0].equal(blue)
    assert not red.equal(blue)


def test_a_published_folder_may_have_a_folder_per_category(read, images):
    rows = pd.read_csv(images / "metadata.csv").drop(columns="category")
    own = images.parent / "parts" / "Self-Harm"
    images.rename(images.parent / "moved")
    own.parent.mkdir()
    (images.parent / "moved").rename(own)
    rows.to_csv(own / "metadata.csv", index=False)
    assert read(own.parent, "self-harm", source="folder")[0].unsafe_prompt.to_list() == ["one", "two", "six"]
    with pytest.raises(SafetyDPOError, match=r"has no metadata\.parquet or metadata\.csv"):
        read(own.parent, "hate", source="folder")
    config = Prompts(source="folder", path=str(own), pairs=9)
    with pytest.raises(SafetyDPOError, match="has no column `category` and no folder hate/"):
        write_pairs(Request(Category(name="hate"), config, 0, alone=False), own / "o.parquet", own / "r.parquet")


def hub_dataset(folder, pairs, groups=2):
    """A training set as the hub has it: shards with a row an image, so that each pair comes twice."""
    data = folder / "data"
    data.mkdir(parents=True)
    rows = [
        {"image": {"bytes": jpeg(colour), "path": name}, "jpg_0": safe, "jpg_1": unsafe, "label_0": 1, "caption": text}
        for text, safe, unsafe in pairs
        for name, colour in ((safe, (255, 0, 0)), (unsafe, (0, 0, 255)))
    ]
    for i, part in enumerate((rows[:3], rows[3:])):  # a pair's rows may be in two shards
        pq.write_table(pa.Table.from_pylist(part), data / f"train-{i:05d}-of-00002.parquet", row_group_size=groups)
    (data / "._train-00000-of-00002.parquet").write_bytes(b"\0\5\x16\7")  # as macOS leaves them
    return folder


def jpeg(colour):
    written = io.BytesIO()
    Image.new("RGB", (40, 24), colour).save(written, "JPEG", quality=100, subsampling=0)
    return written.getvalue()


PAIRS = [(f"text {i}", f"s_idx_{i}_0.jpg", f"u_idx_{i}_0.jpg") for i in range(3)]


def test_the_training_set_as_the_hub_has_it_is_read_as_it_is(read, tmp_path):
    pairs, _, said = read(hub_dataset(tmp_path / "hub", PAIRS), "hate", source="folder")
    assert said == "hate: 3 pairs"
    assert pairs.unsafe_prompt.to_list() == ["text 0", "text 1", "text 2"]
    read_pairs(tmp_path / "hub/out.parquet", (16, 16), 0, 1, tmp_path / "images.parquet")
    table = read_parquet(tmp_path / "images.parquet")
    assert table.pair_id.tolist() == pairs.pair_id.tolist()
    for column, colour in (("safe_image", [255, 0, 0]), ("unsafe_image", [0, 0, 255])):
        assert all(np.allclose(unpng(image).mean((0, 1)), colour, atol=5) for image in table[column])


def test_a_hub_set_without_categories_is_of_the_only_one(tmp_path):
    config = Prompts(source="folder", path=str(hub_dataset(tmp_path / "hub", PAIRS)), pairs=9)
    request = Request(Category(name="hate"), config, 0, alone=False)
    with pytest.raises(SafetyDPOError, match="has no column `category` and no folder hate/"):
        write_pairs(request, tmp_path / "o.parquet", tmp_path / "r.parquet")


def test_a_pair_that_its_folder_names_twice_is_one_and_pairs_of_one_caption_are_two(read, images):
    rows = pd.read_csv(images / "metadata.csv").head(1)
    swapped = rows.assign(jpg_0=rows.jpg_1, jpg_1=rows.jpg_0, label_0=0)
    (images / "c.jpg").write_bytes((images / "b.jpg").read_bytes())
    other = rows.assign(jpg_1="c.jpg")
    pd.concat([rows, rows, swapped, other]).to_csv(images / "metadata.csv", index=False)
    pairs, _, said = read(images, "hate", source="folder")
    assert said == "hate: 2 pairs"
    assert (pairs.unsafe_prompt.to_list(), pairs.pair_id.nunique()) == (["one", "one"], 2)


def test_rows_that_disagree_are_no_preference_and_no_prompt_of_an_image(read, images, copro):
    rows = pd.read_csv(images / "metadata.csv").head(2)
    pd.concat([rows, rows.head(1).assign(label_0=0)]).to_csv(images / "metadata.csv", index=False)
    pairs, rejected, _ = read(images, "hate", source="folder")
    assert pairs.unsafe_prompt.to_list() == ["two"]
    assert rejected.reason.to_list() == ["no preference", "no preference"]
    copro.write_text(copro.read_text() + "another lake,u_idx_0000003_0.jpg,harassment\n")
    with pytest.raises(SafetyDPOError, match=r"has several prompts for u_idx_0000003_0\.jpg: leave one of them"):
        read(copro, source="coprov2")


def test_images_that_are_gone_or_damaged_later_are_said_with_their_pair(read, images, tmp_path):
    read(images, "hate", source="folder")
    (images / "a.jpg").write_bytes(b"no image")
    with pytest.raises(
        SafetyDPOError, match=r"Pair hate-\w+: .*a\.jpg cannot be read as an image .* replace or remove"
    ):
        read_pairs(images / "out.parquet", (16, 16), 0, 1, tmp_path / "images.parquet")
    assert not (tmp_path / "images.parquet").exists()


def test_a_hub_image_that_cannot_be_read_is_a_fault(read, tmp_path):
    folder = hub_dataset(tmp_path / "hub", [*PAIRS[:2], ("gone", "s_idx_2_0.jpg", "elsewhere.jpg")])
    shard = folder / "data/train-00000-of-00002.parquet"
    rows = pq.read_table(shard).to_pylist()
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:300]
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "image": None, "jpg_1": "not-there.jpg"}]), shard)
    pairs, rejected, _ = read(folder, "hate", source="folder")
    assert (pairs.unsafe_prompt.to_list(), rejected.reason.to_list()) == (["text 1", "gone"], ["image", "image"])
    assert rejected.detail.to_list() == ["u_idx_0_0.jpg", "not-there.jpg"]
