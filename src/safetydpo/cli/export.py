"""`safetydpo export`: a method of a finished run as files that others use."""

import argparse
from pathlib import Path

from safetydpo.cli.flags import whole_number
from safetydpo.export.registry import FORMATS, asked_for


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("run", type=Path, help="run folder, such as results/demo")
    parser.add_argument("--method", required=True, help="such as merged-co-merge, all-single, expert-<category>, esd-x")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder, or an earlier export's")
    formats = "; ".join(f"{name}: {form.what}" for name, form in FORMATS.items())
    parser.add_argument("--format", default="pipeline", choices=FORMATS, help=formats)
    parser.add_argument("--rank", type=whole_number("--rank"), help="cut a LoRA off at this rank")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision of the weights; by default that of model.dtype, of LoRAs float32",
    )
    parser.add_argument("--push", metavar="REPO", help="upload to this repository of the hub, made private where new")


def run(args: argparse.Namespace) -> str:
    """Export, upload where that is asked; what was done, in words."""
    asked_for(args.method, args.format, args.rank)  # said before torch is there
    from safetydpo.config.loading import read_config

    config = read_config(args.run / "config.yaml")
    from diffusers.utils.logging import set_verbosity_error

    from safetydpo.export.stage import export

    set_verbosity_error()  # that a CPU cannot render in 16 bits: it only writes them here
    if args.push:
        from safetydpo.export.push import push, refuse_push

        refuse_push(args.push)
        said = export(config, args.run, args.method, args.format, args.to, args.rank, args.dtype)
        return f"{said}\n{push(args.to, args.push)}"
    return export(config, args.run, args.method, args.format, args.to, args.rank, args.dtype)
