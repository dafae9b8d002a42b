"""What makes Snakemake redo a stage, besides its config: the version of its code; and keys that redo nothing."""

from typing import Any

# Raise a stage's number when its code changes what it writes: its outputs, and what follows, are then redone.
STAGE_VERSION = {
    "model": 1,
    "prompts": 2,
    "benchmark": 4,
    "render": 1,
    "features": 2,
    "train": 2,
    "merge": 1,
    "tune": 3,
    "baseline": 1,
    "attack": 1,
    "score": 3,
    "metrics": 2,
    "report": 3,
}
# Keys that change no result, by section: a change of them redoes nothing.
MACHINE_KEYS: dict[str, Any] = {
    "model": {"batch_size", "device"},
    "prompts": {
        "llm": {
            "api_key_env",
            "concurrency",
            "timeout",
            "retries",
            "requests_per_minute",
            "tokens_per_minute",
            "prices",
        }
    },
    "train": {"checkpoint_every", "tensorboard"},
    "attacks": {"together"},
}
