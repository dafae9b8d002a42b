"""Config of a chat server, behind which a language or vision model answers.

Keys, tokens and passwords must not stand in it: reports, logs and file headers show it.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, JsonValue, model_validator

from safetydpo.config.types import Count, Many, Section

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


class Prices(Section):
    """What the server charges, so that the cost is shown."""

    input: Annotated[float, Field(ge=0)] = Field(description="Price of a million tokens sent")
    output: Annotated[float, Field(ge=0)] = Field(description="Price of a million tokens written")


class ChatServer(Section):
    """A model behind any OpenAI-compatible server."""

    model: str = Field(min_length=1, description="The model's name on the server")
    base_url: str | None = Field(
        None,
        description="Such as http://localhost:8000/v1; null: OPENAI_BASE_URL of the environment, else OpenAI's own",
    )
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the key; null: the server wants none"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(0.0, description="null: not sent")
    seed: Annotated[int, Field(ge=0)] | None = Field(
        0, description="Every request's own seed derives from it; null: none is sent"
    )
    max_tokens: Count | None = Field(1024, description="Length of a reply, tokens, at most; null: not sent")
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="More fields of the request, such as max_completion_tokens; reports show them, so keys, tokens and "
        "passwords are refused",
    )
    reply: Literal["auto", "json", "text"] = Field(
        "auto",
        description="json: structured output by a JSON schema; text: plain text; auto: a JSON schema, else a JSON "
        "object, else text, as the server takes it",
    )
    concurrency: Annotated[int, Field(ge=1, le=1000)] = Field(16, description="Requests in flight at once")
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(120.0, description="Seconds for a try, to the last byte")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        6, description="Retries of a request after 429, 5xx, a lost connection or a timeout; the budget counts them"
    )
    requests_per_minute: Many | None = Field(None, description="Rate limit; null: none")
    tokens_per_minute: Many | None = Field(None, description="Rate limit on tokens sent and written; null: none")
    token_budget: Many | None = Field(None, description="Tokens that the run may use, all jobs; null: no limit")
    prices: Prices | None = Field(None, description="To show the cost: {input, output}, per million tokens")

    @model_validator(mode="before")  # an error of a single key would show its value
    @classmethod
    def _without_secrets(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        variable, url = values.get("api_key_env"), values.get("base_url")
        if isinstance(variable, str) and variable and not is_variable(variable):
            raise ValueError("`api_key_env` must be the name of an environment variable that holds the key")
        if isinstance(url, str) and (fault := url_fault(url)):
            raise ValueError(f"`base_url` {fault}")
        if place := next(secrets_in({name: value for name, value in values.items() if name != "base_url"}), None):
            raise ValueError(
                f"`{place}` holds a secret, which reports and logs would show: the server's key belongs in the "
                "environment variable that `api_key_env` names, and no other is sent"
            )
        return values
