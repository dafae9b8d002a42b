"""Config of the judges: who looks at images, and by which rules their scores become verdicts."""

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from safetydpo.config.rules import Rule, Score, parse, scores_in, thresholds
from safetydpo.config.server import ChatServer
from safetydpo.config.types import Name, OneOf, Section, UserPath
from safetydpo.judges.registry import CONVENTIONS, JUDGES, Kind

# Columns of a scores file that are no judge's, and words of rules: no judge may be called so.
RESERVED = ("prompt", "category", "kind", "seed", "embedding", "features", "attributes", "flagged", "and", "or", "not")
# Keys of an entry of the panel that only some kinds of judges have.
OWN_KEYS = ("id", "path", "unsafe_labels", "policies", "policy", "server")


class Judge(Section):
    """One that looks at every image. Its scores are kept as they are; `verdicts` say what they mean."""

    judge: Annotated[str, OneOf(JUDGES)] = Field(
        description="Its kind; nudenet: extra `nudenet`, whose licence is the AGPL"
    )
    name: Name = Field("", description="Its name in rules and tables; by default its kind")
    id: UserPath | None = Field(
        None,
        description="Model folder or hub id: the CLIP of q16 and clip-heads, the model of image-classifier, "
        "shieldgemma2 and llavaguard",
    )
    path: UserPath | None = Field(
        None,
        description="q16: tuned prompts (2, d), safetensors, the published prompts.p or a .pt; clip-heads: folder of "
        "heads, <head>.pt or .safetensors; demo: folder of the detector's weights",
    )
    unsafe_labels: list[str] = Field(
        default_factory=list, description="image-classifier: its labels whose probabilities add up to its score"
    )
    policies: dict[str, str] = Field(
        default_factory=dict, description="shieldgemma2: name -> text of a policy; empty: its own three"
    )
    policy: UserPath | None = Field(
        None, description="vlm, llavaguard: a file that says what is unsafe; llavaguard: null for its own"
    )
    server: ChatServer | None = Field(None, description="vlm: the server that is asked")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "judge" not in values:
            return values
        return values | {"name": values.get("name") or values["judge"]}

    @model_validator(mode="after")
    def _has_its_keys(self) -> "Judge":
        given = [key for key in OWN_KEYS if getattr(self, key)]
        if missing := [key for key in self.kind.needs if key not in given]:
            raise ValueError(f"a {self.judge} judge needs {' and '.join(f'`{key}`' for key in missing)}")
        if self.name in RESERVED or self.name.replace("-", "").isdigit():
            raise ValueError(f"no judge can be called `{self.name}`, which rules or scores files use otherwise")
        if any(not policy.strip() for policy in self.policies):
            raise ValueError("a policy needs a name")
        if surplus := [key for key in given if key not in (*self.kind.needs, *self.kind.takes)]:
            raise ValueError(f"a {self.judge} judge has no `{surplus[0]}`")
        return self

    @property
    def kind(self) -> Kind:
        """What all judges of its kind have in common."""
        return JUDGES[self.judge]


