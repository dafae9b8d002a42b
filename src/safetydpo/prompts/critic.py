"""Whether what a language model wrote is a pair: cheap checks first, then perhaps the model's own opinion."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from safetydpo.llm.question import Form, object_of
from safetydpo.llm.replies import Reply, json_values
from safetydpo.prompts.filters import concept_fault, echoes, pair_fault, prompt_fault, shares
from safetydpo.prompts.instructions import Instructions
from safetydpo.prompts.request import Request
from safetydpo.prompts.stream import Candidate

_WORD = re.compile(r"\W*(?:(yes|true)|no|false)\b", re.IGNORECASE)


def shows(reply: Reply, _plain: bool = False) -> tuple[bool, str]:
    """The verdict in a reply, as JSON or as its first word, and the fault where it has none."""
    if reply.fault:
        return False, reply.fault
    for value in json_values(reply.text):
        if isinstance(value, dict) and isinstance(value.get("shows"), bool):
            return value["shows"], ""
    word = _WORD.match(reply.text)
    return bool(word and word[1]), "" if word else "malformed"


SHOWS = Form("verdict", object_of({"shows": {"type": "boolean"}}), shows)


class Answer(Protocol):
    """Asks the model by an instruction: its name, the request's, the form of the answer, the instruction's values."""

    async def __call__(self, name: str, key: str, form: Form[bool], **values: Any) -> tuple[bool, str]:
        """What it says, and the fault where that is nothing."""
        ...


class Critic:
    """Faults of prompts and pairs of a category, by prompts.filters. concepts: each with its words."""

    def __init__(
        self, request: Request, instructions: Instructions, concepts: Mapping[str, Sequence[str]], answer: Answer
    ) -> None:
        self.checks, self.fits, self.concepts, self.answer = request.config.checks, request.fits, concepts, answer
        # a safe prompt shows no other concept either
        self.words = [word for words in concepts.values() for word in words]
        self.instruction = {
            concept: "\n".join(instructions.bare(name, concept) for name in ("unsafe", "safe")) for concept in concepts
        }

    def fault_of_unsafe(self, pair: Candidate) -> str:
        """What is wrong with the unsafe prompt by itself; "" if nothing is."""
        prompt, words = pair.unsafe_prompt, self.concepts[pair.concept]
        fault = prompt_fault(prompt, self.checks, self.fits) or self._echo(pair.concept, prompt)
        return fault or concept_fault(words, prompt, self.checks)

    def _echo(self, concept: str, prompt: str) -> str:
        return "echo" if self.checks.noise and echoes(prompt, self.instruction[concept]) else ""

    async def fault_of_pair(self, pair: Candidate) -> tuple[str, str]:
        """What is wrong with the safe prompt as the counterpart of the unsafe one, and a detail; its shares go into
        the pair.
        """
        unsafe, safe = pair.unsafe_prompt, pair.safe_prompt
        pair.kept, pair.added = shares(unsafe, safe)
        fault = pair_fault(self.words, unsafe, safe, self.checks, self.fits)
        fault = fault or self._echo(pair.concept, safe)
        if fault or not self.checks.judge:
            return fault, f"kept {pair.kept:.2f}, added {pair.added:.2f}" if fault else ""
        verdicts = await asyncio.gather(*(self._judged(pair.concept, prompt) for prompt in (unsafe, safe)))
        if none := next((fault for _, fault in verdicts if fault), ""):
            return "judge", f"gave no verdict ({none})"
        match [verdict for verdict, _ in verdicts]:
            case [True, False]:
                return "", ""
            case [False, _]:
                return "judge", "sees no concept in the unsafe prompt"
        return "judge", "sees the concept in the safe prompt"

    async def _judged(self, concept: str, prompt: str) -> tuple[bool, str]:
        values = {"concept": concept, "count": 1, "prompt": prompt, "avoid": []}
        return await self.answer("judge", f"{concept}/{prompt}", SHOWS, **values)
