"""What makes Snakemake redo a stage, besides its config: the version of its code; and keys that redo nothing."""

from typing import Any

# Raise a stage's number when its code changes what it writes: its outputs, and what follows, are then redone.
STAGE_VERSION = {
    "model": 2,
    "prompts": 4,
    "benchmark": 7,
    "render": 1,
    "features": 4,
    "train": 5,
    "merge": 3,
    "tune": 7,
    "baseline": 2,
    "attack": 3,
    "harden": 1,
    "score": 4,
    "metrics": 3,
    "report": 5,
    "export": 1,
}
SERVER_KEYS = {
    "base_url",
    "api_key_env",
    "concurrency",
    "timeout",
    "retries",
    "requests_per_minute",
    "tokens_per_minute",
    "prices",
}
# Keys that change no result, by section: a change of them redoes nothing.
MACHINE_KEYS: dict[str, Any] = {
    "model": {"batch_size", "compile", "device"},
    "prompts": {"llm": SERVER_KEYS},
    # answers are kept by model, settings and image; a spent budget ends a job
    "judges": {"panel": {"__all__": {"server": SERVER_KEYS | {"token_budget"}}}},
    "train": {"checkpoint_every", "cuda_graphs", "tensorboard"},
    "attacks": {"together"},
}
