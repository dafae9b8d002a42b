"""What makes Snakemake redo a stage, besides its config: the version of its code; and keys that redo nothing."""

from typing import Any

# Raise a stage's number when its code changes what it writes: its outputs, and what follows, are then redone.
STAGE_VERSION = {
    "model": 1,
    "prompts": 3,
    "benchmark": 5,
    "render": 1,
    "features": 3,
    "train": 3,
    "merge": 2,
    "tune": 4,
    "baseline": 2,
    "attack": 2,
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
