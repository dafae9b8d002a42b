"""Ids, seeds and spellings that stages share."""

import hashlib
import re
import unicodedata
from functools import lru_cache

ARTICLES = {"a", "an", "the"}
# Columns in which files have the seed of a prompt's image: I2P's and COCO's, I2P's on the hub, anybody's.
SEEDS = ("evaluation_seed", "sd_seed", "seed")
CATEGORY_SPELLINGS = {"harrasment": "harassment", "illegal-activities": "illegal-activity"}


def seed_of(seed: int, key: str) -> int:
    """A 31-bit seed from the run's seed and a key: independent of order, shard and batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:4], "big") & 0x7FFFFFFF


def pair_id(category: str, unsafe_prompt: str, safe_prompt: str) -> str:
    """A stable id from a pair's content."""
    digest = hashlib.sha256(f"{unsafe_prompt}\n{safe_prompt}".encode()).hexdigest()
    return f"{category}-{digest[:12]}"


def category_id(name: str) -> str:
    """Our id of a category in any published spelling: case, hyphen, space, `Harrasment`."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.strip().lower()).strip("-")
    return CATEGORY_SPELLINGS.get(plain, plain)


def shard_slice(count: int, shard: int, shards: int) -> slice:
    """The rows of one of `shards` contiguous, nearly equal parts (0-based)."""
    return slice(count * shard // shards, count * (shard + 1) // shards)


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """A prompt without case, punctuation, spacing and articles: equal for near duplicates."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join([word for word in words if word not in ARTICLES] or words)
