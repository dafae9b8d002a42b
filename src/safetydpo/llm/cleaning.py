"""What a model wrote around a text: numbering, quotes, markdown, labels, marks of its chat template."""

import re

LONE = re.compile("[\ud800-\udfff]")  # half of a character, which JSON can escape and no file can hold
_INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f\u200b\ufeff]+")
_TEMPLATE = re.compile(r"<\|[^|<>]*\|>|</?s>|<(?:start|end)_of_turn>")
_STRONG = re.compile(r"\*{2,}|_{2,}|`+")
_EMPHASIS = re.compile(r"(?<![\w*])([*_])(?=\S)([^*_]*[^\s*_])\1(?![\w*])")
# `- `, `> `, `## `, `2. `, `(2) `, `[2] `, `#2: `, `b) `, and `2.A`; not `3 dogs`, `9:30`, `1.5`.
_BULLET = re.compile(
    r"(?:(?:[-*+•‣▪·–—>]|\#{1,6}|\#?\(?\d{1,3}[.):]|\[\d{1,3}\][.:]?|\(?[a-hA-H]\))\s+|\d{1,3}[.)](?=[A-Z\"“]))+"
)
_LABEL = re.compile(
    r"(?:(?:(?:sure|certainly|okay|ok)\W+)?(?:here(?:['’]s| is)\s+)?(?:(?:the|a|an|your|my|this)\s+)?"
    r"(?:(?:safe|unsafe|safer|harmless|image|new|revised|rewritten|final|example)\s+)*"
    r"(?:safe|unsafe|prompt|scene|output|answer|concept|counterpart|version|response|result|rewrite)s?"
    r"\s*(?:no\.?|number|\#)?\s*\d{0,3}\s*(?:[:：]\s*|\s[-–—]\s+))+",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "„": "“", "«": "»", "「": "」", "『": "』", "”": "”", "’": "’"}
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")


def cleaned(text: str) -> str:
    """A text as one line, without what is around it; "" where nothing else is there. Cleaning twice changes nothing."""
    text = _TEMPLATE.sub(" ", LONE.sub("\ufffd", text))
    before = None
    while text != before:
        before = text
        text = _EMPHASIS.sub(r"\2", _STRONG.sub("", text))
        text = _INVISIBLE.sub(" ", text + " ").lstrip()  # the space shows a bullet of which nothing is left
        for around in (_BULLET, _LABEL):
            text = text[match.end() :] if (match := around.match(text)) else text
        text = _unquoted(text.strip())
    return text


def _unquoted(text: str) -> str:
    """Without quotes that are around all of it (and a comma or full stop after them), or that begin or end nothing."""
    body = text[:-1] if text[-2:-1] in _QUOTES.values() and text[-1:] in (",", ".", ";") else text
    closing = _QUOTES.get(body[:1])
    if closing and len(body) > 1 and body.endswith(closing):
        inner = body[1:-1]
        bare = _APOSTROPHE.sub("", inner)
        places = [bare.index(quote) for quote in {body[0], closing} if quote in bare]
        if not places or bare[min(places) - 1 : min(places)].isspace():  # else: "one" and "another"
            return inner
    if sum(map(text.count, '"“”')) == 1:
        if text[0] in '"“”':
            return text[1:]
        if text[-1] in '"“”' and not text[-2:-1].isdigit():  # 5" is a length
            return text[:-1]
    return text
