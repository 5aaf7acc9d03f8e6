"""What a request of OpenAI's chat API asks for: read strictly, and what is not done here is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tunesmith.evaluate.manner import Manner

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
}
"""Fields that are not done here -> values that ask for nothing; null does not, either."""
HARMLESS = ("user", "safety_identifier", "prompt_cache_key")
"""Fields that only say who asks."""
MOST_STOPS = 16


class Refused(Exception):
    """A request that is not answered, as OpenAI's API tells it: a status, words, a code and the field it is about."""

    def __init__(self, what: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(what)
        self.what, self.param, self.code, self.status = what, param, code, status


Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[
    list[Stop],
    Field(max_length=MOST_STOPS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


class StreamOptions(BaseModel):
    """What a stream tells besides its text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(BaseModel):
    """A request whose fields are known and whose values have the right types."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def stop_texts(self) -> list[str]:
        """The texts that end an answer and do not belong to it."""
        return self.stop or []

    def includes_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def decoding(self) -> dict[str, Any]:
        """What is decoded otherwise than the model's own settings say."""
        longest = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        asked = {"max_new_tokens": longest, "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {name: value for name, value in asked.items() if value is not None}

    def row(self, manner: Manner) -> dict[str, Any]:
        """The question as a row of the format that the model was trained on.

        Raises:
            Refused: messages are not what such a model can be asked.
        """
        messages = [{**message, "content": _text(message, at)} for at, message in enumerate(self.messages)]
        if manner.keeps:
            return {"messages": messages}
        if len(messages) != 1 or messages[0].get("role") != "user":
            raise Refused("this model answers one question at a time: send one user message", param="messages")
        if manner.format_name == "messages":
            return {"messages": messages}
        return _columns(messages[0]["content"], manner.columns)


def _text(message: dict[str, Any], at: int) -> str:
    """The content of a message; parts of text are joined."""
    content, param = message.get("content"), f"messages[{at}].content"
    parts: list[Any] = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if not all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    ):
        raise Refused("content is a text, or a list of parts of type text", param=param)
    return "".join(part["text"] for part in parts)


def _columns(content: str, columns: tuple[str, ...]) -> dict[str, Any]:
    """A question's columns: the only one is the message itself, several come as an object of JSON."""
    if len(columns) == 1:
        return {columns[0]: content}
    try:
        values = json.loads(content)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not all(isinstance(values.get(column), str) for column in columns):
        shown = json.dumps(dict.fromkeys(columns, "..."))
        raise Refused(f"this model is asked {' and '.join(columns)}: send them as JSON, {shown}", param="messages")
    return {column: values[column] for column in columns}


def read_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        Refused: it is no JSON, a field is missing or wrong, or asks for what is not done here.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("the body is not valid JSON") from None
    if not isinstance(values, dict):
        raise Refused("the body is no JSON object")
    for name, value in values.items():
        _check_field(name, value)
    try:
        return ChatRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise Refused(f"{path}: {first['msg']}", param=str(first["loc"][0])) from None


def _check_field(name: str, value: Any) -> None:
    if name in ChatRequest.model_fields or name in HARMLESS or value is None:
        return
    neutral = NEUTRAL.get(name, ())
    if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
        shown = json.dumps(value)[:200]
        raise Refused(f"{name} = {shown} is not supported here", param=name, code="unsupported_parameter")


def check_model(asked: str, served: str) -> None:
    """Refuse another model than the one that is served.

    Raises:
        Refused: it is another.
    """
    if asked != served:
        raise Refused(
            f"there is no model {asked[:200]!r} here, only {served!r}",
            param="model",
            code="model_not_found",
            status=404,
        )
