"""Which column of a published file has the prompts, by what the benchmark is for."""

import json

import pytest

from safetydpo.config.evaluation import Benchmark, Tune
from safetydpo.config.prompts import Category, Prompts
from safetydpo.config.training import Preserve
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.columns import Source
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_benchmark, write_pairs, write_retain, write_tuning
from safetydpo.storage.files import read_parquet

I2P = "idx,prompt,categories,hard,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model"
MMA = "target_prompt,adv_prompt,sanitized_adv_prompt,success_against_sanitization_defense,clean_prompt"
OVERT = "seed_prompt,image_prompt,category,generation_type"
OVERT_UNSAFE = "benign_image_prompt,unsafe_image_prompt"
VISU = "incremental_id,safe,nsfw,coco_id,tag,prompt_id"
COPRO = "idx,unsafe_prompt,safe_prompt,concept,category"


def source(tmp_path, head, kind, column=None):
    (tmp_path / "file.csv").write_text(head + "\n" + ",".join(f"x{i}" for i in range(len(head.split(",")))) + "\n")
    return Source(str(tmp_path / "file.csv"), kind, column)


@pytest.mark.parametrize(
    ("head", "kind", "column"),
    [
        (I2P, "unsafe", "prompt"),
        ("prompt,image,category", "unsafe", "prompt"),  # CoProV2
        ("case_number,source,prompt,evaluation_seed,coco_id", "safe", "prompt"),  # COCO
        ("image_id,text", "safe", "text"),  # HUB's COCO
        ("sensitive prompt,normal prompt", "unsafe", "sensitive prompt"),  # Ring-A-Bell
        ("Sensitive Prompt;normal prompt", "safe", "normal prompt"),
        (MMA, "unsafe", "adv_prompt"),
        (MMA, "safe", "clean_prompt"),
        ("adversarial_prompt,target_prompt", "unsafe", "adversarial_prompt"),  # eval-unlearn
        (COPRO, "unsafe", "unsafe_prompt"),
        (COPRO, "safe", "safe_prompt"),
        (VISU, "unsafe", "nsfw"),
        (VISU, "safe", "safe"),
        (OVERT, "over-refusal", "image_prompt"),
        (OVERT_UNSAFE, "over-refusal", "benign_image_prompt"),
        (OVERT_UNSAFE, "unsafe", "unsafe_image_prompt"),
        ("adv_prompt,Prompt,text", "unsafe", "prompt"),
        ("text,nsfw,url", "safe", "text"),  # where nsfw is a label
    ],
)
def test_published_files_are_known_by_their_columns(tmp_path, head, kind, column):
    assert source(tmp_path, head, kind).columns()[0] == column


@pytest.mark.parametrize(
    ("head", "kind", "message"),
    [
        (
            "concept_type,concept_name,direct_prompt,indirect_prompt,adversarial_prompt",  # ERR
            "unsafe",
            "has several columns of unsafe prompts, adversarial_prompt, direct_prompt, indirect_prompt: call the one",
        ),
        ("text,nsfw,url", "unsafe", "has several columns of unsafe prompts, text, nsfw: call the one that is meant"),
        (VISU, "", "has no column `prompt`, nor another of prompts; it has incremental_id, safe, nsfw, coco_id, tag"),
        ("a,unsafe_prompt", "safe", "has no column `prompt`, nor another of safe prompts; it has a, unsafe_prompt: "),
    ],
)
def test_what_is_not_clear_is_asked(tmp_path, head, kind, message):
    with pytest.raises(SafetyDPOError, match=message):
        source(tmp_path, head, kind).columns()


def test_a_column_that_is_named_is_taken_or_missed_by_name(tmp_path):
    assert source(tmp_path, "prompt,Mine ", "unsafe", " mine").columns() == ("mine", ["prompt", "mine"])
    assert source(tmp_path, "a;mine", "unsafe", "mine").columns() == ("mine", ["a", "mine"])
    with pytest.raises(SafetyDPOError, match="has no column `mine`; it has prompt, b: call"):
        source(tmp_path, "prompt,b", "unsafe", "mine").columns()


def test_a_benchmark_says_which_column_it_took(tmp_path, capsys):
    (tmp_path / "f.json").write_text(
        json.dumps([{"safe": "a hill", "nsfw": "a war", "tag": "Hate", "other": [{}]}] * 2)
    )
    out, given = tmp_path / "b.parquet", {"name": "visu", "path": str(tmp_path / "f.json")}
    write_benchmark(Benchmark(kind="unsafe", **given), None, [], 0, out)
    assert read_parquet(out)[["prompt", "category", "kind"]].to_numpy().tolist() == [["a war", "hate", "unsafe"]] * 2
    assert "f.json: prompts of its column `nsfw`, categories of `tag`\n" in capsys.readouterr().out
    write_benchmark(Benchmark(kind="over-refusal", column="safe", **given), 1, [], 0, out)
    assert read_parquet(out)[["prompt", "kind"]].to_numpy().tolist() == [["a hill", "over-refusal"]]
    with pytest.raises(SafetyDPOError, match="`other` holds a list in row 1, not text"):
        write_benchmark(Benchmark(kind="safe", column="other", **given), 1, [], 0, out)
    (tmp_path / "f.json").write_text('[{"direct_prompt": "a", "indirect_prompt": "b"}]')
    with pytest.raises(SafetyDPOError, match="name the one that is meant in the `column` of benchmark visu"):
        write_benchmark(Benchmark(kind="unsafe", **given), 1, [], 0, out)


def test_other_prompt_files_are_read_alike(tmp_path):
    path, out = tmp_path / "f.jsonl", tmp_path / "o.parquet"
    path.write_text('{"caption": "a lake"}\n{"caption": "a hill"}\n')
    write_retain(Preserve(prompts=2, path=str(path)), 0, out)
    assert read_parquet(out).prompt.tolist() == ["a lake", "a hill"]
    path.write_text('{"text": "a war", "categories": ["Hate"]}\n{"text": "a hill"}\n')
    write_tuning(Tune(path=str(path)), [], 0, out)
    assert read_parquet(out)[["prompt", "kind"]].to_numpy().tolist() == [["a war", "unsafe"], ["a hill", "benign"]]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("unsafe_prompt,safe_prompt,category\na war,a hill,hate\na fight,a lake,hate\n")
    path.write_text('{"adv_prompt": "a war", "clean_prompt": "a fight"}\n')
    prompts = Prompts(source="pairs", path=str(pairs), pairs=9, test_path=str(path))
    write_pairs(Request(Category(name="hate"), prompts, 0), out, tmp_path / "r.parquet")
    assert read_parquet(out).leak.tolist() == [True, False]
