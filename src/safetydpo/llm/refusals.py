"""Why a server gave no answer: one place that reads the errors of all services, and says what each is."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

# What is to be done about an error. Ends of a run: `key` (refused), `credit` (none left), `model` (not there) and
# `never` (nothing that the server would take). Of one request: `refusal` (the service's filter), `context` (too long
# for it), `malformed` (the model wrote no JSON, says the service), `again` (later). Of all that ask so: `form` (no such
# structured output), `bound` (a schema, but not with this keyword).
Kind = Literal["again", "bound", "context", "credit", "form", "key", "malformed", "model", "never", "refusal"]

_SAYING = {"detail", "details", "error", "errors", "message", "msg", "raw", "reason", "reasons", "title"}
_SAYING |= {"error_description", "error_message", "error_msg", "status_msg"}
_CODES = {"block_reason", "blockreason", "code", "error_code", "error_type", "param", "status", "status_code", "type"}
_ECHOES = {"failed_generation", "flagged_input", "input", "messages"}  # the request or an answer, not about it
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^<>]*>", re.IGNORECASE | re.DOTALL)
LONGEST = 10_000  # characters of an error's words that are looked at


class Said(NamedTuple):
    """What an error says: words for people, and the codes beside them, in small letters."""

    words: str
    codes: frozenset[str] = frozenset()


def said_in(body: str) -> Said:
    """The words and codes of an error's body, be it JSON of any shape, a web page or a text."""
    try:
        value = json.loads(body)
        parts = list(_parts(value))
    except (ValueError, RecursionError):
        body = body[:LONGEST]
        title = _TITLE.search(body)
        text = title[1] if title and title[1].strip() else body
        return Said(" ".join(html.unescape(_MARKUP.sub(" ", text)).split()))
    words = dict.fromkeys(text for name, text in parts if name in _SAYING)
    codes = frozenset(text.lower() for name, text in parts if name in _CODES)
    return Said(" ".join(" ".join(words or sorted(codes) or [body]).split())[:LONGEST], codes)


def _parts(value: Any, name: str = "message") -> Iterator[tuple[str, str]]:
    """(key, text) of every text and number in a JSON value; FastAPI's `loc` goes before its message."""
    if isinstance(value, dict):
        if isinstance(value.get("loc"), list):
            yield "message", f"{'.'.join(map(str, value['loc']))}:"
        for key, part in value.items():
            if key.lower() not in _ECHOES:
                yield from _parts(part, key.lower())
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part, name)
    elif isinstance(value, str) and value.lstrip().startswith("{"):  # another service's error, in a text
        try:
            yield from _parts(json.loads(value), name)
        except ValueError:
            yield name, value
    elif isinstance(value, str | int) and not isinstance(value, bool):
        yield name, str(value)


def error_in(completion: Any) -> tuple[int, Said] | None:
    """The status that an error would have had, which came with status 200 instead of an answer; None where none did."""
    if not isinstance(completion, dict) or completion.get("choices"):
        return None
    base = completion.get("base_resp")
    failed = isinstance(base, dict) and base.get("status_code")
    if not failed and not any(completion.get(name) for name in ("error", "detail", "message", "msg", "promptFeedback")):
        return None
    said = said_in(json.dumps(completion))
    codes = (int(code) for code in said.codes if re.fullmatch("[45][0-9][0-9]", code))
    return next(codes, 500), said


_CREDIT = re.compile(
    r"insufficient[ _](quota|balance|funds|credits?)|exceeded_current_quota|(credit|account) balance|balance is"
    r"|\b(no|any|enough|more) (free )?credits\b|billing_(hard|not)|arrear|overdue|freetieronly|code:(1008|1113)\b"
    r"|余额|欠费"
)
_MALFORMED = re.compile(r"json_validate_failed|failed to (generate|validate) json")
_CONTEXT = re.compile(
    r"context[ _]?(length|size|window)|exceed_context|model token limit|\b(prompt|input)( token)?( length)? (is )?too "
    r"(long|large|big)|length of input|input length should|reduce the length|too many (input )?tokens"
    r"|max_new_tokens`? must be|string_(above_max_length|too_long)|token_limit_exceeded|超长|code:(1039|1261)\b"
)
_REFUSAL = re.compile(  # what is said of an account is not said of a prompt
    r"\A(?!.*(?:your (?:account|organi[sz]ation|api key)|账户|账号)).*(?:"
    r"content[ _-]?(?:(?:exists )?risk|filter|polic|management polic|moderation|safety|violat|is not allowed)"
    r"|responsible ?ai|data_?inspection|inappropriate content|invalid_prompt|\bflagged\b|moderation|high risk"
    r"|usage (?:polic|guideline)|safety (?:system|setting|filter|guideline|reason|block|check)|code:safety\b"
    r"|prohibited[ _](?:content|use)|blocklist|(?<!case[ -])sensitive|censorship|guardrail|unsafe content"
    r"|敏感|不安全|安全策略|合规|code:(?:1026|1027|1300|1301)\b)",
    re.DOTALL,
)
_BOUND = re.compile(
    r"m(?:in|ax)(?:items|length)\b|number of repetitions"
    r"|\A(?=.*schema)(?!.*extra inputs are not permitted).*\bnot permitted\b",
    re.DOTALL,
)
_FORM = re.compile(
    r"response[_ ]?format|json_?schema|json_object|json mode|\bschema\b|structured[ _]?output|\bguided|grammar"
    r"|support(ing)? .*requested parameters|handle the requested parameters"
)
_MODEL = re.compile(
    r"model[ _]?not[ _]?(found|exist|available)|model\b.{0,80}?((does not|doesn.t) exist|not found|is not available)"
    r"|(invalid|unknown|no such)[ _]model|not a valid model|deploymentnotfound|模型不存在|code:1211\b"
)
_ALL, _OF_FORMS = frozenset(range(400, 600)), frozenset({400, 404, 405, 415, 422, 500, 501})
# The first line whose statuses have the status, and whose pattern occurs among codes and words, says what it is.
_RULES: tuple[tuple[Kind, frozenset[int], re.Pattern[str] | None], ...] = (
    ("key", frozenset({401}), None),
    ("credit", frozenset({402}), None),
    ("credit", _ALL, _CREDIT),
    ("again", frozenset({429}), None),
    ("malformed", _ALL, _MALFORMED),
    ("context", frozenset({413}), None),
    ("context", _ALL, _CONTEXT),
    ("refusal", frozenset({451}), None),
    ("refusal", _ALL, _REFUSAL),
    ("bound", _OF_FORMS, _BOUND),
    ("form", _OF_FORMS, _FORM),
    ("model", frozenset({404}), None),
    ("model", _ALL - frozenset(range(500, 600)), _MODEL),
    ("key", frozenset({403}), None),
    ("again", frozenset({408, 409, 425, *range(500, 600)}), None),
)


def kind_of(status: int, said: Said) -> Kind:
    """What an error with an HTTP status is."""
    text = " ".join([*(f"code:{code}" for code in sorted(said.codes)), said.words.lower()])
    for kind, statuses, pattern in _RULES:
        if status in statuses and (pattern is None or pattern.search(text)):
            return kind
    return "never"
