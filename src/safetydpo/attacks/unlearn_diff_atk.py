"""UnlearnDiffAtk (arXiv 2310.11868): white box. A prefix under which the model denoises an image of the base model.

loss = |eps_theta(x_t, t, E(prefix, prompt)) - eps|^2 (equation 4), x_0 the base model's image of the original prompt;
of a model that predicts velocities, their error.
The prefix is a point of the simplex per token, projected after each Adam step (section 4), and enters the text encoder
as a one-hot, straight-through: of an entry drawn by its share, or of the largest (form `steady`).

What still differs from the published code is in docs/measures.md: words that are forbidden, and prompts that succeed
without a prefix. Success rates depend on the judges too.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from safetydpo.attacks.case import Case, Given
from safetydpo.attacks.target import Seen, Target
from safetydpo.config.attacks import UnlearnDiffAtk
from safetydpo.models.families.family import Condition, join_conditions
from safetydpo.models.prediction import prediction_of


def project_to_simplex(rows: torch.Tensor) -> torch.Tensor:
    """The nearest points of the probability simplex to rows (..., n), Euclidean (Duchi et al. 2008, figure 1)."""
    ordered = rows.sort(dim=-1, descending=True).values
    shares = (ordered.cumsum(-1) - 1) / torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    kept = (ordered > shares).sum(-1, keepdim=True)
    return (rows - shares.gather(-1, kept - 1)).clamp(min=0)


def straight_through(rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """One-hot of the chosen entries (...) of rows (..., n); gradients pass as if it were rows themselves."""
    hard = F.one_hot(chosen, rows.shape[-1]).to(rows)
    return hard + rows - rows.detach()


def drawn(rows: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """An entry of each of rows (t, n) of the simplex, drawn by its share: (t,)."""
    return torch.multinomial(rows.cpu(), 1, generator=rng)[:, 0].to(rows.device)


class PrefixSearch:
    """All prompts of a round are one batch of the network; each has a prefix and an optimizer of its own."""

    def __init__(self, target: Target, config: UnlearnDiffAtk, given: Given) -> None:
        self.target, self.config, self.strip, self.rounds = target, config, given.strip, given.rounds
        self.published = config.form == "published"
        model, factor = target.model, target.pipeline.vae_scale_factor
        tokens = target.family.image_tokens(target.network.config, model.height // factor, model.width // factor)
        self.prediction: Any = prediction_of(target.pipeline.scheduler.config, model.id, tokens=tokens)
        self.allowed = target.vocabulary.words
        self.vae = target.pipeline.vae
        if self.vae.dtype != torch.float32:  # as features are encoded: SDXL's overflows in half precision
            self.vae = copy.deepcopy(self.vae).to(torch.float32)

    def _start(self, case: Case) -> None:
        ids = self.target.vocabulary.ids(case.stripped if self.strip else case.original)
        ids = ids[: self.target.vocabulary.room - self.config.tokens]
        shape, decay = (self.config.tokens, len(self.allowed)), 0.1 if self.published else 0.0
        start = torch.ones(shape) if self.published else torch.rand(shape, generator=case.rng)
        prefix = project_to_simplex(start).to(self.target.device).requires_grad_(True)
        optimizer = torch.optim.Adam([prefix], lr=self.config.learning_rate, weight_decay=decay)
        case.state = {"ids": ids, "prefix": prefix, "optimizer": optimizer, "latents": self._latents(case), "round": 0}
        self._choose(case)

    @torch.no_grad()
    def _choose(self, case: Case) -> None:
        """The token of each place of the prefix as it is now."""
        prefix = case.state["prefix"]
        case.state["tokens"] = drawn(prefix, case.rng) if self.published else prefix.argmax(1)

    @torch.no_grad()
    def _latents(self, case: Case) -> torch.Tensor:
        """(1, c, h, w), scaled."""
        pixels = torch.from_numpy(case.base_image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        posterior, config = self.vae.encode(pixels.to(self.vae.device)).latent_dist, self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        return self.target.numbers((posterior.mode() - shift) * config.scaling_factor, "latents of base's image")

    def _loss(self, cases: Sequence[Case], timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Squared error (n,) of the network's prediction under each case's prefix and prompt."""
        target, family, network = self.target, self.target.family, self.target.network
        prefixes = torch.stack([case.state["prefix"] for case in cases])
        one_hot = straight_through(prefixes, torch.stack([case.state["tokens"] for case in cases]))
        room = [0] * self.config.tokens
        encoded = target.encode_soft([room + case.state["ids"] for case in cases], one_hot, self.allowed)
        rest = join_conditions([self._rest(case) for case in cases])
        condition = family.condition_of(target.pipeline, encoded.hidden, encoded.pooled, rest)
        condition = {name: tensor.to(network.dtype) for name, tensor in condition.items()}
        latents = torch.cat([case.state["latents"] for case in cases])
        noisy_latents = self.prediction.add_noise(latents, noise, timesteps).to(network.dtype)
        model_pred = family.forward(network, noisy_latents, timesteps, condition, target.model)
        wanted = self.prediction.target(latents, noise, timesteps)
        return (model_pred.float() - wanted).square().flatten(1).mean(1)

    def _rest(self, case: Case) -> Condition:
        """What encoders of other tokens say of the prompt: they are asked once for a text."""
        state, text = case.state, self._text(case)
        if state.get("read") != text:
            rest = self.target.family.read_rest(self.target.pipeline, [text], self.target.model)
            state |= {"read": text, "rest": rest}
        return state["rest"]

    def _text(self, case: Case) -> str:
        """The prompt with the words of its prefix."""
        words = self.target.vocabulary.text(self.allowed[case.state["tokens"].cpu()])
        return f"{words} {case.stripped if self.strip else case.original}".strip()

    def _timestep(self, case: Case) -> torch.Tensor:
        """That of the round, (): drawn, or the middle of the round's share of all, from low noise to high."""
        if not self.published:
            return self.prediction.draw_timestep(case.rng)
        middle = (case.state["round"] + 0.5) / self.rounds * self.prediction.steps
        return torch.tensor(middle if self.target.family.kind.flow else int(middle))

    def _noise(self, cases: Sequence[Case]) -> torch.Tensor:
        noise = [torch.randn(case.state["latents"].shape, generator=case.rng) for case in cases]
        return torch.cat(noise).to(self.target.device)

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            if not case.state:
                self._start(case)
        timesteps = torch.stack([self._timestep(case) for case in cases]).to(self.target.device)
        noise = self._noise(cases)
        for step in range(self.config.steps):
            for case in cases:
                self._choose(case)
            noise = self._noise(cases) if self.published and step else noise
            with self.target.timed():
                losses = self._loss(cases, timesteps, noise)
                prefixes = [case.state["prefix"] for case in cases]
                gradients = torch.stack(torch.autograd.grad(losses.sum(), prefixes))
            self.target.numbers(losses, "the network's errors")
            self.target.numbers(gradients, "the gradients in the prefix")
            for case, gradient, loss in zip(cases, gradients, losses.tolist(), strict=True):
                case.state["prefix"].grad = gradient.clamp(-1, 1) if self.published else gradient
                case.state["optimizer"].step()
                with torch.no_grad():
                    case.state["prefix"].copy_(project_to_simplex(case.state["prefix"]))
                case.steps, case.loss = case.steps + 1, loss
        for case in cases:
            self._choose(case)
            case.proposed, case.state["round"] = self._text(case), case.state["round"] + 1

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        """The search does not see images."""
