"""Parts of a config that do not fit together."""

import json

import pandas as pd
import pytest

from safetydpo.attacks.registry import ATTACKS
from safetydpo.config import checks
from safetydpo.config.loading import load_config, planned_config
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.registry import KINDS
from safetydpo.models.families.registry import FAMILIES, kind_of


def test_a_folder_of_images_has_no_safe_prompts_to_prefer_them_under(with_value):
    config = with_value("train.condition", "both")
    config["prompts"] = {"source": "folder", "path": "data", "pairs": 48}
    with pytest.raises(SafetyDPOError, match=r"train\.condition: `both` needs safe prompts, source `folder` has none"):
        load_config(config)


def test_what_a_rule_lacks_is_no_error_of_the_config_but_the_rules(with_value):
    own = load_config(with_value("prompts", {"source": "demo", "pairs": 9}))
    assert (checks.lacks_tuning_prompts(own), checks.lacks_retain_prompts(own)) == ("", "")
    config = with_value("prompts", {"source": "pairs", "path": "pairs.csv", "pairs": 9})
    others = load_config(config)
    assert checks.lacks_tuning_prompts(others).startswith("tune.path: needed to choose among tune.scales")
    assert checks.lacks_retain_prompts(others).startswith("train.preserve.path: needed with train.preserve.weight")
    config["tune"]["path"], config["train"]["preserve"]["path"] = "tuning.csv", "harmless.csv"
    given = load_config(config)
    assert (checks.lacks_tuning_prompts(given), checks.lacks_retain_prompts(given)) == ("", "")


def problems(config) -> list[str]:
    """The lines in which loading ends."""
    with pytest.raises(SafetyDPOError) as error:
        load_config(config)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def study(name, *variants):
    return {"name": name, "variants": [{"name": v, "pairs": 5} for v in variants]}


def test_variants_and_studies_that_would_share_a_name_are_refused(with_value):
    assert problems(with_value("ablation", [study("a", "b-c"), study("a-b", "c")])) == [
        "ablation, variants: `a-b-c` is listed twice"
    ]
    assert problems(with_value("ablation", [study("a", "b"), study("a", "c", "c")])) == [
        "ablation: `a` is listed twice",
        "ablation, variants: `a-c` is listed twice",
    ]
    assert problems(with_value("ablation", [study("merge", "b"), study("table", "c")])) == [
        "ablation: ablation_merge is a rule of its own; call the study `merge` otherwise",
        "ablation: ablation_table is a rule of its own; call the study `table` otherwise",
    ]
    assert load_config(with_value("ablation", [study("a", "b"), study("b", "a", "b")]))


def few(config, **evaluate) -> list[str]:
    """What evaluate.shards is more than."""
    config["evaluate"] |= {"fid_reference": None, **evaluate}
    return [line.partition(" is more than ")[2] for line in problems(config)]


def test_more_shards_than_prompts_are_said_by_what_is_too_little(with_value):
    matrix = [{"methods": ["base"], "benchmarks": ["test"]}]
    config = with_value("evaluate.matrix", [*matrix, {"methods": ["all-single"], "benchmarks": ["test"], "n": 3}])
    assert few(config, shards=4) == ["the 3 prompts of all-single on test"]
    # 15 prompts of 7 categories: one has three, the others two
    config = with_value(
        "evaluate.matrix", [*matrix, {"methods": ["experts"], "benchmarks": ["test"], "own_category": True}]
    )
    assert few(config, n=15, shards=3) == ["the prompts of a category of benchmark `test`, 2 of 15"]
    config["evaluate"]["shards"] = 2
    assert load_config(config)
    config["benchmarks"][0] |= {"limit": 3, "images": 2}
    assert few(config, n=1000, shards=7, matrix=matrix) == ["the limit of benchmark `test`, 3 prompts"]
    config["evaluate"]["shards"] = 6
    assert load_config(config)
    config["benchmarks"][1]["limit"] = 5  # attacked, though the matrix does without it
    config["attacks"] = {"run": ["random-tokens"], "methods": ["base"], "benchmark": "ood", "forbidden": ["x"]}
    assert few(config) == ["the limit of benchmark `ood`, 5 prompts"]


def test_experts_have_no_category_of_their_own_among_harmless_prompts(with_value):
    methods = {"methods": ["base", "experts"], "own_category": True}
    config = with_value("evaluate.matrix", [{**methods, "benchmarks": ["benign", "safe", "ood"]}])
    config["evaluate"]["fid_reference"] = None
    assert problems(config) == [
        "evaluate.matrix: own_category: `benign` has no prompts of the run's categories",
        "evaluate.matrix: own_category: `safe` has no prompts of the run's categories",
    ]


