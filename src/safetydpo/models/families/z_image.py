"""Z-Image: a transformer of one stream, in which image and text tokens share every layer; its text encoder is a Qwen3.

The network counts time from noise (0) to image (1) and predicts x_0 - noise; diffusers' pipeline turns both round.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from safetydpo.config.model import Model
from safetydpo.models.families.family import Call, Condition, Family, Readers, max_sequence_length, mean_of
from safetydpo.models.families.layouts import transformer_weights

ALIGNED = 32  # the network pads each caption to a multiple of this


class ZImage(Family):
    """Condition: encoder_hidden_states (b, longest prompt's tokens, d), and `lengths` (b,), of which each has."""

    conditions = ("encoder_hidden_states", "lengths")
    shape_keys = ("in_channels", "cap_feat_dim", "dim")
    one_shape = False

    def encode(self, pipeline: Any, prompts: Sequence[str], model: Model) -> Condition:
        encoded, _ = pipeline.encode_prompt(
            list(prompts),
            device=pipeline.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipeline, model),
        )
        return _condition([states.to(getattr(torch, model.dtype)) for states in encoded])

    def readers(self, pipeline: Any, model: Model) -> Readers:
        """The language model, which reads a prompt as a chat's message."""
        tokenizer, mark = pipeline.tokenizer, "\0"
        around = _chat(tokenizer, mark, tokenize=False).split(mark)
        start, end = (tokenizer(part).input_ids for part in around)
        return Readers([tokenizer], [pipeline.text_encoder], max_sequence_length(pipeline, model), start, end)

    def read(self, readers: Readers, ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros where no token is. A language model has no pooled embedding: here it is the mean over the tokens."""
        own = ids[0] != readers.tokenizers[0].pad_token_id
        used = own[:, : int(own.sum(1).max())]  # of the window, most is empty
        output = readers.encoders[0](ids[0][:, : used.shape[1]], attention_mask=used, output_hidden_states=True)
        hidden = output.hidden_states[-2] * used[..., None]
        return F.pad(hidden, (0, 0, 0, own.shape[1] - used.shape[1])), mean_of(hidden, used)

    def windows(self, pipeline: Any, model: Model, parts: Mapping[str, Any]) -> list[tuple[Any, int]]:
        around = _chat(pipeline.tokenizer, "", tokenize=True)["input_ids"]
        return [(pipeline.tokenizer, max_sequence_length(pipeline, model) - len(around))]

    def forward(
        self, network: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition, model: Model
    ) -> torch.Tensor:
        """Prompts of one padded length go together: nothing is padded to another's, so no row depends on its batch."""
        lengths = condition["lengths"].tolist()
        padded = [-(-length // ALIGNED) for length in lengths]
        rows, parts = [], []
        for size in dict.fromkeys(padded):
            same = [i for i, other in enumerate(padded) if other == size]
            captions = [condition["encoder_hidden_states"][i, : lengths[i]] for i in same]
            latents = [noisy_latents[i].unsqueeze(1) for i in same]
            parts += network(latents, (1000 - timesteps[same]) / 1000, captions, return_dict=False)[0]
            rows += same
        turned = torch.stack(parts).squeeze(2)[torch.tensor(rows).argsort()]
        return -turned

    def kohya_layouts(self, config: Any) -> tuple[str, ...]:
        return ("diffusers", "original")  # layers without a name of their own in the original layout have diffusers'

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        latents, timestep, captions = args
        return Call(
            torch.cat(latents, 1).transpose(0, 1), 1000 - timestep * 1000, _condition(captions), text_first=True
        )

    def answer(self, model_pred: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        return super().answer(list(-model_pred.unsqueeze(2)), kwargs)  # type: ignore[arg-type]

    def text_width(self, config: Any) -> int:
        return config["cap_feat_dim"]

    def render_options(self, model: Model) -> dict[str, Any]:
        # its pipeline's scale is what is added to the text's prediction: 0 turns it off
        return super().render_options(model) | {"guidance_scale": model.guidance_scale - 1}

    def starting_latents(self, noise: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        del dtype  # its pipeline steps in float32, whatever the network's precision
        return noise.float()

    def noise(self, seed: int, shape: Sequence[int], model: Model) -> torch.Tensor:
        return super().noise(seed, shape, model.model_copy(update={"dtype": "float32"}))  # whatever the precision

    def native_size(self, pipeline: Any) -> tuple[int, int] | None:
        return 1024, 1024

    def checkpoint(self, pipeline: Any) -> dict[str, torch.Tensor]:
        """The transformer alone, as it is published: diffusers reads no other part beside it."""
        return transformer_weights(pipeline.transformer)


def _chat(tokenizer: Any, prompt: str, tokenize: bool) -> Any:
    """A prompt as the pipeline lets the text encoder read it."""
    chat = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(chat, tokenize=tokenize, add_generation_prompt=True, enable_thinking=True)


def _condition(captions: Sequence[torch.Tensor]) -> Condition:
    """Of one tensor (tokens, d) a prompt."""
    lengths = torch.tensor([len(states) for states in captions], device=captions[0].device)
    return {"encoder_hidden_states": pad_sequence(list(captions), batch_first=True), "lengths": lengths}
