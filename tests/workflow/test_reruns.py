"""What a change of config redoes, by the job table of a dry run after a finished run."""

import copy

import yaml
from snakes import REDUCED, ROOT, Workdir, copy_of_the_sources

from safetydpo.config.versions import STAGE_VERSION

EVALUATION = {"benchmark_prompts", "render_benchmark", "score", "metrics", "report", "all", "resolved_config"}
MERGES = len(yaml.safe_load(REDUCED.read_text())["merge"]["strategies"])
TUNED = MERGES + 1  # and all-single


def changed(**sections: dict) -> dict:
    """The reduced overlay's sections with some keys replaced."""
    base = yaml.safe_load(REDUCED.read_text())
    out = {}
    for name, keys in sections.items():
        out[name] = {**copy.deepcopy(base.get(name, {})), **keys} if isinstance(keys, dict) else keys
    return out


def test_a_finished_run_has_nothing_to_do(finished):
    assert finished.planned() == {}


def test_beta_touches_training_and_what_follows(finished):
    plan = finished.planned(changed(train={"beta": 300}))
    assert plan["train_expert"] == 2
    assert plan["train_all_single"] == 1
    assert plan["merge_experts"] == MERGES
    assert not {"prompts", "render_pairs", "features", "retain_prompts", "render_retain", "benchmark_prompts"} & set(
        plan
    )


def test_another_noise_or_draw_of_timesteps_trains_anew_alone(finished):
    plan = finished.planned({"train": {"noise": "rendered", "timestep_sampling": "logit-normal"}})
    assert (plan["train_expert"], plan["train_all_single"], plan["merge_experts"]) == (2, 1, MERGES)
    assert not {"prompts", "render_pairs", "features", "retain_features", "benchmark_prompts"} & set(plan)


def test_another_call_of_the_pipeline_renders_and_encodes_anew(finished):
    plan = finished.planned({"model": {"call": {"clip_skip": 1}}})
    assert (plan["render_pairs"], plan["features"], plan["train_expert"]) == (4, 4, 2)
    assert not {"prompts", "benchmark_prompts"} & set(plan)


def test_preserve_weight_leaves_retain_prompts_alone(finished):
    plan = finished.planned({"train": {"preserve": {"weight": 100}}})
    assert plan["train_expert"] == 2
    assert not {"retain_prompts", "render_retain", "retain_features", "render_pairs"} & set(plan)


def test_concepts_of_one_category_touch_it_and_the_merges(finished):
    plan = finished.planned({"categories": [{"name": "ring", "concepts": ["odalo"]}, {"name": "cross"}]})
    assert plan["prompts"] == 1
    assert plan["render_pairs"] == 2  # its shards
    assert plan["train_expert"] == 1
    assert plan["merge_experts"] == MERGES


def test_a_new_category_adds_without_redoing(finished):
    plan = finished.planned({"categories": [{"name": "ring"}, {"name": "cross"}, {"name": "grid"}]})
    assert plan["prompts"] == 1
    assert plan["render_pairs"] == 2
    assert plan["train_expert"] == 1


def test_evaluate_n_redoes_evaluation_only(finished):
    plan = finished.planned({"evaluate": {"n": 9}})
    assert set(plan) == EVALUATION
    assert plan["render_benchmark"] == plan["score"] == 15


def test_what_changes_no_result_redoes_nothing_but_the_written_config(finished):
    changes = {"model": {"batch_size": 7, "device": "auto"}, "train": {"checkpoint_every": 7, "tensorboard": True}}
    assert set(finished.planned(changes)) <= {"resolved_config", "all"}


def test_a_baselines_settings_touch_that_baseline_alone(finished):
    plan = finished.planned({"baselines": {"uce": {"erase_scale": 2.0}}})
    assert (plan["erase"], plan["render_benchmark"], plan["score"]) == (1, 1, 1)
    assert not {"train_expert", "merge_experts", "render_pairs"} & set(plan)
    plan = finished.planned({"baselines": {"sld_concept": "a brulo"}})
    assert "erase" not in plan
    assert (plan["render_benchmark"], plan["score"]) == (1, 1)


def test_an_ablation_is_a_target_that_trains_its_variants_alone(finished):
    done = finished.run("--dry-run", "ablation_data")
    assert done.returncode == 0, done.stdout
    table = done.stdout.split("Job stats:")[1].split("total")[0]
    plan = {line.split()[0]: line.split()[-1] for line in table.splitlines() if line and line.split()[-1].isdigit()}
    assert plan["train_variant"] == "4"  # two variants of two categories
    assert plan["merge_variant"] == plan["coactivation_variant"] == plan["tune_scale"] == "2"
    assert plan["render_benchmark"] == plan["score"] == "6"
    assert not {"train_expert", "prompts", "render_pairs", "features"} & set(plan)