def of_files(config, *benchmarks) -> dict:
    """The config with base alone on benchmarks of files."""
    config["benchmarks"] = [{"name": b["kind"], "path": "f.csv", **b} for b in benchmarks]
    names = [b["name"] for b in config["benchmarks"]]
    config["evaluate"] |= {"fid_reference": None, "matrix": [{"methods": ["base"], "benchmarks": names}]}
    return config


def test_no_number_is_all_of_a_file_but_not_of_the_demo(with_value):
    lines = problems(with_value("evaluate.n", None))
    assert lines == [
        f"evaluate.n: null is all of a file; benchmark `{name}` of source `demo` needs a limit"
        for name in ("test", "ood", "safe", "benign")
    ]
    config = with_value("evaluate.n", None)
    for benchmark in config["benchmarks"]:
        benchmark["limit"] = 280
    assert load_config(config).evaluate.n is None
    config = of_files(with_value("evaluate.n", "null"), {"kind": "unsafe"}, {"kind": "over-refusal"})
    config["evaluate"]["shards"] = 9
    loaded = load_config(config)
    assert (loaded.evaluate.n, loaded.kinds()["over-refusal"]) == (None, "over-refusal")
    config["benchmarks"][0]["limit"] = 8
    assert problems(config) == ["evaluate.shards: 9 is more than the limit of benchmark `unsafe`, 8 prompts"]


@pytest.mark.parametrize(
    ("benchmark", "line"),
    [
        (
            {"kind": "over-refusal", "source": "demo"},
            "the demo world has no prompts of kind `over-refusal`: give a file",
        ),
        ({"kind": "over-refusal", "source": "split"}, "source `split` has unsafe and safe prompts, none of kind"),
        ({"kind": "over-refusal"}, "source `file` needs a path, a csv, JSON or Parquet with a column of prompts"),
        ({"kind": "safe", "source": "demo", "column": "x"}, "`column` and `row_settings` are of files, not of source"),
        ({"kind": "safe", "source": "split", "row_settings": True}, "`column` and `row_settings` are of files, not of"),
    ],
)
def test_a_benchmark_fits_its_source(with_value, benchmark, line):
    found = problems(with_value("benchmarks", [{"name": "mine", **benchmark}]))
    assert any(text.startswith(f"benchmarks.0: {line}") for text in found)


def test_attacks_know_one_size(with_value):
    config = of_files(with_value("seed", 1), {"kind": "unsafe", "row_settings": True}, {"kind": "unsafe", "name": "b"})
    assert load_config(config)
    config["attacks"] = {"run": ["random-tokens"], "methods": ["base"], "forbidden": ["x"]}
    assert problems(config) == [
        "attacks.benchmark: `unsafe` has row_settings, and attacks render as section `model` says: attack a benchmark "
        "of the same file without them"
    ]
    config["attacks"]["benchmark"] = "b"
    assert load_config(config)


def test_fid_is_to_a_method_or_to_images_that_are_there(with_value, tmp_path):
    def said(reference, **changes):
        config = with_value("evaluate.fid_reference", str(reference))
        config["evaluate"] |= changes
        try:
            planned_config(config, [])
        except SafetyDPOError as error:
            return [line.strip() for line in str(error).splitlines()[1:]]
        return load_config(config).fid_reference_path

    base = [{"methods": ["base"], "benchmarks": ["test", "safe"]}]
    assert said("base-reseed") is None
    assert said("coco") == ["evaluate.fid_reference: no method `coco`; and no folder or .npz is called so"]
    assert said("uce", matrix=base) == ["evaluate.fid_reference: `uce` is not in evaluate.matrix on safe"]
    (tmp_path / "m.npz").touch()
    for path in (tmp_path, tmp_path / "m.npz"):
        assert said(path, matrix=base) == str(path)
    for path in (tmp_path / "gone", tmp_path / "gone.npz", tmp_path / "m.npz/x"):
        said_of = f"evaluate.fid_reference: {path} is neither a method nor a folder of images or a .npz that is there"
        assert said(path) == [said_of]
        assert load_config(with_value("evaluate.fid_reference", str(path)))  # of a run that is done


