"""What a server answered, and the list of texts in it."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from safetydpo.llm.cleaning import LONE, cleaned

_BROKEN = re.compile(  # JSON or a web page where lines of text were due; `[1] ` is a number
    r"^[^\S\n]*(?:\{|\[(?!\d+\]\W)|<(?:[!?]|/?(?:html|head|body|title|div|p|ul|ol|li|br|table|h\d)\b))",
    re.MULTILINE | re.IGNORECASE,
)
_OPENING = re.compile(r"[{\[]")
_ITEM = re.compile(r'[\s,]*(?=")')
# Starts of JSON that are tried in a text: models write few that are none, and each may cost a look at the whole text.
STARTS = 200
FAILED, CONTEXT = "server", "context"
# Of answers without a choice; and, never kept, of requests whose form the server refused, or a bound of its schema.
NOTHING, FORM, BOUND = "nothing", "form", "bound"

_TAG = r"(?:(?:seed:)?think(?:ing)?|thoughts?|reasoning)"
_THOUGHTS = re.compile(  # to the last end, also where the template has opened them; and from a beginning without end
    rf"\A.*(?:[<\[]/{_TAG}[>\]]|◁/think▷|<\|channel\|>final<\|message\|>)"
    rf"|(?:[<\[]{_TAG}[>\]]|◁think▷|<\|channel\|>analysis<\|message\|>).*",
    re.DOTALL | re.IGNORECASE,
)
_THINKING = ("think", "thought", "reasoning", "<|channel|>")
_FILTERED = re.compile(
    r"content_?filter|safety|recitation|blocklist|prohibited|spii|sensitive|refusal|guardrail|moderation"
)
_CUT = re.compile(r"length|max_?tokens|context_window|insufficient_system_resource|error")
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
        if self.finish_reason in (FAILED, CONTEXT):
            return self.finish_reason
        return "refusal" if self.refused or self.finish_reason == "content_filter" else ""


def reply_of(completion: Any, asked: int) -> Reply:
    """What matters of a completion, without the model's thoughts; ValueError where the server sent something else.

    asked: about as many tokens as the request has, where the server does not say.
    """
    if not isinstance(completion, dict) or "choices" not in completion:
        raise ValueError(f"no chat completion but {completion}")
    choices, usage = completion["choices"], _fields(completion.get("usage"))
    choice = _fields(choices[0] if isinstance(choices, list) and choices else None)
    said = _fields(choice.get("message"))
    text = LONE.sub("\ufffd", _text_in(said.get("content")))
    thoughts = said.get("reasoning_content") or said.get("reasoning")
    length = len(text) + (len(thoughts) if isinstance(thoughts, str) else 0)
    return Reply(
        text=without_thoughts(text),
        finish_reason=_reason(choice.get("finish_reason")) if choices else NOTHING,
        refused=bool(said.get("refusal")),
        sent=tokens(usage.get("prompt_tokens"), asked),
        written=tokens(usage.get("completion_tokens"), length // 4),
    )


def tokens(count: Any, guess: int) -> int:
    """Tokens as a server counts them; `guess` where it does not say."""
    return count if type(count) is int and 0 <= count < 2**40 else guess


def without_thoughts(text: str) -> str:
    """What a model says after it has thought; "" where it has not come to that."""
    small = text.lower()  # to look for a word is a hundred times faster
    return _THOUGHTS.sub("", text) if any(word in small for word in _THINKING) else text


def _text_in(content: Any) -> str:
    """The text of a message; of its parts, those that are text and no thoughts."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if part.get("type", "text") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))


def _reason(said: Any) -> str:
    """Why an answer ended, in OpenAI's words; `other` where that is something else."""
    reason = said.lower() if isinstance(said, str) else ""
    if _FILTERED.search(reason):
        return "content_filter"
    return "length" if _CUT.search(reason) else "stop" if reason == "stop" else "other"


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def parsed(text: Any) -> Any:
    """A body that came with no JSON content type, as JSON where it is."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def texts_of(reply: Reply, key: str, plain: bool) -> tuple[list[str], str]:
    """The texts of a reply, and the fault when there are none ("" otherwise).

    JSON is found with prose around it; where the reply was asked for as plain text, one text a line will do. Of a reply
    that was cut, what is whole counts.
    """
    if reply.fault:
        return [], reply.fault
    cut = reply.finish_reason == "length"
    if cut and (whole := _whole_strings(reply.text, key)):
        return [cleaned(text) for text in whole], ""
    for value in json_values(reply.text):
        found = value.get(key) if isinstance(value, dict) else value
        if isinstance(found, list) and found and all(isinstance(text, str) for text in found):
            return [cleaned(text) for text in found], ""
    if refuses(reply.text):
        return [], "refusal"
    if plain and not _BROKEN.search(reply.text):
        said = reply.text.rpartition("\n")[0] if cut else reply.text
        lines = [line for line in said.splitlines() if line.strip() and not line.lstrip().startswith("```")]
        if texts := [text for line in lines if (text := cleaned(line)) and not text.endswith(":")]:
            return texts, ""
    return [], "truncated" if cut else "malformed"


def _whole_strings(text: str, key: str) -> list[str]:
    """The strings before the end of a list that was cut: of the list named `key`, else of one that the text opens."""
    begin = re.search(rf'"{re.escape(key)}"\s*:\s*\[', text) or re.match(r"\W*(?:json\s*)?\[", text)
    decoder, end, strings = json.JSONDecoder(), begin.end() if begin else len(text), []
    while item := _ITEM.match(text, end):
        try:
            string, end = decoder.raw_decode(text, item.end())
        except ValueError:  # the one that was cut
            break
        strings.append(string)
    return strings


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
