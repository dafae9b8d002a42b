"""The demo's judges, and small random models of every class that judges are of."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DEMO_JUDGES, demo_tokenizer
from tokenizers import pre_tokenizers
from transformers import (
    CLIPModel,
    Gemma3ImageProcessorPil,
    GemmaTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Qwen2Tokenizer,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
)

from safetydpo.config.judges import Judge, Judges, Looks
from safetydpo.demo.making.clip import clip_config, save_clip
from safetydpo.judges.clip import ClipEyes
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.guards import LlavaGuard
from safetydpo.judges.judge import Given
from safetydpo.running.devices import device_of

CPU = torch.device("cpu")
GIVEN = Given(CPU, "float32", lambda name: ClipEyes(name, CPU), own=False, journals=Path())
VISION = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "max_position_embeddings": 4096}


@pytest.fixture(scope="session")
def eyes():
    """The judges of the default config."""
    return Eyes(Judges(**DEMO_JUDGES), device_of("cpu"))


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A random CLIP, two images, and prompts.p: row 0 (appropriate) is image one, row 1 (inappropriate) image two."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = demo_tokenizer()
    save_clip(CLIPModel(clip_config(tokenizer)), tokenizer, folder)
    rng = np.random.default_rng(0)
    images = [np.full((48, 48, 3), 20, np.uint8), rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)]
    clip = ClipEyes(str(folder), CPU)
    with torch.no_grad():
        embeddings = clip.images(images)
    # row 0 is nine times as long: only directions count
    (folder / "prompts.p").write_bytes(pickle.dumps(embeddings.numpy() * np.array([[9], [1]], np.float32)))
    return folder, images, clip, embeddings


@pytest.fixture(scope="session")
def given():
    """What a judge is made with."""
    return GIVEN


@pytest.fixture(scope="session")
def eyes_of(toy):
    """Eyes of entries of a panel, beside the random CLIP's CLIPScore."""

    def run(*panel, **changes):
        return Eyes(Looks(panel=list(panel), clip_score=str(toy[0]), **changes), CPU, own=False)

    return run


@pytest.fixture(scope="session")
def shieldgemma2(tmp_path_factory):
    """Folder of a random ShieldGemma 2 that reads letters and sees 4 tokens of an image."""
    folder = tmp_path_factory.mktemp("shieldgemma2")
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    images = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    letters = [*map(chr, range(33, 127)), "\n", "▁", "Yes", "No"]
    vocab = {token: i for i, token in enumerate([*marks, *images.values(), *letters])}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[], extra_special_tokens=images)
    config = ShieldGemma2Config(
        text_config=TEXT
        | {"model_type": "gemma3_text", "vocab_size": len(vocab), "head_dim": 16, "sliding_window": 1024},
        vision_config=VISION,
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        yes_token_index=vocab["Yes"],
        no_token_index=vocab["No"],
    )
    torch.manual_seed(0)
    model = ShieldGemma2ForImageClassification(config)
    _louder(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Gemma3ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    said = "{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text }}{% endif %}"
    turn = f"<start_of_turn>user\n{{% for c in m.content %}}{said}{{% endfor %}}<end_of_turn>\n"
    _processor(folder, "ShieldGemma2Processor", f"{{% for m in messages %}}{turn}{{% endfor %}}", image_seq_length=4)
    return folder


# What the random LlavaGuard says to its three images.
ANSWERS = (
    '{"rating": "Unsafe", "category": "O2: Violence, Harm, or Cruelty", "rationale": "It says {no}."}',
    'Here it is:\n```json\n{"rating": "Safe", "category": "NA: None applying", "rationale": ""}\n```',
    "I see a picture.",
)


@pytest.fixture(scope="session")
def llavaguard(tmp_path_factory):
    """Folder of a random LlavaGuard, and three images of different sizes, to which it gives ANSWERS."""
    folder = tmp_path_factory.mktemp("llavaguard")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = {"image_token": "<image>", "video_token": "<video>"}
    vocab = {
        token: i for i, token in enumerate([*letters, "<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks.values()])
    }
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], eos_token="<|im_end|>", extra_special_tokens=marks)
    tokenizer.add_tokens(list(ANSWERS))
    pins = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = LlavaOnevisionConfig(
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer), "tie_word_embeddings": False},
        vision_config=VISION | {"vision_use_head": False},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pins,
    )
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    _louder(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=pins).save_pretrained(folder)
    said = "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
    turn = f"<|im_start|>{{{{ m.role }}}} {{% for c in m.content %}}{said}{{% endfor %}}<|im_end|>\n"
    _processor(
        folder,
        "LlavaOnevisionProcessor",
        f"{{% for m in messages %}}{turn}{{% endfor %}}<|im_start|>assistant",
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        image_token="<image>",
        video_token="<video>",
    )
    rng = np.random.default_rng(1)
    images = [np.full((32, 64, 3), 255, np.uint8), np.zeros((48, 40, 3), np.uint8)]
    images.append(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    _teach(model, LlavaGuard(Judge(judge="llavaguard", id=str(folder)), GIVEN), images, tokenizer)
    model.save_pretrained(folder)
    return folder, images


@torch.no_grad()
def _teach(model, judge, images, tokenizer):
    """Set the last layer so that the i-th image gets the i-th answer, one token, and then the end."""
    seen, wanted = [], []
    for image, answer in zip(images, ANSWERS, strict=True):
        asked = judge.processor(images=[image], text=[judge.question], return_tensors="pt")
        said = torch.tensor([[tokenizer.convert_tokens_to_ids(answer)]])
        for tokens in (asked.input_ids, torch.cat([asked.input_ids, said], 1)):
            asked["input_ids"], asked["attention_mask"] = tokens, torch.ones_like(tokens)
            seen.append(model(**asked, output_hidden_states=True).hidden_states[-1][0, -1])
        wanted += [said[0, 0], torch.tensor(tokenizer.eos_token_id)]
    target = 10 * torch.nn.functional.one_hot(torch.stack(wanted), len(tokenizer)).double()
    model.lm_head.weight.copy_((torch.linalg.pinv(torch.stack(seen).double()) @ target).T)


@torch.no_grad()
def _louder(model):
    """Weights so large that what a random model is shown makes a difference; Gemma's projector begins at 0."""
    for name, values in model.named_parameters():
        if values.ndim > 1 and "embed_tokens" not in name:
            values.mul_(8) if values.any() else values.normal_()


def _processor(folder, kind, template, **settings):
    """What a model's folder of the hub has beside those of its tokenizer and image processor."""
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": kind, **settings}))
