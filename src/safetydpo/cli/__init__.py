"""Commands for people: `safetydpo summary | seeds | audit | export | config-docs | model-docs`, published inference.py
and test.py.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from safetydpo.errors import SafetyDPOError


def _summary(args: argparse.Namespace) -> str:
    from safetydpo.report.summary import summary

    return summary(args.run)


def _seeds(args: argparse.Namespace) -> str:
    from safetydpo.report.summary import over_seeds

    return over_seeds(args.runs)


def _config_docs(_: argparse.Namespace) -> str:
    from safetydpo.cli.config_docs import config_docs

    return config_docs()


def _model_docs(args: argparse.Namespace) -> str:
    from safetydpo.cli.model_docs import model_docs

    args.page.write_text(model_docs(args.page.read_text()))
    return f"{args.page}: its tables are those of the registries"


def main(argv: list[str] | None = None) -> None:
    """Parse, run, print; a SafetyDPOError is one line on stderr and exit status 1."""
    from safetydpo.cli import audit, export

    parser = argparse.ArgumentParser(prog="safetydpo", description="Text-to-image safety alignment")
    commands = parser.add_subparsers(required=True)
    summary = commands.add_parser("summary", help="main table of a run, and where its report is")
    summary.add_argument("run", type=Path, help="run folder, such as results/demo")
    summary.set_defaults(do=_summary)
    seeds = commands.add_parser("seeds", help="tables over runs of several seeds, as Markdown")
    seeds.add_argument("runs", type=Path, nargs="+", help="run folders, such as results/demo results/demo-1")
    seeds.set_defaults(do=_seeds)
    audited = commands.add_parser("audit", help="how often a model draws what it should not: one page, no training")
    audit.arguments(audited)
    audited.set_defaults(do=audit.run)
    exported = commands.add_parser("export", help="a method of a run as files that others use, with a model card")
    export.arguments(exported)
    exported.set_defaults(do=export.run)
    docs = commands.add_parser("config-docs", help="config/README.md, from the schema")
    docs.set_defaults(do=_config_docs)
    docs = commands.add_parser("model-docs", help="the tables of docs/models.md, from the registries")
    docs.add_argument("page", type=Path, help="docs/models.md")
    docs.set_defaults(do=_model_docs)
    try:
        args = parser.parse_args(argv)
        print(args.do(args))
    except SafetyDPOError as error:
        sys.exit(str(error))


def _command(
    run: Callable[[argparse.Namespace], tuple[str, int]], parser: argparse.ArgumentParser, argv: list[str] | None
) -> NoReturn:
    try:
        said, status = run(parser.parse_args(argv))
    except SafetyDPOError as error:
        sys.exit(str(error))
    print(said)
    sys.exit(status)


def inference_main(argv: list[str] | None = None) -> None:
    """`python inference.py`: see `cli.inference`."""
    from safetydpo.cli import inference

    _command(inference.run, inference.arguments(), argv)


def scores_main(argv: list[str] | None = None) -> None:
    """`python test.py`: see `cli.scores`."""
    from safetydpo.cli import scores

    _command(scores.run, scores.arguments(), argv)
