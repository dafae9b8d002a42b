"""From the text of a reply to the list that was asked for."""

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

_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very |so )?sorry|i am sorry|sorry,|i can(no|['’])?t|i can not|i['’]m (not able|unable)"
    r"|i am (not able|unable)|i won['’]?t|i will not|i must decline|as an ai|unfortunately, i)\b",
    re.IGNORECASE,
)


class Reply(NamedTuple):
    """What the server answered, as far as it matters."""

    text: str
    finish_reason: str
    refused: bool
    sent: int
    written: int


def reply_of(completion: Any, message: str) -> Reply:
    """What matters of a completion; ValueError where the server sent something else, a web page say."""
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
        sent=tokens(usage.get("prompt_tokens"), message),
        written=tokens(usage.get("completion_tokens"), text),
    )


def tokens(count: Any, text: str) -> int:
    """The tokens of a text as a server counts them; about as many as it has, where the server does not say."""
    return count if type(count) is int and 0 <= count < 2**40 else len(text) // 4


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def schema(key: str) -> dict[str, Any]:
    """JSON schema of {key: [texts]}, as structured output wants it."""
    texts = {"type": "array", "items": {"type": "string"}}
    return {"type": "object", "properties": {key: texts}, "required": [key], "additionalProperties": False}


def texts_of(reply: Reply, key: str, plain: bool) -> tuple[list[str], str]:
    """The texts of a reply, and the fault when there are none ("" otherwise).

    JSON is found with prose around it; where the reply was asked for as plain text, one text a line will do.
    """
    if reply.refused or reply.finish_reason == "content_filter":
        return [], "refusal"
    for value in _json_values(reply.text):
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


def _json_values(text: str) -> Iterator[Any]:
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