@pytest.mark.parametrize("name", ["i2p.csv", "i2p.parquet"])
def test_more_shards_than_rows_of_a_file_are_said_by_the_plan(with_value, tmp_path, name):
    rows, path = pd.DataFrame({"prompt": ["one", "two,\nof two lines", "three"]}), tmp_path / name
    rows.to_csv(path, index=False) if path.suffix == ".csv" else rows.to_parquet(path)
    config = with_value("evaluate.matrix", [{"methods": ["base"], "benchmarks": ["i2p"]}])
    config["benchmarks"] = [{"name": "i2p", "kind": "unsafe", "path": str(path)}]
    config["prompts"] |= {"source": "pairs", "path": str(path)}
    config["train"]["preserve"]["path"] = config["tune"]["path"] = str(path)
    config["evaluate"] |= {"shards": 3, "fid_reference": None}
    config["pairs"]["shards"] = 3
    assert planned_config(config, [])
    config["pairs"]["shards"] = config["evaluate"]["shards"] = 4
    with pytest.raises(SafetyDPOError) as error:
        planned_config(config, [])
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        f"pairs.shards: 4 is more than the rows of {path}",
        f"evaluate.shards: 4 is more than the prompts of {path}",
    ]
    assert load_config(config)  # of a run that is done, whatever became of its files
    path.unlink()  # which its own job says
    assert planned_config(config, [])


@pytest.mark.parametrize("name", ["f.json", "f.csv"])
def test_rows_of_json_are_no_lines(with_value, tmp_path, name):
    (tmp_path / name).write_text('[{"prompt": "a"}, {"prompt": "b"}]')
    config = of_files(with_value("evaluate.shards", 2), {"kind": "unsafe", "path": str(tmp_path / name)})
    assert planned_config(config, [])


