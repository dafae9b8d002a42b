"""Keys, tokens and passwords, which must not stand in a config: reports, logs and file headers show it."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

# Words of a name whose text is a secret; `key` and `token` at its end are, unless it is of the others.
_SECRET = re.compile(
    r"apikey|secret|password|passwd|passphrase|pwd|auth|authori[sz]ation|authentication|bearer|cookie|jwt|credentials?"
    r"|signature|sig"
)
_HARMLESS = re.compile(r"cache|bos|cls|eos|mask|pad|sep|special|stop|unk")
# Keys by their looks.
_KEY = re.compile(
    r"(bearer|basic)\s+[\w+/=.~-]{16}|(sk|pk|rk|xai|nvapi)-[\w-]{12}|(hf|gsk|ghp|r8)_\w{12}|AIza[\w-]{20}|AKIA\w{12}|eyJ[\w-]+\.",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def secrets_in(value: Any, place: str = "", named: bool = False) -> Iterator[str]:
    """Places, such as `extra.headers.authorization`, of texts in a value that are secrets by their name or looks.

    named: the value's name is one of a secret.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            if _KEY.match(str(name)):
                yield place
            else:
                yield from secrets_in(part, f"{place}.{name}".lstrip("."), named or _names_secret(str(name)))
    elif isinstance(value, list):
        for part in value:
            yield from secrets_in(part, place, named)
    elif isinstance(value, str) and (_KEY.match(value) or (named and value.strip())):
        yield place


def url_fault(url: str) -> str:
    """What is wrong with a server's address, without repeating it; "" if nothing is."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and re.fullmatch("[!-~]+", url)
    except ValueError:  # a port or an address in brackets that is none
        return "is no address such as http://localhost:8000/v1"
    query = dict(parse_qsl(parts.query + "&" + parts.fragment))
    if "@" in url or any(map(_KEY.match, parts.path.split("/"))) or "code" in query or any(secrets_in(query)):
        return "holds a user, a password or a key, which reports and logs would show"
    return "" if whole else "is no address such as http://localhost:8000/v1"


def is_variable(name: str) -> bool:
    """Whether a text can be the name of an environment variable, and is no key that was pasted in its stead."""
    mixed = len(name) >= 20 and re.search(r"[a-z]", name) and re.search(r"\d", name)
    return bool(_VARIABLE.fullmatch(name)) and not mixed and not _KEY.match(name)


def _names_secret(name: str) -> bool:
    words = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    if any(map(_SECRET.fullmatch, words)):
        return True
    return words[-1:] in (["key"], ["token"]) and not any(map(_HARMLESS.fullmatch, words))
