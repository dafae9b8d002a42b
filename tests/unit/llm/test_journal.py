"""Answers on disk, and what a kill left of them."""

import pytest
from llm import prompts_of, serving, write

from safetydpo.errors import SafetyDPOError


def test_a_journal_whose_last_line_was_cut_goes_on(tmp_path):
    write(tmp_path, prompts_of(serving()))
    journal = tmp_path / "journal/violence.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    server = serving()
    pairs, _, _ = write(tmp_path, prompts_of(server))
    assert (len(pairs), len(server.requests)) == (4, 1)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    with pytest.raises(SafetyDPOError, match=r"violence\.jsonl is damaged: delete it"):
        write(tmp_path, prompts_of(server))