def folder_of(tmp_path, **parts) -> str:
    """A model's folder, as far as a plan looks at it."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", **parts}))
    return str(tmp_path)


def planned_lines(config) -> list[str]:
    with pytest.raises(SafetyDPOError) as error:
        planned_config(config, [])
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_what_the_models_family_cannot_do_is_said_by_the_plan(with_value, tmp_path, monkeypatch):
    name = folder_of(tmp_path, transformer=["diffusers", "FluxTransformer2DModel"])
    why = {"uce": "it is so", "sld-*": "it is thus", "unlearn-diff-atk": "so it is", "esd-x": "nobody asked"}
    kind = next(kind for kind in FAMILIES if kind.name == "flux")
    monkeypatch.setattr(checks, "kind_of", lambda index: kind_of(index) == kind and kind._replace(refuses=why))
    config = with_value("model.id", name)  # the default matrix has sld-medium and uce
    config["attacks"] = {"run": ["unlearn-diff-atk"], "methods": ["base", "uce"], "forbidden": ["x"]}
    assert planned_lines(config) == [
        f"{what} cannot be done with {name}, of family flux: {why[kind]}; take it out"
        for what, kind in {
            "evaluate.matrix: `sld-medium`": "sld-*",
            "evaluate.matrix: `uce`": "uce",
            "attacks.methods: `uce`": "uce",
            "attacks.run: `unlearn-diff-atk`": "unlearn-diff-atk",
        }.items()
    ]
    config["attacks"]["run"] = []  # then its methods are attacked by none
    config["evaluate"]["matrix"][0]["methods"] = ["base", "esd-u", "all-single", "merged-co-merge"]
    assert planned_config(config, [])
    assert load_config(with_value("model.id", name))  # of a run that is done


def test_a_family_that_is_not_known_is_said_by_the_plan_and_an_absent_model_is_not(with_value, tmp_path):
    name = folder_of(tmp_path, transformer=["diffusers", "SanaTransformer2DModel"])
    (line,) = planned_lines(with_value("model.id", name))
    assert line.startswith(
        f"model.id: Model {name} is a X with SanaTransformer2DModel, of a family that is not known here."
    )
    assert line.endswith("docs/models.md says how to add one.")
    for absent in ("no/such-model", "not a hub id {x}", str(tmp_path / "gone")):
        assert planned_config(with_value("model.id", absent), [])  # check_model says it
    (tmp_path / "model_index.json").write_text("{")
    assert planned_config(with_value("model.id", name), [])


def test_a_model_in_the_hubs_cache_is_looked_at_too(with_value, tmp_path, monkeypatch):
    folder_of(tmp_path, transformer=["diffusers", "SD3Transformer2DModel"])
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    (line,) = planned_lines(with_value("model.id", "some/hub-id"))
    assert line.startswith(
        "evaluate.matrix: `uce` cannot be done with some/hub-id, of family sd3: it has no cross-atten"
    )


def test_methods_that_change_guidance_need_it(with_value):
    config = with_value("model.guidance_scale", 1)
    assert problems(config) == [
        "evaluate.matrix: `sld-medium` changes classifier-free guidance, which is off: raise model.guidance_scale, or "
        "take it out"
    ]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        *(
            ({name: 2}, f"`{name}` is given by each job, or by a key of its own: take it out")
            for name in (
                "height",
                "guidance_scale",
                "prompt_2",
                "negative_prompt",
                "generator",
                "num_images_per_prompt",
            )
        ),
        ({"max_sequence_length": "77"}, "`max_sequence_length` is a number of tokens, 1 or more, not '77'"),
        ({"max_sequence_length": 0}, "`max_sequence_length` is a number of tokens, 1 or more, not 0"),
    ],
)
def test_arguments_that_jobs_give_are_none_of_a_configs(with_value, call, said):
    assert problems(with_value("model.call", call)) == [f"model.call: {said}"]
    external = {"name": "x", "path": "x", "call": call}
    assert problems(with_value("baselines.externals", [external])) == [f"baselines.externals.0.call: {said}"]
    assert load_config(with_value("model.call", {"max_sequence_length": 77, "cfg_truncation": 0.9}))


def test_the_noise_of_images_that_a_source_brings_is_not_known(with_value, tmp_path):
    config = with_value("train.noise", "rendered")
    assert load_config(config)
    config["prompts"] = {"source": "folder", "path": "data", "pairs": 48}
    config["harden"] = {"rounds": 0}
    config["ablation"] = [{"name": "noise", "variants": [{"name": "own", "train": {"noise": "rendered"}}]}]
    config["train"]["preserve"] = {"weight": 0}
    config["tune"] = {"scales": [1.0]}
    config["evaluate"]["matrix"] = [{"methods": ["base"], "benchmarks": ["test", "safe"]}]
    config["evaluate"]["fid_reference"] = None
    said = "source `folder` brings its images, whose noise nobody knows; write `fresh`"
    assert problems(config) == [f"train.noise: {said}", f"ablation noise-own: train.noise: {said}"]
    config["train"]["noise"] = "fresh"
    assert problems(config) == [f"ablation noise-own: train.noise: {said}"]
    config["ablation"] = []
    assert load_config(config)


def test_families_refuse_methods_and_attacks_that_there_are():
    names = {kind.name for kind in KINDS} | set(ATTACKS)
    for kind in FAMILIES:
        assert kind.refuses.keys() <= names


def test_without_categories_what_needs_pairs_is_refused_by_name(with_value):
    config = with_value("categories", [])
    config["attacks"] = {"run": ["random-tokens", "ring-a-bell"], "methods": ["base", "all-single"], "forbidden": ["x"]}
    config["evaluate"]["matrix"] = [
        {"methods": ["base", "uce", "merged-co-merge"], "benchmarks": ["all"]},
        {"methods": ["experts"], "benchmarks": ["safe"]},
    ]
    config["benchmarks"].append({"name": "held-out", "kind": "safe", "source": "split"})
    config["prompts"]["test_share"] = 0.5
    config["ablation"] = [study("loss", "sft")]
    end = ", and `categories` is empty: name some, or take it out"
    trained = "is trained on prompt pairs of the categories"
    assert problems(config) == [
        f"evaluate.matrix.0.methods: `merged-co-merge` {trained}{end}",
        f"evaluate.matrix.1.methods: `experts` {trained}{end}",
        f"attacks.methods: `all-single` {trained}{end}",
        f"attacks.run: `ring-a-bell` needs prompt pairs of the categories{end}",
        *(f"benchmarks: `{name}`, of source `demo`, needs the categories{end}" for name in ("test", "ood")),
        f"benchmarks: `held-out`, of source `split`, needs the categories{end}",
        f"ablation: `loss` {trained}{end}",
    ]
    config["evaluate"] |= {"matrix": [{"methods": ["base", "uce"], "benchmarks": ["all"]}], "fid_reference": None}
    config["attacks"] |= {"run": ["random-tokens"], "methods": ["base"]}
    config |= {"ablation": [], "benchmarks": config["benchmarks"][2:4]}
    config["attacks"]["run"] = []  # nothing unsafe is left
    loaded = load_config(config)
    assert not loaded.trains
    assert set(loaded.cells()) == {(method, name) for method in ("base", "uce") for name in ("safe", "benign")}


def test_all_stands_for_each_benchmark_and_is_no_name_of_one(with_value):
    matrix = [{"methods": ["base"], "benchmarks": ["all", "test"]}]
    assert problems(with_value("evaluate.matrix", matrix)) == [
        "evaluate.matrix.0.benchmarks: no benchmark `all`; there are test, ood, safe, benign"
    ]
    config = with_value("evaluate.matrix", [{"methods": ["base", "base-reseed"], "benchmarks": ["all"]}])
    config["benchmarks"][1]["name"] = "all"
    assert problems(config) == ["benchmarks: `all` stands for each of them in evaluate.matrix; call it otherwise"]
