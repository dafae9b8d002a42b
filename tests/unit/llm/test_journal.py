"""Answers on disk, and what a kill left of them."""

import json

import pytest
from llm import prompts_of, serving, write

from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal, tokens_of
from safetydpo.llm.replies import Reply


def test_a_journal_whose_last_line_was_cut_goes_on(tmp_path):
    write(tmp_path, prompts_of(serving()))
    journal = tmp_path / "journal/violence.jsonl"
    for cut in (20, 1):  # in an answer, and before the end of its line alone
        journal.write_bytes(journal.read_bytes()[:-cut])
        server = serving()
        pairs, _, _ = write(tmp_path, prompts_of(server))
        assert (len(pairs), len(server.requests)) == (4, 1)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    with pytest.raises(SafetyDPOError, match=r"violence\.jsonl is damaged: delete it"):
        write(tmp_path, prompts_of(server))


ANSWER = {"key": "00", "text": "12345678", "finish_reason": "stop", "refused": False, "sent": 5, "written": 6}


@pytest.mark.parametrize(
    "line",
    [
        "7",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        json.dumps({**ANSWER, "key": "no hex"}),
        json.dumps({**ANSWER, "key": None}),
        json.dumps({**ANSWER, "text": None}),
        json.dumps({"key": "00"}),
        "\udcff",
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(ANSWER)}\n{line}\n", errors="surrogateescape")
    with pytest.raises(SafetyDPOError, match=r"a\.jsonl is damaged: delete its line 2 \("):
        Journal(path)
    counted = 1 + ('"sent"' in line)  # what another category reads for the run's budget does not fail
    assert tokens_of(path) == (5 * counted, 6 * counted)


@pytest.mark.parametrize("count", [None, -1, "6", 2.5, True, 10**30])
def test_counts_that_are_none_are_estimated(tmp_path, count):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**ANSWER, "sent": count, "written": count}) + "\n")
    journal = Journal(path)
    reply = journal.get(b"\0")
    journal.close()
    assert reply is not None
    assert (reply.sent, reply.written) == tokens_of(path) == (0, 2)  # eight characters


def test_a_journal_that_cannot_be_opened_is_a_sentence(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(SafetyDPOError, match=r"Cannot open .*a\.jsonl, .*: Is a directory"):
        Journal(tmp_path / "a.jsonl")


def test_what_another_process_writes_is_read_on_and_only_the_writer_drops_a_line_that_is_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    first, second = Journal(path), Journal(path)
    first.renew()
    first.put(b"\1", Reply("one", "stop", False, 5, 6))
    with path.open("ab") as file:  # as a third process that is just writing
        file.write(b'{"key": "02"')
    third = Journal(path)
    assert [third.get(key) is None for key in (b"\1", b"\2")] == [False, True]
    assert path.read_bytes().endswith(b'{"key": "02"')
    second.renew()
    assert path.read_bytes().count(b"\n") == 1
    assert path.read_bytes().endswith(b"}\n")
    second.put(b"\2", Reply("two", "stop", False, 7, 8))
    third.renew()
    assert [third.get(key).text for key in (b"\1", b"\2")] == ["one", "two"]
    assert (third.sent, third.written) == tokens_of(path) == (12, 14)
    path.write_bytes(path.read_bytes() + b"[]\n")
    with pytest.raises(SafetyDPOError, match="delete its line 3"):
        third.renew()
    for journal in (first, second, third):
        journal.close()
