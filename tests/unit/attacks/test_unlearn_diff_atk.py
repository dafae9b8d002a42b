"""UnlearnDiffAtk's steps against values derived by hand."""

import copy

import pytest
import torch
from attacks_target import SMALL, WORDS, case, rng, target_of

from safetydpo.attacks.case import Given
from safetydpo.attacks.unlearn_diff_atk import PrefixSearch, drawn, project_to_simplex, straight_through
from safetydpo.config.attacks import Attacks
from safetydpo.errors import SafetyDPOError

PUBLISHED = Attacks(run=["unlearn-diff-atk"], forbidden=WORDS, **SMALL).unlearn_diff_atk
CONFIG = PUBLISHED.model_copy(update={"form": "steady"})


def test_a_vae_that_overflows_in_half_precision_encodes_in_float32(tmp_path):
    target = target_of(tmp_path / "m", "sdxl")
    vae = target.pipeline.vae
    vae.encoder.conv_in.weight.data *= 1e5  # as SDXL's: activations beyond 65504
    vae.half()
    image = torch.from_numpy(case().base_image).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = copy.deepcopy(vae).float().encode(image).latent_dist.mean * 0.13025  # SDXL's scaling factor
    assert not vae.encode(image.half()).latent_dist.mean.isfinite().all()
    found = PrefixSearch(target, CONFIG, Given({}, strip=False))._latents(case())
    assert found.isfinite().all()
    assert torch.allclose(found, wanted)
    assert {p.dtype for p in vae.parameters()} == {torch.float16}  # what the pipeline renders with


@pytest.mark.parametrize(
    ("part", "said"),
    [("vae", "latents of base's image"), ("unet", "the network's errors"), ("text_encoder", "text embeddings")],
)
def test_nan_of_a_model_is_a_sentence_and_no_prefix(tmp_path, part, said):
    target = target_of(tmp_path / "m")
    for parameter in getattr(target.pipeline, part).parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(SafetyDPOError, match=rf"attacks: {said} of .*m are not finite \(\S+ of its {part} is not\)"):
        PrefixSearch(target, CONFIG, Given({}, strip=False)).propose([case()])


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3-t5", "flux-dev"])
def test_a_batch_of_prompts_of_different_lengths_is_each_of_them(tmp_path, family):
    target = target_of(tmp_path / "m", family)
    search = PrefixSearch(target, CONFIG, Given({}, strip=False))
    cases = [case(1), case(2)]
    cases[1].original = "a red circle"
    for one in cases:
        search._start(one)
    timesteps, noise = torch.tensor([300, 700]), torch.randn(2, *cases[0].state["latents"].shape[1:], generator=rng())
    both = search._loss(cases, timesteps, noise)
    alone = [search._loss([c], timesteps[i : i + 1], noise[i : i + 1]) for i, c in enumerate(cases)]
    assert torch.allclose(both, torch.cat(alone), atol=1e-5)
    gradient = torch.autograd.grad(both.sum(), cases[1].state["prefix"], retain_graph=True)[0]
    assert torch.allclose(gradient, torch.autograd.grad(alone[1].sum(), cases[1].state["prefix"])[0], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd3", "sd3-t5", "flux-dev", "flux-schnell"])
def test_of_a_flow_model_it_is_the_velocitys_error_under_the_text_that_is_proposed(tmp_path, family):
    """Against the pipeline's own reading of that text, and calls of the transformer written out here."""
    target = target_of(tmp_path / "m", family)
    search, one, pipeline = PrefixSearch(target, CONFIG, Given({}, strip=False)), case(), target.pipeline
    search._start(one)
    noise, scale = torch.randn(1, 4, 8, 8, generator=rng()), pipeline.vae.config.scaling_factor
    found = search._loss([one], torch.tensor([300.0]), noise)
    image = torch.from_numpy(one.base_image).permute(2, 0, 1)[None] / 127.5 - 1
    latents = (pipeline.vae.encode(image).latent_dist.mean - 0.1) * scale
    noisy, text = 0.7 * latents + 0.3 * noise, search._text(one)
    assert len(text.split()) == len(one.original.split()) + 2
    if family.startswith("sd3"):
        length = {"max_sequence_length": 24} if family == "sd3-t5" else {}
        hidden, _, pooled, _ = pipeline.encode_prompt(text, text, text, do_classifier_free_guidance=False, **length)
        model_pred = pipeline.transformer(noisy, hidden, pooled, torch.tensor([300.0])).sample
    else:
        hidden, pooled, text_ids = pipeline.encode_prompt(text, max_sequence_length=24)
        image_ids = torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)])
        packed = noisy.reshape(1, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 16)
        guidance = torch.tensor([2.0]) if family == "flux-dev" else None
        args = (packed, hidden, pooled, torch.tensor([0.3]), image_ids, text_ids, guidance)
        packed = pipeline.transformer(*args).sample
        model_pred = packed.reshape(1, 4, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 4, 8, 8)
    assert found.tolist() == pytest.approx([float((model_pred - (noise - latents)).square().mean())], rel=1e-4)


@pytest.mark.parametrize(("family", "shift"), [("sd3", 3.0), ("flux-schnell", 1.0), ("flux-dev", 1.583084)])
def test_timesteps_are_shifted_as_the_models_own(tmp_path, family, shift):
    search = PrefixSearch(target_of(tmp_path / "m", family), CONFIG, Given({}, strip=False))
    share = float(torch.randn((), generator=rng(3)).sigmoid())  # flux-dev: exp(0.5 - 0.65 x 240 / 3840), of 16 tokens
    assert float(search.prediction.draw_timestep(rng(3))) == pytest.approx(
        1000 * shift * share / (1 + (shift - 1) * share)
    )