class Verdict(Section):
    """When an image is called unsafe."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+([-.][a-z0-9]+)*$", max_length=60)] = Field(
        description=f"Name in tables; without `rule` a published convention: {', '.join(CONVENTIONS)}"
    )
    rule: str | None = Field(
        None,
        description="Scores against numbers, with `or`, `and`, `not`: `q16 > 0.5 or nudenet[*_EXPOSED] > 0`; of "
        "several labels the largest score counts, `*` stands for any letters",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _can_be_read(self) -> "Verdict":
        if self.rule is None and self.name not in CONVENTIONS:
            raise ValueError(f"no convention `{self.name}`: give a `rule`, or one of {', '.join(CONVENTIONS)}")
        if self.rule is not None and self.name in CONVENTIONS:
            raise ValueError(f"`{self.name}` is a published convention: call a rule of your own otherwise")
        try:
            found = list(thresholds(parse(self.text)))
        except ValueError as error:
            raise ValueError(f"the rule `{self.text}` of {self.name} cannot be read: {error}") from None
        if beyond := next((number for _, number in found if number > 1), None):
            raise ValueError(f"the rule `{self.text}` of {self.name} has {beyond:g}, and scores are from 0 to 1")
        return self

    @property
    def text(self) -> str:
        """The rule as it is written."""
        return CONVENTIONS[self.name] if self.rule is None else self.rule

    @property
    def parsed(self) -> Rule:
        """The rule to be applied."""
        return parse(self.text)

    @property
    def judges(self) -> list[str]:
        """Names of the judges that the rule asks, each once."""
        return list(dict.fromkeys(score.judge for score in scores_in(self.parsed)))


class Looks(Section):
    """Who looks at images, and what measures similarity to the prompt: what scores depend on."""

    panel: list[Judge] = Field(description="Who looks")
    clip_score: UserPath = Field(description="CLIP folder or hub id for CLIPScore")
    features: Literal["clip", "inception", "detector"] = Field(
        "clip",
        description="Features of FID and KID: the CLIP of CLIPScore, Inception (those of published values, which are "
        "to real images; extra `fid`), or the demo detector's",
    )
    inception_path: UserPath | None = Field(
        None, description="File of Inception's weights, for machines without a network; null: downloaded at first use"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of the local judges; in bfloat16, what is in doubt is seen again in float32"
    )

    @model_validator(mode="after")
    def _has_features(self) -> "Looks":
        if self.features == "detector" and not any(judge.kind.features for judge in self.panel):
            having = " and ".join(name for name, kind in JUDGES.items() if kind.features)
            raise ValueError(f"features: only a {having} judge has any; use clip or inception")
        return self

    def judge(self, name: str) -> Judge:
        """The judge of that name."""
        return next(judge for judge in self.panel if judge.name == name)

    @property
    def sees_categories(self) -> bool:
        """Whether a judge says of which category an image is."""
        return any(judge.kind.categories for judge in self.panel)

    def measuring(self) -> "Looks":
        """The section without the judges that have no features: they need not look at people's images."""
        panel = [judge for judge in self.panel if judge.kind.features and self.features == "detector"]
        return self.model_copy(update={"panel": panel})

    @property
    def copied(self) -> list[str]:
        """Names of the judges of whose pickles the run keeps a copy."""
        return [judge.name for judge in self.panel if judge.kind.reader]

    @property
    def user_files(self) -> list[str]:
        """Files of the user that scores depend on."""
        paths = [path for judge in self.panel for path in (judge.path, judge.policy)] + [self.inception_path]
        return [path for path in paths if path]


class Judges(Looks):
    """Who looks at images, what counts as inappropriate, and what measures similarity to the prompt."""

    verdicts: list[Verdict] = Field(
        min_length=1,
        description="Rules over the panel's scores, each an IP of its own; tuning and attacks go by the first. The "
        "name alone of a published convention will do",
    )
    ip: str | None = Field(None, description="The verdict that is IP in the main tables; null: the first")

    @model_validator(mode="after")
    def _rules_ask_the_panel(self) -> "Judges":
        for verdict in self.verdicts:
            for score in scores_in(verdict.parsed):
                if fault := self._fault(score):
                    raise ValueError(f"verdict `{verdict.name}` ({verdict.text}): {fault}")
        if self.ip and self.ip not in [verdict.name for verdict in self.verdicts]:
            raise ValueError(f"ip: no verdict `{self.ip}`; there are {', '.join(v.name for v in self.verdicts)}")
        return self

    def _fault(self, score: Score) -> str:
        """What is wrong with a score of a rule, as far as is known without the judges' models; "" if nothing."""
        names = [judge.name for judge in self.panel]
        if score.judge not in names:
            return f"no judge `{score.judge}` in judges.panel; there are {', '.join(names)}"
        kind = self.judge(score.judge).kind
        if not score.labels:
            return "" if kind.number else f"{score.judge} has no score of its own: name its labels, {score.judge}[...]"
        return "" if kind.labels is None else unknown_label(score, kind.labels)

    @property
    def acting(self) -> Verdict:
        """The verdict that tuning and attacks go by."""
        return self.verdicts[0]

    @property
    def headline(self) -> Verdict:
        """The verdict that is IP."""
        return next((v for v in self.verdicts if v.name == self.ip), self.verdicts[0])

    def looks(self) -> Looks:
        """The section without its verdicts."""
        return Looks(**{name: getattr(self, name) for name in Looks.model_fields})

    def to_act(self) -> "Judges":
        """The section that tuning and attacks need: the first verdict, and who it asks or who knows categories."""
        panel = [judge for judge in self.panel if judge.name in self.acting.judges or judge.kind.categories]
        features = "clip" if self.features == "inception" else self.features
        changes = {"panel": panel, "verdicts": self.verdicts[:1], "ip": None, "features": features}
        return self.model_copy(update=changes | {"inception_path": None})


def unknown_label(score: Score, labels: tuple[str, ...]) -> str:
    """What is wrong with the labels of a score; "" if each is one that its judge has, or several."""
    for label in score.labels:
        if not any(fnmatchcase(known, label) for known in labels):
            there = f"it has {', '.join(labels)}" if labels else "it has a score alone"
            return f"{score.judge} has no label `{label}`; {there}"
    return ""
