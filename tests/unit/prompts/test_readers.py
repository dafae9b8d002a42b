"""Prompt pairs from files, with the quirks of the published ones."""

import numpy as np
import pandas as pd
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
            r"readable csv \(unexpected end of data\)",
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
    with pytest.raises(SafetyDPOError, match="has no column `category` and no folder hate/"):
        read(own, "hate", source="folder")
