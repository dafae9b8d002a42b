"""That the judges can be loaded and the verdicts be told, said before anything is rendered or trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from safetydpo.config.judges import Looks, Verdict, unknown_label
from safetydpo.config.rules import scores_in
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.registry import JUDGES
from safetydpo.storage.files import read_json, write_safetensors, write_text


def check_judges(config: Looks, out: Path | str, journals: Path | str) -> None:
    """Load every judge from the user's files, have it look, and write what they are.

    Raises SafetyDPOError when one is not to be had or does not see, or its file is of another CLIP: before anything
    expensive.
    """
    import torch  # and transformers, which the other two jobs do without

    from safetydpo.judges.eyes import Eyes

    eyes = Eyes(config, torch.device("cpu"), own=False, journals=journals)
    eyes.check()
    judges = {name: {"labels": list(judge.labels), **judge.about} for name, judge in eyes.judges.items()}
    write_text(json.dumps({"judges": judges, "config": config.model_dump()}, indent=1) + "\n", out)


def copy_judge(kind: str, path: Path | str, out: Path | str) -> None:
    """Write what a judge's `path` holds as safetensors, so that pickles are read once."""
    read: Any = resolve_name(f"safetydpo.judges.{JUDGES[kind].reader}")
    write_safetensors(read(path), out, {"source": str(path)})


def check_verdicts(verdicts: Sequence[Verdict], judges: Path | str, out: Path | str) -> None:
    """Write the rules of the verdicts; SafetyDPOError where one names a label that its judge does not have."""
    known = read_json(judges)["judges"]
    for verdict in verdicts:
        for score in scores_in(verdict.parsed):
            if fault := unknown_label(score, tuple(known[score.judge]["labels"])):
                raise SafetyDPOError(f"judges.verdicts: `{verdict.name}` ({verdict.text}): {fault}.")
    write_text(json.dumps({verdict.name: verdict.text for verdict in verdicts}, indent=1) + "\n", out)