def test_mirrored_pairs_need_new_features_but_no_new_images(finished):
    plan = finished.planned({"train": {"flip": 0.5}})
    assert plan["features"] == 4
    assert plan["train_expert"] == 2
    assert not {"prompts", "render_pairs", "render_retain"} & set(plan)


RULE = "demo[stripes, checker, cross, zigzag, ring, arrow, grid] > 0.5"


def test_a_changed_verdict_or_another_ip_judges_nothing_again(finished):
    again = {"metrics", "report", "all", "resolved_config"}
    assert set(finished.planned({"judges": {"ip": "q16"}})) == again
    verdicts = ["demo", "q16", {"name": "mine", "rule": "q16 > 0.9"}]
    assert set(finished.planned({"judges": {"verdicts": verdicts}})) == {*again, "check_verdicts"}
    verdicts = ["demo", "q16", {"name": "detector", "rule": RULE.replace("0.5", "0.7")}]
    assert set(finished.planned({"judges": {"verdicts": verdicts}})) == {*again, "check_verdicts"}


def test_the_first_verdict_tunes_anew(finished):
    plan = finished.planned({"judges": {"verdicts": ["q16", "demo"]}})
    assert plan["tune_scale"] == TUNED
    assert "train_expert" not in plan


def test_another_judge_scores_again_but_tunes_and_renders_nothing(finished):
    panel = [
        {"judge": "q16", "id": "resources/demo/clip", "path": "resources/demo/q16.safetensors"},
        {"judge": "demo", "path": "resources/demo/detector"},
        {"judge": "nudenet"},
    ]
    plan = finished.planned({"judges": {"panel": panel}})
    assert plan["score"] == 15
    assert set(plan) == {"check_judges", "check_verdicts", "score", "metrics", "report", "all", "resolved_config"}


def test_another_q16_scores_and_tunes_anew_and_another_version_of_scoring_scores(finished, tmp_path):
    file = tmp_path / "q16.safetensors"
    file.write_bytes((ROOT / "resources/demo/q16.safetensors").read_bytes())
    q16 = {"judge": "q16", "id": "resources/demo/clip", "path": str(file)}
    plan = finished.planned({"judges": {"panel": [q16, {"judge": "demo", "path": "resources/demo/detector"}]}})
    assert (plan["copy_judge"], plan["tune_scale"]) == (1, TUNED)
    assert plan["score"] == 15
    number = STAGE_VERSION["score"]
    (tmp_path / "sources").mkdir()
    sources = copy_of_the_sources(tmp_path / "sources")
    versions = sources / "src/safetydpo/config/versions.py"
    versions.write_text(versions.read_text().replace(f'"score": {number},', f'"score": {number + 1},'))
    work = Workdir(finished.folder, sources)
    verdicts = ["demo", "q16", {"name": "mine", "rule": "q16 > 0.9"}]
    assert work.planned({"judges": {"verdicts": verdicts}})["score"] == 15  # whatever else is new


def edited(finished, folder, path, old, new):
    """The finished run, planned by a copy of the sources in which a file is edited."""
    sources = copy_of_the_sources(folder)
    text = (sources / path).read_text()
    assert old in text
    (sources / path).write_text(text.replace(old, new, 1))
    return Workdir(finished.folder, sources).planned()


def test_a_comment_in_the_library_redoes_nothing(finished, tmp_path):
    path = "src/safetydpo/training/losses.py"
    assert edited(finished, tmp_path, path, "import torch", "# a comment\nimport torch") == {}


def test_a_raised_stage_version_redoes_the_stage(finished, tmp_path):
    number = STAGE_VERSION["merge"]
    now, raised = f'"merge": {number},', f'"merge": {number + 1},'
    plan = edited(finished, tmp_path, "src/safetydpo/config/versions.py", now, raised)
    assert plan["merge_experts"] == MERGES
    assert "train_expert" not in plan


def test_an_edited_script_redoes_its_rule(finished, tmp_path):
    plan = edited(finished, tmp_path, "workflow/scripts/metrics.py", "p, o = snakemake", "p, o =  snakemake")
    assert set(plan) == {"metrics", "report", "all"}
