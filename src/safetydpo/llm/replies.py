"""What a server answered, and the list of texts in it."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")
_BROKEN = re.compile(r"^[^\S\n]*(?:```|[{\[<])", re.MULTILINE)  # code, JSON or a web page where lines of text were due
_OPENING = re.compile(r"[{\[]")
_LONE = re.compile("[\ud800-\udfff]")  # half of a character, which JSON can escape and no file can hold
_QUOTED = re.compile(r'^(["“\'])(.*)(["”\'])[,.]?$', re.DOTALL)
# Starts of JSON that are tried in a text: models write few that are none, and each may cost a look at the whole text.
STARTS = 200
FAILED = "server"

_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very |so )?sorry|i am sorry|sorry,|i can(no|['’])?t|i can not|i['’]m (not able|unable)"
    r"|i am (not able|unable)|i won['’]?t|i will not|i must decline|as an ai|unfortunately, i)\b",
    re.IGNORECASE,
)


class Reply(NamedTuple):
    """What the server answered, as far as it matters; of a request that failed, what it died of."""

    text: str
    finish_reason: str
    refused: bool
    sent: int
    written: int

    @property
    def fault(self) -> str:
        """Why the server gave no answer, of whatever worth; "" where it gave one."""
        if self.finish_reason == FAILED:
            return FAILED
        return "refusal" if self.refused or self.finish_reason == "content_filter" else ""


def reply_of(completion: Any, asked: int) -> Reply:
    """What matters of a completion; ValueError where the server sent something else, a web page say.

    asked: about as many tokens as the request has, where the server does not say.
    """
    if isinstance(completion, str):  # of no JSON content type
        completion = _parsed(completion)
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list):
        raise ValueError(f"no chat completion but {completion}")
    choice = _fields(choices[0] if choices else None)
    said, usage = _fields(choice.get("message")), _fields(completion.get("usage"))
    text, reason = _LONE.sub("\ufffd", str(said.get("content") or "")), choice.get("finish_reason")
    return Reply(
        text=text,
        finish_reason=reason if reason in ("stop", "length", "content_filter") else "other",
        refused=bool(said.get("refusal")),
        sent=tokens(usage.get("prompt_tokens"), asked),
        written=tokens(usage.get("completion_tokens"), len(text) // 4),
    )


def tokens(count: Any, guess: int) -> int:
    """Tokens as a server counts them; `guess` where it does not say."""
    return count if type(count) is int and 0 <= count < 2**40 else guess


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def texts_of(reply: Reply, key: str, plain: bool) -> tuple[list[str], str]:
    """The texts of a reply, and the fault when there are none ("" otherwise).

    JSON is found with prose around it; where the reply was asked for as plain text, one text a line will do.
    """
    if reply.fault:
        return [], reply.fault
    for value in json_values(reply.text):
        found = value.get(key) if isinstance(value, dict) else value
        if isinstance(found, list) and found and all(isinstance(text, str) for text in found):
            return [_LONE.sub("\ufffd", text.strip()) for text in found], ""
    if reply.finish_reason == "length":
        return [], "truncated"
    if refuses(reply.text):
        return [], "refusal"
    if plain and not _BROKEN.search(reply.text):
        lines = [_unquoted(_BULLET.sub("", line)) for line in reply.text.splitlines()]
        texts = [line for line in lines if line and not line.endswith(":")]
        return (texts, "") if texts else ([], "malformed")
    return [], "malformed"


def _unquoted(line: str) -> str:
    line = line.strip()
    match = _QUOTED.match(line)
    return match[2].strip() if match else line


def json_values(text: str) -> Iterator[Any]:
    """JSON objects and arrays in a text, wherever they begin."""
    decoder, start = json.JSONDecoder(), 0
    for _ in range(STARTS):
        match = _OPENING.search(text, start)
        if match is None:
            return
        try:
            value, start = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            start = match.start() + 1
        else:
            yield value


def refuses(text: str) -> bool:
    """Whether a text opens as a refusal does."""
    return bool(_REFUSAL.match(text))
