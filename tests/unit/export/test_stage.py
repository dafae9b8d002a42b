"""What an export takes the place of, and what it leaves where it fails."""

import errno
import json
import shutil

import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.export import lora
from safetydpo.export.stage import export

METHOD = "merged-co-merge"


def exported(run, out, form="lora", folder=None):
    return export(run.config, folder or run.folder, METHOD, form, out)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_may_be_made_again_over_itself_and_over_nothing_else(run_of, tmp_path):
    run, out = run_of("sd15"), tmp_path / "out"
    out.mkdir()  # an empty folder holds nothing that could be lost
    exported(run, out)
    exported(run, out)
    assert set(contents(out)) == {"README.md", "export.json", lora.FILE}
    exported(run, out, "kohya")  # of another format too: nothing is left of the first
    assert set(contents(out)) == {"README.md", "export.json", "lora.safetensors"}
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SafetyDPOError, match=r"out holds notes.txt, which no export wrote"):
        exported(run, out)
    (out / "export.json").unlink()
    with pytest.raises(SafetyDPOError, match=r"out exists and is no export, it holds README.md"):
        exported(run, out)
    with pytest.raises(SafetyDPOError, match=r"README.md is a file: give a folder"):
        exported(run, out / "README.md")
    assert (out / "notes.txt").read_text() == "mine"


def test_what_a_run_lacks_is_named_with_the_command_that_makes_it(run_of, tmp_path):
    run, folder = run_of("sd15"), tmp_path / "run"
    for path in (f"tuning/{METHOD}.json", "merged/co-merge/pytorch_lora_weights.safetensors"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run.folder, folder)
        (folder / path).unlink()
        with pytest.raises(
            SafetyDPOError, match=rf"is not finished, .*{path} is missing: `snakemake --cores all .*{path}`"
        ):
            exported(run, tmp_path / "out", folder=folder)
    with pytest.raises(SafetyDPOError, match="has no method merged-nothing: there are base, "):
        export(run.config, run.folder, "merged-nothing", "lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_what_was_there(run_of, tmp_path, monkeypatch):
    run, out = run_of("sd15"), tmp_path / "out"
    exported(run, out)
    before = contents(tmp_path)

    def full(tensors, path, header):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lora, "write_safetensors", full)
    with pytest.raises(SafetyDPOError, match=r"Cannot write .*out: No space left on device. Free space"):
        exported(run, out)
    assert contents(tmp_path) == before
    with pytest.raises(SafetyDPOError, match="Cannot write"):
        exported(run, tmp_path / "new/out")
    assert not list((tmp_path / "new").iterdir())


def test_the_facts_tell_every_file_by_its_hash(run_of, tmp_path):
    run, out = run_of("sd15"), tmp_path / "out"
    exported(run, out, "pipeline")
    facts = json.loads((out / "export.json").read_text())
    assert (facts["format"], facts["method"], facts["scale"]) == ("pipeline", METHOD, 1.5)
    assert set(facts["files"]) == {name for name in contents(out) if name != "export.json"}
    assert str(run.model.id) not in (out / "export.json").read_text() + (out / "README.md").read_text()
