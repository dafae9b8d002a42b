"""The rules of source `openai`: pairs through Snakemake and a chat server, and what an edit redoes."""

import os
import shutil

import pandas as pd
import pytest
from chat_server import ChatServer
from llm import prompts_of
from snakes import ROOT, Workdir

TARGET = "results/reduced/prompts/ring.parquet"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run folder with pairs of one category, its config changes, and the server."""
    work, server = Workdir(tmp_path_factory.mktemp("llm")), ChatServer().start()
    shutil.copytree(ROOT / "config/instructions", work.folder / "instructions")
    llm = {"instructions": "instructions", "concepts": "concepts", "concurrency": 4}
    prompts = prompts_of(server, pairs=6, window=None, llm=llm).model_dump()
    files = {"tune": {"scales": [1.0]}, "train": {"preserve": {"weight": 0}}, "merge": {"strategies": ["co-merge"]}}
    changes = {"prompts": prompts, "categories": [{"name": "ring", "concepts": ["odalo", "gumet"]}], **files}
    changes["evaluate"] = {
        "matrix": [{"methods": ["base", "expert-ring"], "benchmarks": ["test"]}],
        "fid_reference": None,
    }
    done = work.run(TARGET, changes=changes)
    assert done.returncode == 0, done.stdout
    yield work, changes, server, done.stdout
    server.stop()


def planned(work, changes, **llm):
    prompts = {**changes["prompts"], "llm": {**changes["prompts"]["llm"], **llm}}
    return set(work.planned({**changes, "prompts": prompts}))


def test_pairs_are_written_and_the_terminal_has_the_summary(written):
    work, _, _, said = written
    pairs = pd.read_parquet(work.folder / TARGET)
    assert pairs.concept.value_counts().to_dict() == {"odalo": 3, "gumet": 3}
    assert pairs.similarity.between(0, 1).all()
    assert "prompts: ring: 6 pairs of 2 concepts" in said
    log = (work.folder / "logs/reduced/prompts/ring.log").read_text()
    assert "tokens sent" in log
    assert "HTTP Request" not in log


def test_what_changes_no_answer_redoes_nothing(written):
    work, changes, _, _ = written
    machine = {"concurrency": 9, "timeout": 5.0, "base_url": "http://localhost:1/v1", "api_key_env": "OTHER_KEY"}
    quick = planned(work, changes, **machine, prices={"input": 1, "output": 1})
    assert not {"concepts", "prompts"} & quick
    assert "prompts" in planned(work, changes, temperature=0.5)
    assert "concepts" not in planned(work, changes, temperature=0.5)


def test_an_edited_instruction_or_concept_asks_anew_and_keeps_what_fits(written):
    work, changes, server, _ = written
    text = work.folder / "instructions/safe.txt"
    text.write_text(text.read_text() + "Be brief.\n")
    assert {"concepts", "prompts"} & planned(work, changes) == {"prompts"}
    before = len(server.requests)
    done = work.run(TARGET, changes=changes)
    assert done.returncode == 0, done.stdout
    assert len(server.requests) - before == 6  # the safe prompts; unsafe ones come from the journal
    concepts = work.folder / "results/reduced/concepts/ring.parquet"
    pd.DataFrame({"category": "ring", "concept": ["odalo", "zorin"], "source": "person"}).to_parquet(concepts)
    os.utime(concepts)
    assert {"concepts", "prompts"} & planned(work, changes) == {"prompts"}
    done = work.run(TARGET, changes=changes)
    assert done.returncode == 0, done.stdout
    assert set(pd.read_parquet(work.folder / TARGET).concept) == {"odalo", "zorin"}
    assert len(server.requests) - before == 6 + 1 + 3


def test_a_missing_key_is_one_sentence(written, monkeypatch):
    work, changes, _, _ = written
    monkeypatch.delenv("NO_KEY", raising=False)
    llm = {**changes["prompts"]["llm"], "api_key_env": "NO_KEY", "model": "other"}
    done = work.run(TARGET, changes={**changes, "prompts": {**changes["prompts"], "llm": llm}})
    assert done.returncode != 0
    assert "prompts: Environment variable NO_KEY is not set: export NO_KEY=..." in done.stdout
    assert "Traceback" not in done.stdout


def test_images_that_are_brought_are_read_and_not_rendered(tmp_path):
    changes = {"prompts": {"source": "folder", "path": "data", "pairs": 8}, "tune": {"scales": [1.0]}}
    changes |= {"train": {"preserve": {"weight": 0}}, "merge": {"strategies": ["co-merge"]}}
    changes["baselines"] = {"uce": {"retain": False}}
    plan = Workdir(tmp_path).planned(changes)
    assert plan["read_pairs"] == 4
    assert "render_pairs" not in plan
