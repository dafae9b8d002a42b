"""An image depends on its prompt and seed alone."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_pipeline
from torch._dynamo.utils import counters

from safetydpo.errors import SafetyDPOError
from safetydpo.images.stage import render_prompts
from safetydpo.methods.negative_prompt import NegativePrompt
from safetydpo.models import sampling
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.images import unpng


def prompts(folder, n=5):
    rows = [
        {"prompt_id": f"x-{i}", "prompt": f"a {s} circle", "category": "c", "seed": 2**33 + i}
        for i, s in enumerate("abcde")
    ]
    write_parquet(pd.DataFrame(rows[:n]), folder / "prompts.parquet")
    return folder / "prompts.parquet"


def test_images_depend_on_neither_batch_nor_shard(tiny, tmp_path):
    path = prompts(tmp_path)
    render_prompts(path, tiny.model_copy(update={"batch_size": 5}), tmp_path / "whole.parquet")
    for shard in (0, 1):
        one = tiny.model_copy(update={"batch_size": 1})
        render_prompts(path, one, tmp_path / f"{shard}.parquet", shard=shard, shards=2)
    whole = read_parquet(tmp_path / "whole.parquet")
    parts = pd.concat([read_parquet(tmp_path / f"{i}.parquet") for i in (0, 1)])
    assert list(whole.prompt_id) == list(parts.prompt_id)
    for a, b in zip(whole.image, parts.image, strict=True):
        assert np.abs(unpng(a).astype(int) - unpng(b).astype(int)).max() <= 1  # rounding of float sums
    assert np.abs(unpng(whole.image[0]).astype(int) - unpng(whole.image[1]).astype(int)).max() > 1


def test_images_that_are_nan_are_refused_not_drawn_black(tmp_path):
    model = make_pipeline(tmp_path / "p")
    pipeline = load_pipeline(model)
    pipeline.unet.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(SafetyDPOError, match=r"not finite \(conv_out\.bias of its unet is not\): its file"):
        list(render(pipeline, ["a"], [0], model))


def test_prompts_of_equal_settings_are_batched_and_come_in_their_order(tiny, monkeypatch):
    wide = tiny.model_copy(update={"width": 24})
    calls = []

    def images_of(_, prompts, seeds, config):
        calls.append((prompts, config.width))
        return np.stack([np.full((2, config.width, 3), seed, np.uint8) for seed in seeds])

    monkeypatch.setattr(sampling, "images_of", images_of)
    monkeypatch.setattr(sampling, "TOGETHER", 6)
    own = [tiny, wide, wide, tiny, wide, tiny, wide, tiny]
    two = [m.model_copy(update={"batch_size": 2}) for m in own]
    images = list(render(None, list("abcdefgh"), range(8), tiny, two))
    assert [(int(x[0, 0, 0]), x.shape[1]) for x in images] == [(i, m.width) for i, m in enumerate(own)]
    assert calls == [(["a", "d"], 16), (["f"], 16), (["b", "c"], 24), (["e"], 24), (["g"], 24), (["h"], 16)]
    calls.clear()  # without them, batches are of neighbours, whatever the stretch
    list(render(None, list("abcdefgh"), range(8), tiny))
    assert [prompts for prompts, _ in calls] == [list("abcd"), list("efgh")]


def test_a_compiled_network_draws_the_same_by_one_graph(tiny, monkeypatch):
    monkeypatch.setattr(sampling, "prepare_compiler", lambda *_: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes minutes
    torch._dynamo.reset()
    counters.clear()
    compiled = tiny.model_copy(update={"batch_size": 2, "compile": True})
    prompts, seeds = ["a red circle", "a blue star", "a green square"], [0, 1, 2]
    pictures = [list(render(load_pipeline(tiny), prompts, seeds, model)) for model in (tiny, compiled)]
    assert len(pictures[1]) == 3  # of two batches, the last one filled
    assert np.abs(np.stack(pictures[0]).astype(int) - np.stack(pictures[1])).max() <= 2
    assert (counters["stats"]["unique_graphs"], dict(counters["graph_break"])) == (1, {})
    pipeline = load_pipeline(tiny)
    for _ in range(2):  # a wrapped one too, and once is enough
        list(render(NegativePrompt(pipeline, "red"), prompts, seeds, compiled))
    assert pipeline.unet.forward.__wrapped__.__self__ is pipeline.unet
    torch._dynamo.reset()
