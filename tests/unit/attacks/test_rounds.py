"""The core step of every attack against values derived by hand, and the stage around them."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import DEVICES, make_pipeline

from safetydpo.attacks.case import Case
from safetydpo.attacks.mma_diffusion import GradientSearch, best_tokens, distance, substitutes
from safetydpo.attacks.ring_a_bell import RingSearch, breed, concept_vector, fitness
from safetydpo.attacks.rounds import attack_of, attacked, succeeded
from safetydpo.attacks.sneaky_prompt import policy_loss, reward_of
from safetydpo.attacks.stage import Journal, prompts_to_attack
from safetydpo.attacks.target import Encoded, Seen, Target
from safetydpo.attacks.unlearn_diff_atk import PrefixSearch, project_to_simplex, straight_through
from safetydpo.attacks.vocabulary import Vocabulary, forbidden_words
from safetydpo.config.attacks import Attacks
from safetydpo.demo.build.clip import train_tokenizer
from safetydpo.demo.grammar import CONCEPTS
from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import load_pipeline

WORDS = list(CONCEPTS)
PROMPT = "a red circle with a zorin on a teal field"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Judge:
    """Stands in for the judges: flags an image when its mean is even."""

    class clip:  # noqa: N801
        @staticmethod
        def texts(prompts):
            return torch.nn.functional.normalize(torch.ones(len(prompts), 4), dim=1)

    def look(self, images, prompts):
        return [
            {"flagged": int(x.sum()) % 7 == 0, "q16": 0.3, "embedding": np.full(4, 0.5, np.float32)} for x in images
        ]


def target_of(folder: Path, family: str = "sd15", device: str = "cpu") -> Target:
    model = make_pipeline(folder, family).model_copy(update={"device": device})
    return Target(load_pipeline(model), WORDS, model, Judge())  # type: ignore[arg-type]


def case(seed: int = 0, **more) -> Case:
    stripped = "a red circle with a on a teal field"
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Case("p", PROMPT, stripped, "cross", 1, rng(seed), base_image=image, **more)


# Vocabulary


def test_no_allowed_token_is_or_holds_a_forbidden_word():
    vocabulary = Vocabulary(train_tokenizer(), WORDS)
    texts = [vocabulary.text([i]) for i in vocabulary.allowed.tolist()]
    assert len(texts) > 100
    assert not set(WORDS) & set(texts)
    assert all(vocabulary.reads_back([i]) for i in vocabulary.words.tolist())


def test_forbidden_words_are_found_inside_longer_ones_and_taken_out_whole():
    vocabulary = Vocabulary(train_tokenizer(), ["zorin"])
    assert vocabulary.forbids("a Zorins x")
    assert vocabulary.without_forbidden("a red-zorins on Zorin, teal", "x") == "a red-x on x, teal"
    assert vocabulary.without_forbidden(PROMPT) == "a red circle with a on a teal field"


def test_pieces_that_join_into_a_forbidden_word_are_not_usable():
    tokenizer = train_tokenizer()
    vocabulary = Vocabulary(tokenizer, ["redzo"])
    pieces = [tokenizer.convert_tokens_to_ids("r"), *tokenizer("edzo").input_ids[1:-1]]
    assert vocabulary.text(pieces) == "redzo"
    assert not vocabulary.usable(pieces)
    assert vocabulary.usable(vocabulary.ids("red teal"))
    assert not vocabulary.usable([tokenizer.convert_tokens_to_ids("r")])  # reads back as the word `r`


def test_words_come_from_the_config_and_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("Beta\n\n alpha \n")
    assert forbidden_words(["gamma"], str(tmp_path / "words.txt")) == ["alpha", "beta", "gamma"]
    with pytest.raises(SafetyDPOError, match="does not exist"):
        forbidden_words([], str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SafetyDPOError, match="no word is forbidden"):
        forbidden_words([], str(tmp_path / "empty.txt"))


# Bad input


def test_a_method_without_a_text_encoder_is_refused_in_a_sentence(tmp_path):
    model = make_pipeline(tmp_path / "m")
    api = type("Api", (), {"unet": None})()
    with pytest.raises(SafetyDPOError, match=r"no text encoder that an attack could reach: take the method out of"):
        Target(api, WORDS, model, Judge())  # type: ignore[arg-type]


def test_a_benchmark_without_unsafe_prompts_is_refused_in_a_sentence(tmp_path):
    rows = pd.DataFrame({"prompt_id": ["a"], "prompt": ["a red circle"], "category": ["safe"], "kind": ["safe"]})
    rows.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(SafetyDPOError, match=r"b.parquet has no unsafe prompts to attack: name another benchmark"):
        prompts_to_attack(tmp_path / "b.parquet", Attacks(run=["ring-a-bell"], forbidden=WORDS))


def test_tokens_that_do_not_fit_the_window_are_refused_in_a_sentence():
    vocabulary = Vocabulary(train_tokenizer(), WORDS)
    with pytest.raises(SafetyDPOError, match="15 tokens do not fit the model's window of 14: lower tokens"):
        vocabulary.padded(torch.zeros(1, 15, dtype=torch.long))


# Ring-A-Bell


def test_concept_vector_and_fitness_by_hand():
    unsafe = Encoded(torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]]), torch.zeros(2, 1))
    safe = Encoded(torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]), torch.zeros(2, 1))
    vector = concept_vector(unsafe, safe)
    assert vector.tolist() == [[1.5, 3.0]]  # means of (1, 1) and (2, 5)
    hidden = torch.tensor([[[1.5, 3.0]], [[0.5, 5.0]]])
    assert fitness(hidden, vector).tolist() == [0.0, 5.0]  # 1^2 + 2^2


def test_children_are_a_head_of_one_parent_and_a_tail_of_another():
    parents = torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2]])
    children = breed(parents, 200, 0.0, torch.tensor([9]), rng())
    for child in children.tolist():
        changes = sum(a != b for a, b in itertools.pairwise(child))
        assert changes <= 1
    mutated = breed(parents, 200, 0.5, torch.tensor([9]), rng())
    assert (mutated == 9).sum(1).max() == 1
    assert 60 < (mutated == 9).any(1).sum() < 140


def test_the_best_of_a_population_is_never_lost(tmp_path):
    target = target_of(tmp_path / "m")
    config = Attacks(run=["ring-a-bell"], forbidden=WORDS).ring_a_bell.model_copy(
        update={"population": 12, "generations": 1, "mutation": 1.0}
    )
    search = RingSearch(target, config, {"cross": ([PROMPT], ["a red circle on a teal field"])})
    one, best = case(), []
    one.category = "unheard-of"  # of the benchmark's file: it gets the mean of all concepts
    for _ in range(15):
        search.propose([one])
        best.append(float(one.state["errors"].min()))
    assert best == sorted(best, reverse=True)
    assert best[-1] < best[0]


# MMA-Diffusion


def test_the_gradient_of_a_toy_embedding_points_at_the_token_that_helps():
    # pooled = sum of embedding rows; loss = -pooled . wanted: the gradient is -E wanted at every position
    embedding, wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0.6, 0.8])
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 1]), 3).float().requires_grad_(True)
    (gradient,) = torch.autograd.grad(-(one_hot @ embedding).sum(0) @ wanted, one_hot)
    assert torch.allclose(gradient, torch.tensor([[-0.6, -0.8, -1.0]] * 2))
    assert best_tokens(gradient, torch.tensor([0, 1, 2]), 2).tolist() == [[2, 1], [2, 1]]
    assert best_tokens(gradient, torch.tensor([0, 1]), 2).tolist() == [[1, 0], [1, 0]]  # 2 is forbidden


def test_a_substitute_changes_one_position_to_one_of_that_positions_tokens():
    ids, tokens = torch.tensor([1, 2, 3]), torch.tensor([[10, 11], [20, 21], [30, 31]])
    for row in substitutes(ids, tokens, 50, rng()).tolist():
        changed = [k for k in range(3) if row[k] != ids[k]]
        assert len(changed) == 1
        assert row[changed[0]] in tokens[changed[0]].tolist()


def test_distance_is_one_minus_cosine():
    found = distance(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]), torch.tensor([1.0, 0.0]))
    assert found.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_gradient_and_position_are_aligned(tmp_path, family):
    """The gradient at position k agrees with what a small step of the one-hot at k does to the loss."""
    target = target_of(tmp_path / "m", family)
    for encoder in target.encoders:  # some models have more embeddings than tokens
        encoder.resize_token_embeddings(len(target.vocabulary.tokenizer) + 8)
    search = GradientSearch(target, Attacks(run=["mma-diffusion"], forbidden=WORDS).mma_diffusion)
    ids, wanted = torch.tensor(target.vocabulary.ids("red circle teal")), target.encode_prompts([PROMPT]).pooled[0]
    gradient = search.gradient(ids[None], wanted[None])[0]

    def loss(step: float, place: int, token: int) -> float:
        one_hot = torch.nn.functional.one_hot(ids, gradient.shape[1]).float()[None]
        one_hot[0, place, token] += step
        return float(distance(target.encode_soft(ids[None], one_hot).pooled, wanted))

    for place, token in ((0, 5), (1, 40), (2, 100)):
        measured = (loss(0.05, place, token) - loss(-0.05, place, token)) / 0.1
        assert measured == pytest.approx(float(gradient[place, token]), rel=0.05, abs=2e-4)


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_encoding_tokens_is_what_the_pipeline_does_with_their_text(tmp_path, family):
    target = target_of(tmp_path / "m", family)
    encoded = target.encode_prompts([PROMPT])
    wanted = target.pipeline.encode_prompt(
        [PROMPT], device=target.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.allclose(encoded.hidden, wanted[0], atol=1e-5)
    if family == "sdxl":
        assert torch.allclose(encoded.pooled, wanted[2], atol=1e-5)


# SneakyPrompt


def test_reward_and_policy_gradient_by_hand():
    assert reward_of(True, 0.9, 0.4) == pytest.approx(0.4)
    assert reward_of(False, 0.3, 0.4) == pytest.approx(-0.3)  # 0.4 - 0.7
    logits = torch.zeros(1, 2, requires_grad=True)
    policy_loss(logits, torch.tensor([1]), 2.0).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0]]  # -2 x (one-hot - softmax) = -2 x (-1/2, 1/2)


# UnlearnDiffAtk


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_batch_of_prompts_of_different_lengths_is_each_of_them(tmp_path, family):
    target = target_of(tmp_path / "m", family)
    search = PrefixSearch(target, Attacks(run=["unlearn-diff-atk"], forbidden=WORDS, **SMALL).unlearn_diff_atk, False)
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


def test_projection_to_the_simplex_by_hand():
    assert project_to_simplex(torch.tensor([0.5, 0.5])).tolist() == [0.5, 0.5]
    assert project_to_simplex(torch.tensor([2.0, 0.0])).tolist() == [1.0, 0.0]
    assert torch.allclose(project_to_simplex(torch.tensor([0.8, 0.6, -1.0])), torch.tensor([0.6, 0.4, 0.0]))


def test_straight_through_is_a_one_hot_with_the_gradient_of_its_input():
    rows = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    hard = straight_through(rows)
    assert hard.tolist() == [[0.0, 1.0, 0.0]]
    (hard * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[1.0, 2.0, 3.0]]


# Rounds and the stage

SMALL = {
    "random_tokens": {"tokens": 2},
    "ring_a_bell": {"population": 6, "generations": 2, "tokens": 6},
    "mma_diffusion": {"iterations": 2, "candidates": 8, "top": 8, "tokens": 4},
    "unlearn_diff_atk": {"steps": 2, "tokens": 2, "learning_rate": 0.1},
}
NAMES = ["random-tokens", "ring-a-bell", "mma-diffusion", "sneaky-prompt", "unlearn-diff-atk"]
PAIRS = {"cross": ([PROMPT], ["a red circle on a teal field"])}


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", DEVICES)
def test_every_attack_is_the_same_twice_and_uses_no_forbidden_word(tmp_path, family, name, device):
    target = target_of(tmp_path / "m", family, device)
    config = Attacks(run=[name], forbidden=WORDS, rounds=3, **SMALL)  # type: ignore[arg-type]
    found = []
    for _ in range(2):
        cases, ended = [case(1), case(2)], []
        attack = attack_of(name, target, config, PAIRS, strip=True)
        attacked(attack, target, cases, config, ended.append)
        assert {id(c) for c in ended} == {id(c) for c in cases}
        assert all(1 <= c.queries <= 3 and c.found for c in cases)
        assert not any(target.vocabulary.forbids(c.found) for c in cases)
        found.append([(c.found, c.queries, c.steps, c.loss, c.flagged) for c in cases])
    assert str(found[0]) == str(found[1])


def test_of_flagged_images_only_those_of_the_category_count_where_asked():
    seen = Seen(True, "ring", 0.9, np.zeros(1))
    assert succeeded(case(), seen, "flagged")
    assert not succeeded(case(), seen, "category")
    assert succeeded(case(), seen._replace(category="cross"), "category")
    assert not succeeded(case(), seen._replace(category="cross", flagged=False), "category")


def test_a_journal_keeps_whole_lines_of_the_same_attack_and_no_others(tmp_path):
    path = tmp_path / "j.jsonl"
    first = Journal(path, {"attack": "a"})
    first.put({"prompt_id": "x", "success": True})
    first.put({"prompt_id": "y", "success": False})
    first.file.close()
    with path.open("a") as file:
        file.write('{"prompt_id": "z", "succ')  # a kill in the middle of a line
    again = Journal(path, {"attack": "a"})
    assert list(again.done) == ["x", "y"]
    again.put({"prompt_id": "z", "success": True})
    again.file.close()
    assert [json.loads(line).get("prompt_id") for line in path.read_text().splitlines()] == [None, "x", "y", "z"]
    assert Journal(path, {"attack": "b"}).done == {}
