"""The tables of docs/models.md: which families there are and what each does, from the registries."""

from safetydpo.attacks.registry import BUDGETED
from safetydpo.methods.registry import KINDS
from safetydpo.models.families.registry import FAMILIES

BEGIN, END = "<!-- from the registries, by make docs -->", "<!-- so far -->"


def _row(head: str, cells: list[str]) -> str:
    return f"| {head} | {' | '.join(cells)} |"


def _facts() -> list[str]:
    return [
        _row("", [f"`{kind.name}`" for kind in FAMILIES]),
        "|---" * (1 + len(FAMILIES)) + "|",
        _row("models", [kind.models for kind in FAMILIES]),
        _row("what trains", [f"`{kind.component}`, a `{kind.network}`" for kind in FAMILIES]),
        _row("what it predicts", ["velocity (flow matching)" if kind.flow else "noise or v" for kind in FAMILIES]),
        _row("a LoRA sits on", [", ".join(f"`{target}`" for target in kind.targets) for kind in FAMILIES]),
        _row("its keys begin with", [f"`{kind.component}.`" for kind in FAMILIES]),
    ]


def _abilities() -> list[str]:
    rows, whys = [], dict[str, list[str]]()
    for name in (*[kind.name for kind in KINDS], *BUDGETED):
        rows.append(_row(f"`{name}`", ["no" if name in kind.refuses else "yes" for kind in FAMILIES]))
        for kind in FAMILIES:
            if name in kind.refuses:
                whys.setdefault(f"`{name}`: {kind.refuses[name]}", []).append(f"`{kind.name}`")
    return [*rows, "", *(f"- {what} ({', '.join(where)})." for what, where in whys.items())]


def model_docs(page: str) -> str:
    """The page, as Markdown, with the tables between its marks made anew."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return "\n".join([f"{before}{BEGIN}", "", *_facts(), *_abilities(), "", f"{END}{after}"])
