"""Tokenizer and tiny CLIP of the demo world: standard `CLIPTokenizer` and `CLIPModel`, trained from scratch."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, trainers
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from safetydpo.demo.grammar import ALL_FORMS, ALL_SCENES, CONCEPTS, SAFE_FORMS
from safetydpo.demo.making.data import SceneSet
from safetydpo.demo.making.fit import Schedule, fit
from safetydpo.demo.scenes import BENIGN, SIZE

LENGTH, WIDTH = 16, 96
START, END = "<|startoftext|>", "<|endoftext|>"
MEAN_STD = [0.5, 0.5, 0.5]


def train_tokenizer() -> CLIPTokenizer:
    """BPE over every sentence of the grammar, wrapped as a `CLIPTokenizer` of length 16."""
    words = {"thing": "red circle", "field": "teal"}
    sentences = [f"a {s.colour} {s.shape} on a {s.field} field" for s in ALL_SCENES]
    marks = (*CONCEPTS, *BENIGN)
    sentences += [form.format(mark=mark, **words) for form, mark in itertools.product(ALL_FORMS, marks)]
    sentences += [form.format(**words) for form in SAFE_FORMS.values()]
    blank = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])._tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    alphabet = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"]
    trainer = trainers.BpeTrainer(
        vocab_size=440, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(sentences, trainer)
    state = json.loads(bpe.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    tokens += [f"{c}</w>" for c in alphabet if f"{c}</w>" not in state["vocab"]]
    vocab = {token: i for i, token in enumerate([*tokens, START, END])}
    merges: Any = [tuple(pair) for pair in state["merges"]]  # annotated as text, taken as pairs
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, pad_token=END)


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """3 + 3 layers of width 96, patches of 8 pixels."""
    end = tokenizer.convert_tokens_to_ids(END)
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.convert_tokens_to_ids(START),
        "eos_token_id": end,
        "pad_token_id": end,
        "projection_dim": WIDTH,
    }
    vision = {**shared, "image_size": SIZE, "patch_size": 8, "projection_dim": WIDTH}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


def image_processor() -> CLIPImageProcessorPil:
    """Pixels to [-1, 1] at 48 x 48."""
    size = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=size, image_mean=MEAN_STD, image_std=MEAN_STD, do_convert_rgb=True
    )


def train_clip(data: SceneSet, plan: Schedule, seed: int, batch: int, work: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """Contrastive training; scenes of equal content are positives of each other (forms and layout say nothing)."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    model = CLIPModel(clip_config(tokenizer))
    kinds = {scene: i for i, scene in enumerate(dict.fromkeys(data.scenes))}
    kind_of = torch.tensor([kinds[scene] for scene in data.scenes])

    def loss_of(step: int, rank: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, step, rank))
        index = torch.from_numpy(rng.integers(len(data.scenes), size=batch))
        tokens = tokenizer(data.captions(index, rng), padding="max_length", truncation=True, return_tensors="pt")
        logits = model(pixel_values=data.pixels(index), **tokens).logits_per_image
        same = (kind_of[index][:, None] == kind_of[index][None]).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    fit("clip", model, loss_of, plan, work)
    return model.eval(), tokenizer


@torch.no_grad()
def retrieval_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, data: SceneSet, n: int = 512) -> float:
    """Top-1 of image -> caption among n scenes of distinct content."""
    index = torch.tensor(list({scene: i for i, scene in enumerate(data.scenes)}.values())[:n])
    captions = data.captions(index, np.random.default_rng(0))
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    logits = model(pixel_values=data.pixels(index), **tokens).logits_per_image
    return (logits.argmax(1) == torch.arange(len(index))).float().mean().item()


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """A standard transformers CLIP folder (model, processor)."""
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=image_processor(), tokenizer=tokenizer).save_pretrained(folder)
