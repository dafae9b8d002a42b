"""Answers on disk, and what a kill left of them."""

import json

import pytest
from llm import lines, serving, told

from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal, spent_in, tokens_of
from safetydpo.llm.replies import Reply


def test_a_journal_whose_last_line_was_cut_goes_on(tmp_path):
    whole = told(serving(answer=lines), tmp_path, *"abcd")
    journal = tmp_path / "a.jsonl"
    for cut in (20, 1):  # in an answer, and before the end of its line alone
        journal.write_bytes(journal.read_bytes()[:-cut])
        server = serving(answer=lines)
        assert told(server, tmp_path, *"abcd") == whole
        assert len(server.requests) == 1


def test_damaged_lines_are_said_and_asked_again_and_harm_no_others(tmp_path, capsys):
    whole = told(serving(answer=lines), tmp_path, *"abcd")
    journal = tmp_path / "a.jsonl"
    written = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([written[0], b"\xff{broken\n", written[1][:30], b"\n", *written[2:]]))
    server = serving(answer=lines)
    assert told(server, tmp_path, *"abcd") == whole
    assert len(server.requests) == 1
    assert f"{journal}: no answer can be read in line 2, 3; what stood there is asked again" in capsys.readouterr().out
    assert told(serving(), tmp_path, *"abcd") == whole


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
def test_a_line_that_is_no_answer_is_named_and_skipped(tmp_path, capsys, line):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(ANSWER)}\n{line}\n", errors="surrogateescape")
    journal = Journal(path)
    assert "a.jsonl: no answer can be read in line 2; what stood there is asked again" in capsys.readouterr().out
    assert (journal.get(b"\0").text, journal.spent) == ("12345678", 11)  # type: ignore[union-attr]
    journal.close()
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
    third.renew()
    third.put(b"\3", Reply("three", "stop", False, 0, 0))
    second.renew()
    assert [second.get(key).text for key in (b"\1", b"\2", b"\3")] == ["one", "two", "three"]
    for journal in (first, second, third):
        journal.close()


def test_forms_and_lost_tries_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    journal.put(b"\1", Reply("one", "stop", False, 5, 6))
    assert (journal.form, journal.answered) == ("", True)
    journal.note_form("object")
    journal.put(b"\2", Reply("no", "content_filter", True, 0, 0))
    assert (journal.form, journal.answered) == ("object", False)  # a refusal says nothing of the form
    journal.note_lost(3, 4)
    again = Journal(path)
    assert (again.form, again.answered, again.lost) == (journal.form, journal.answered, journal.lost)
    assert (again.sent, again.written, again.spent) == (8, 10, 18)
    assert tokens_of(path) == (8, 10)
    assert spent_in(tmp_path) == 18
    again.put(b"\3", Reply("{}", "stop", False, 0, 0))
    assert again.answered
    for one in (journal, again):
        one.close()


def test_a_journal_of_before_knows_that_the_server_wants_plain_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"plain": true}\n')
    server = serving(answer=lines)
    assert told(server, tmp_path, "x")[0][1] == ""
    assert "response_format" not in server.requests[0]
