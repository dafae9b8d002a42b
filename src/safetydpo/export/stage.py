"""Stage: a method of a run as files that others use, with their card."""

from pathlib import Path
from pkgutil import resolve_name

from safetydpo.config.run import Config
from safetydpo.export.card import card
from safetydpo.export.folder import digests, refuse_others, write_facts
from safetydpo.export.registry import asked_for, refuse_family
from safetydpo.export.request import Asked, parts_of
from safetydpo.methods.opening import refuse
from safetydpo.models.index import Index
from safetydpo.storage.files import whole_folder


def export(
    config: Config,
    run: Path,
    name: str,
    form: str,
    out: Path,
    rank: int | None = None,
    dtype: str | None = None,
) -> str:
    """Write the method `name` of a run into the folder `out`, in a format; what was written, in words.

    rank: at which a LoRA is cut off; dtype: None is the precision that the run renders with, of LoRAs float32. Raises
    SafetyDPOError where the method has no weights, the run is not finished, the format cannot be had of the model, or
    `out` holds anything but an export; `out` then is as it was.
    """
    method, wanted = asked_for(name, form, rank)
    weights, scale = parts_of(config, run, method)
    refuse_others(out)
    refuse(name, config.model)
    refuse_family(wanted, Index(config.model).family.kind, config.model.id)
    asked = Asked(config, run, method, weights, scale, rank, dtype)
    made = resolve_name(f"safetydpo.export.{wanted.opens}")(asked)
    with whole_folder(out) as folder:
        made.save(folder)
        text = card(asked, wanted, made, digests(folder))
        (folder / "README.md").write_text(text, encoding="utf-8")
        write_facts(folder, asked.header, form)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    tuned = f", scale {scale:g}" if method.kind.tuned else ""
    return "\n".join([f"{out}: {wanted.what}, {name}{tuned}, {size:.1f} MB", *made.notes])
