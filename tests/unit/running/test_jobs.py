"""What a job is given by its rule."""

from types import SimpleNamespace

from safetydpo.running.jobs import scale_of
from safetydpo.storage.files import write_text


def test_a_method_that_is_not_tuned_has_scale_1(tmp_path):
    write_text('{"scale": 0.75}\n', tmp_path / "scale.json")
    assert scale_of(SimpleNamespace(input={})) == 1.0
    assert scale_of(SimpleNamespace(input={"scale": tmp_path / "scale.json"})) == 0.75
