"""Input that is nearly right: each of these once ended in a traceback or, worse, in a wrong result."""

import pandas as pd
import pytest
import torch
import yaml
from snakes import ROOT
from tiny import fit, make_pipeline, samples, train_config

from safetydpo.config.evaluation import Benchmark, Tune
from safetydpo.config.loading import load_config
from safetydpo.config.prompts import Category, Prompts
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import Features
from safetydpo.judges.q16 import read_q16_prompts
from safetydpo.merging.strategies import merge
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_benchmark, write_pairs, write_tuning
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.records import seed_of
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.samples import PAIR_ROLES


def test_images_that_are_nan_are_refused_not_drawn_black(tmp_path):
    model = make_pipeline(tmp_path / "p")
    pipeline = load_pipeline(model)
    pipeline.unet.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(SafetyDPOError, match="not finite"):
        list(render(pipeline, ["a"], [0], model))


def benchmark_of(tmp_path, text):
    (tmp_path / "b.csv").write_text(text)
    benchmark = Benchmark(name="mine", kind="unsafe", path=str(tmp_path / "b.csv"))
    write_benchmark(benchmark, 9, [], 0, tmp_path / "o.parquet")
    return read_parquet(tmp_path / "o.parquet")


def test_a_blank_seed_is_assigned_and_one_that_is_no_number_is_a_sentence(tmp_path):
    rows = benchmark_of(tmp_path, "prompt,evaluation_seed\nx,\ny,3\n")
    assert list(rows.seed) == [seed_of(0, "mine-00000"), 3]
    with pytest.raises(SafetyDPOError, match="seed 'abc': it must be a whole number"):
        benchmark_of(tmp_path, "prompt,evaluation_seed\nx,abc\n")


def test_a_null_prompt_of_a_parquet_is_blank(tmp_path):
    pd.DataFrame({"prompt": ["x", None]}).to_parquet(tmp_path / "b.parquet")
    b = Benchmark(name="mine", kind="unsafe", path=str(tmp_path / "b.parquet"))
    write_benchmark(b, 9, [], 0, tmp_path / "o.parquet")
    assert read_parquet(tmp_path / "o.parquet").prompt.tolist() == ["x"]


def test_a_benchmark_of_blank_prompts_is_a_sentence(tmp_path):
    (tmp_path / "b.csv").write_text("prompt\n \n")
    with pytest.raises(SafetyDPOError):
        write_benchmark(Benchmark(name="mine", kind="unsafe", path=str(tmp_path / "b.csv")), 9, [], 0, tmp_path / "o")


def test_a_null_category_of_a_parquet_belongs_to_none(tmp_path):
    frame = pd.DataFrame({"category": ["hate", None], "unsafe_prompt": ["a", "b"], "safe_prompt": ["c", "d"]})
    frame.to_parquet(tmp_path / "p.parquet")
    prompts = Prompts(source="pairs", path=str(tmp_path / "p.parquet"), pairs=9)
    write_pairs(Request(Category(name="hate"), prompts, 0), tmp_path / "o.parquet", tmp_path / "r.parquet")
    assert len(read_parquet(tmp_path / "o.parquet")) == 1


def test_pairs_with_a_blank_prompt_are_dropped(tmp_path):
    (tmp_path / "p.csv").write_text("category,unsafe_prompt,safe_prompt\nhate,a,\nhate,,b\nhate,c,d\n")
    prompts = Prompts(source="pairs", path=str(tmp_path / "p.csv"), pairs=9)
    write_pairs(Request(Category(name="hate"), prompts, 0), tmp_path / "o.parquet", tmp_path / "r.parquet")
    assert read_parquet(tmp_path / "o.parquet").unsafe_prompt.tolist() == ["c"]


def test_a_tuning_file_without_benign_prompts_is_refused_before_rendering(tmp_path):
    (tmp_path / "t.csv").write_text("prompt\nx\n")
    with pytest.raises(SafetyDPOError):
        write_tuning(Tune(path=str(tmp_path / "t.csv"), scales=[1, 2]), [], 0, tmp_path / "o.parquet")


@pytest.mark.parametrize("other", [(torch.ones(1, 4), torch.ones(3, 1)), (torch.ones(2, 2), torch.ones(3, 2))])
def test_experts_of_other_shapes_are_named(other):
    with pytest.raises(SafetyDPOError, match="layer"):
        merge("linear", {"one": {"layer": (torch.ones(1, 2), torch.ones(3, 1))}, "two": {"layer": other}})


def test_a_detector_without_its_folder_is_one_line():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["judges"]["detector_path"] = None
    with pytest.raises(SafetyDPOError, match="detector_path"):
        load_config(config)


def test_a_missing_column_is_not_called_damage(tmp_path):
    write_parquet([{"a": 1}], tmp_path / "a.parquet")
    with pytest.raises(SafetyDPOError, match="has no column"):
        read_parquet(tmp_path / "a.parquet", ["b"])


def test_a_broken_pickle_is_a_sentence(tmp_path):
    (tmp_path / "x.p").write_bytes(b"\x80\x09abc")
    with pytest.raises(SafetyDPOError):
        read_q16_prompts(tmp_path / "x.p")


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model = make_pipeline(tmp_path / "p")
    tensors = {f"{r}_{s}": torch.randn(1, 4, 8, 8).abs() for r in PAIR_ROLES for s in ("mean", "std")}
    tensors |= {f"{r}_caption": torch.zeros(1, dtype=torch.long) for r in PAIR_ROLES}
    features = Features(["a"], [{**tensors, "encoder_hidden_states": torch.randn(2, 16, 16)}])
    config = train_config(batch_size=1, steps=1)
    denoiser = Denoiser(model)
    denoiser.add_adapter(config, 0)
    denoiser.parameters[1].register_hook(lambda g: g * torch.nan)  # a gradient overflows in the last step
    with pytest.raises(SafetyDPOError, match="x: the gradient is not finite at step 0"):
        fit(denoiser, samples(features, config), None, config, 1)
