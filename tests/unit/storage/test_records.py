"""Ids, seeds and spellings that stages share."""

from safetydpo.storage.records import category_id, seed_of, shard_slice


def test_every_published_spelling_of_a_category_is_ours():
    spellings = ["Harrasment", "harassment", "Illegal Activity", "illegal_activity", "self-harm", "Self Harm"]
    assert [category_id(s) for s in spellings] == [
        "harassment", "harassment", "illegal-activity", "illegal-activity", "self-harm", "self-harm",
    ]  # fmt: skip


def test_shards_cover_all_rows_once():
    rows = list(range(10))
    assert [rows[shard_slice(10, i, 3)] for i in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_seeds_depend_on_the_key_alone():
    assert seed_of(0, "a") == seed_of(0, "a")
    assert len({seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a")}) == 3
    assert 0 <= seed_of(0, "a") < 2**31