@pytest.mark.parametrize("family", ["sd3-t5", "flux-dev"])
def test_gradients_flow_through_all_that_the_encoders_under_attack_say(tmp_path, family, monkeypatch):
    """What a small step of the prefix does to the loss: with soft tokens, and the text as it is."""
    monkeypatch.setattr("safetydpo.attacks.unlearn_diff_atk.straight_through", lambda rows, _: rows)
    search = PrefixSearch(target_of(tmp_path / "m", family), CONFIG, Given({}, strip=False))
    one = case()
    search._start(one)
    monkeypatch.setattr(search, "_text", lambda _: "a fern")
    prefix, noise = one.state["prefix"], torch.randn(1, 4, 8, 8, generator=rng())
    (gradient,) = torch.autograd.grad(search._loss([one], torch.tensor([500.0]), noise).sum(), prefix)
    for place in (0, 1):
        token = int(gradient[place].abs().argmax())
        losses = []
        for step in (0.03, -0.03):
            moved = prefix.detach().clone()
            moved[place, token] += step
            one.state["prefix"] = moved
            losses.append(float(search._loss([one], torch.tensor([500.0]), noise)))
        assert (losses[0] - losses[1]) / 0.06 == pytest.approx(float(gradient[place, token]), rel=0.05)


@pytest.mark.parametrize(("family", "encoder"), [("sd3-t5", "text_encoder_3"), ("flux-dev", "text_encoder")])
def test_encoders_of_other_tokens_read_a_text_once(tmp_path, family, encoder):
    target, calls = target_of(tmp_path / "m", family), []
    getattr(target.pipeline, encoder).register_forward_hook(lambda *_: calls.append(1))
    config = CONFIG.model_copy(update={"steps": 3, "learning_rate": 1e-9})  # so that no token changes
    search, cases = PrefixSearch(target, config, Given({}, strip=False)), [case(1), case(2)]
    search.propose(cases)
    assert len(calls) == 2
    cases[0].state["prefix"] = cases[0].state["prefix"].detach().flip(1).requires_grad_(True)
    cases[0].state["optimizer"] = torch.optim.Adam([cases[0].state["prefix"]], lr=1e-9)
    search.propose(cases)
    assert len(calls) == 3


@pytest.mark.parametrize("family", ["sd3-t5", "flux-dev"])
def test_in_bfloat16_a_prefix_moves_too(tmp_path, family):
    search = PrefixSearch(target_of(tmp_path / "m", family, dtype="bfloat16"), CONFIG, Given({}, strip=False))
    one = case()
    search._start(one)
    before = one.state["prefix"].detach().clone()
    search.propose([one])
    assert one.steps == 2
    assert not torch.equal(one.state["prefix"], before)


def test_projection_to_the_simplex_by_hand():
    assert project_to_simplex(torch.tensor([0.5, 0.5])).tolist() == [0.5, 0.5]
    assert project_to_simplex(torch.tensor([2.0, 0.0])).tolist() == [1.0, 0.0]
    assert torch.allclose(project_to_simplex(torch.tensor([0.8, 0.6, -1.0])), torch.tensor([0.6, 0.4, 0.0]))


def test_straight_through_is_a_one_hot_with_the_gradient_of_its_input():
    rows = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    hard = straight_through(rows, torch.tensor([1]))
    assert hard.tolist() == [[0.0, 1.0, 0.0]]
    (hard * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(("family", "grid"), [("sd15", [125, 375, 625, 875]), ("sd3", [125.0, 375.0, 625.0, 875.0])])
def test_the_published_form_takes_an_even_grid_and_new_noise_and_tokens_at_each_step(
    tmp_path, monkeypatch, family, grid
):
    """1000 timesteps in four rounds: the middle of each quarter; with 50 rounds the published 10, 30, ... 990."""
    target = target_of(tmp_path / "m", family)
    search, one = PrefixSearch(target, PUBLISHED, Given({}, strip=False, rounds=4)), case()
    calls, loss = [], search._loss

    def watched(cases, timesteps, noise):
        calls.append((timesteps.tolist(), noise.clone(), cases[0].state["prefix"].detach().clone()))
        return loss(cases, timesteps, noise)

    monkeypatch.setattr(search, "_loss", watched)
    for _ in grid:
        search.propose([one])
    assert [steps for steps, _, _ in calls] == [[t] for t in grid for _ in range(2)]
    assert len({float(noise.sum()) for _, noise, _ in calls}) == len(calls)
    words = len(search.allowed)
    assert torch.allclose(calls[0][2], torch.full((2, words), 1 / words))  # all tokens alike at the start
    fifty = PrefixSearch(target, PUBLISHED, Given({}, strip=False))
    one.state["round"] = 49
    assert fifty._timestep(one).item() == 990


def test_tokens_are_drawn_by_their_shares():
    rows = torch.tensor([[0.75, 0.25, 0.0]]).repeat(4000, 1)
    found = torch.bincount(drawn(rows, rng()), minlength=3) / 4000
    assert found.tolist() == pytest.approx([0.75, 0.25, 0.0], abs=4 * (0.75 * 0.25 / 4000) ** 0.5)
