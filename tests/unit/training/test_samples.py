"""Which samples a step sees, and the random choices about them."""

import pytest
import torch
from tiny import samples, train_config

from safetydpo.features.sets import read_features
from safetydpo.training.samples import PAIR_ROLES, RETAIN_ROLES, Draw, Share


def numbers(pairs, turn):
    return [draw.sample for draw in pairs.pick(turn)]


def test_an_epoch_sees_every_pair_and_fewer_pairs_than_a_batch_go_round(features):
    pairs = samples(features, train_config(batch_size=3))
    assert sorted(numbers(pairs, 0)) == sorted(numbers(pairs, 1)) == [0, 1, 2]
    assert sorted(numbers(samples(features, train_config(batch_size=6)), 0)) == [0, 0, 1, 1, 2, 2]


def test_parts_of_a_batch_are_the_batch(tiny, tiny_features):
    features = read_features([tiny_features / "features.safetensors"], tiny.id)
    for config in (train_config(), train_config(reference="cached", draws=4)):
        whole = samples(features, config, batch_size=4)
        parts = [samples(features, config, batch_size=2, share=Share(rank, 2)) for rank in range(2)]
        for turn in range(5):
            assert parts[0].pick(turn) + parts[1].pick(turn) == whole.pick(turn)
        assert parts[0].drawn(5) == whole.drawn(5) if config.reference == "cached" else True


def drawn(count):
    return [Draw(0, 0, key) for key in range(count)]


@pytest.mark.parametrize(("condition", "safe_share"), [("unsafe", 0.0), ("safe", 1.0), ("both", 0.5)])
def test_the_condition_chooses_the_prompt(make, features, condition, safe_share):
    config = train_config(condition=condition, caption_dropout=0)
    batch = samples(features, config).noised(make(config), drawn(200))
    text = {role: features.condition([0], [role])["encoder_hidden_states"][0] for role in PAIR_ROLES}
    seen = batch.condition["encoder_hidden_states"]
    assert not torch.equal(text["safe"], text["unsafe"])
    safe = sum(torch.equal(row, text["safe"]) for row in seen[:200])
    assert safe + sum(torch.equal(row, text["unsafe"]) for row in seen[:200]) == 200
    assert safe / 200 == pytest.approx(safe_share, abs=0.11)  # 3 standard errors of a fair coin
    assert torch.equal(seen[:200], seen[200:])  # one prompt for winner and loser


def test_captions_are_dropped_at_their_rate(make, features):
    config = train_config(caption_dropout=0.2)
    batch = samples(features, config).noised(make(config), drawn(400))
    empty = features.condition([0], [""])["encoder_hidden_states"][0]
    dropped = sum(torch.equal(row, empty) for row in batch.condition["encoder_hidden_states"][:400])
    assert dropped / 400 == pytest.approx(0.2, abs=0.06)


def test_caption_dropout_uses_the_empty_prompt(denoiser, features):
    pairs = samples(features, train_config(caption_dropout=1.0))
    batch = pairs.noised(denoiser, pairs.pick(0))
    empty = features.shards[0]["encoder_hidden_states"][-1]
    assert torch.equal(batch.condition["encoder_hidden_states"][0], empty)


def test_anchors_are_the_same_draws_under_safe_prompts_and_keep_the_empty_one(denoiser, features):
    pairs = samples(features, train_config(caption_dropout=0.5))
    drawn_pairs, anchored = (s.noised(denoiser, drawn(60)) for s in (pairs, pairs.anchors()))
    assert torch.equal(drawn_pairs.noisy_latents, anchored.noisy_latents)
    text = {role: features.condition([0], [role])["encoder_hidden_states"][0] for role in ("unsafe", "safe", "")}
    becomes = {"unsafe": "safe", "": ""}
    seen, states = set(), "encoder_hidden_states"
    for row, other in zip(drawn_pairs.condition[states], anchored.condition[states], strict=True):
        role = next(name for name in becomes if torch.equal(row, text[name]))
        assert torch.equal(other, text[becomes[role]])
        seen.add(role)
    assert seen == {"unsafe", ""}


def test_one_coin_mirrors_both_images_of_a_pair(make, features):
    for role in PAIR_ROLES:
        for kind in ("std", "flip_std"):
            features.shards[0][f"{role}_{kind}"].zero_()
        features.shards[0][f"{role}_mean"].fill_(1.0)
        features.shards[0][f"{role}_flip_mean"].fill_(-1.0)
    config = train_config(flip=0.5)
    batch = samples(features, config).noised(make(config), drawn(200))
    # x_t = sqrt(abar) x0 + sqrt(1 - abar) noise: what is left without the noise has the sign of x0
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0).float()[batch.timesteps][:, None, None, None]
    left = (batch.noisy_latents - (1 - abar).sqrt() * batch.target).mean((1, 2, 3))
    mirrored = left < 0
    assert torch.equal(mirrored[:200], mirrored[200:])
    assert mirrored[:200].float().mean().item() == pytest.approx(0.5, abs=0.11)


def test_a_retain_set_is_neither_dropped_nor_conditioned_on_safe_prompts(features):
    pairs = samples(features, train_config(condition="safe", caption_dropout=0.5))
    retain = samples(features, train_config(condition="safe", caption_dropout=0.5), RETAIN_ROLES, 2)
    assert {pairs._coins(key)[0] for key in range(50)} == {"", "safe"}
    assert {retain._coins(key)[0] for key in range(50)} == {"image"}
