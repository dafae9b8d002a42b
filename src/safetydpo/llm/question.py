"""What a server is asked, and how its answer is read."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from safetydpo.llm.replies import Reply, texts_of
from safetydpo.storage.images import png

T = TypeVar("T")
# Of an image that is worth a token, about; until the server's own counts are known.
PIXELS_A_TOKEN = 750
# Characters of a text in a list that has a length.
LONGEST = 600
BOUNDS = ("minItems", "maxItems", "minLength", "maxLength")


class Form(NamedTuple, Generic[T]):
    """What an answer must be.

    name, schema: of structured output; read: (reply, whether plain text was asked for) -> what it says, and the fault
    where that is nothing ("" otherwise).
    """

    name: str
    schema: dict[str, Any]
    read: Callable[[Reply, bool], tuple[T, str]]


class Picture:
    """An image beside a message, uint8 (h, w, 3)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:32]

    @property
    def tokens(self) -> int:
        """About as many as servers count."""
        return self.pixels.shape[0] * self.pixels.shape[1] // PIXELS_A_TOKEN

    def below(self, message: str) -> list[dict[str, Any]]:
        """The content of a message that ends with the image: what all requests have in common comes first."""
        url = f"data:image/png;base64,{base64.b64encode(png(self.pixels)['bytes'] or b'').decode()}"
        return [{"type": "text", "text": message}, {"type": "image_url", "image_url": {"url": url}}]


class Question(NamedTuple, Generic[T]):
    """instruction: plain text wanted (else JSON) -> the message; name: what the request's seed derives from."""

    instruction: Callable[[bool], str]
    form: Form[T]
    name: str
    picture: Picture | None = None


def list_of(key: str, count: int | None = None) -> Form[list[str]]:
    """The form of a list of texts, `count` of them where that is given."""
    text: dict[str, Any] = {"type": "string"}
    texts: dict[str, Any] = {"type": "array", "items": text}
    if count is not None:
        text["maxLength"] = LONGEST
        texts |= {"minItems": count, "maxItems": count}
    return Form(key, object_of({key: texts}), lambda reply, plain: texts_of(reply, key, plain))


def object_of(properties: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with these properties and no others, as structured output wants it."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def unbounded(schema: Any) -> Any:
    """A JSON schema without the bounds of its lists and texts, which some servers do not know."""
    if isinstance(schema, dict):
        return {name: unbounded(part) for name, part in schema.items() if name not in BOUNDS}
    return [unbounded(part) for part in schema] if isinstance(schema, list) else schema
