"""OpenAI's chat API over a model that is loaded here: its answers are those of ``predict`` and ``chat``.

What a request says is read in ``chat_request.py``. One answer is written at a time; others wait.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tunesmith.data.row import Row
from tunesmith.errors import DataError, TunesmithError
from tunesmith.evaluate.answering import Answerer
from tunesmith.evaluate.manner import Manner, manner_of
from tunesmith.launch.chat_request import ChatRequest, Refused, check_model, read_request
from tunesmith.secrets import redacted

MOST_BYTES = 2**24
"""Of one request."""


class _Enough(Exception):
    """Ends an answer: a stop text came, or nobody listens any more."""


class Answer:
    """One answer on its way, read piece by piece.

    Attributes:
        finish_reason: ``stop`` or ``length``, once all of it has come.
        num_tokens: its tokens, once all of it has come.
    """

    def __init__(self, server: Server, request: ChatRequest) -> None:
        self._server, self._request = server, request
        self._pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        self._cut = StopCutter(request.stop_texts())
        self._gone = threading.Event()
        self.finish_reason = "stop"
        self.num_tokens = 0
        threading.Thread(target=self._write, daemon=True).start()

    def pieces(self) -> Iterator[str]:
        """The texts as they come.

        Raises:
            TunesmithError: the model cannot answer.
        """
        try:
            while (piece := self._pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self._gone.set()

    def _write(self) -> None:
        try:
            with self._server.turn, suppress(_Enough):
                generation = self._server.answer(self._request, self._take)
                self._put(self._cut.rest())
                self.finish_reason = "stop" if generation.stopped else "length"
            self.num_tokens = self._server.count(self._cut.given)
            self._pieces.put(None)
        except Exception as error:
            self._pieces.put(error)

    def _take(self, text: str) -> None:
        if self._gone.is_set():
            raise _Enough
        self._put(self._cut.add(text))
        if self._cut.ended:
            raise _Enough

    def _put(self, text: str) -> None:
        if text:
            self._pieces.put(text)


class StopCutter:
    """Cuts a text that comes in pieces before the first of some stop texts, and the blank that it may begin with.

    Attributes:
        ended: whether a stop text has come.
        given: what was given out so far.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""
        self._begun = False
        self.ended = False
        self.given = ""

    def add(self, text: str) -> str:
        """Take a piece; what no later piece can change any more comes back."""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.ended = True
            return self._give(min(found))
        longest = max(
            (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0
        )
        return self._give(len(self._held) - longest)

    def rest(self) -> str:
        """What was held back, once the text has ended."""
        return self._give(len(self._held))

    def _give(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        if not self._begun and text:
            self._begun, text = True, text.removeprefix(" ")
        self.given += text
        return text


class Server:
    """The routes of one model.

    Attributes:
        turn: held by whoever writes an answer.
    """

    def __init__(self, answerer: Answerer, name: str) -> None:
        self._answerer, self._name = answerer, name
        self._manner: Manner = manner_of(answerer)
        self._created = int(time.time())
        self.turn = threading.Lock()

    def answer(self, request: ChatRequest, on_text: Any) -> Any:
        """Have the model answer a request.

        Raises:
            TunesmithError: it cannot.
        """
        values = request.row(self._manner)
        decoding = {**request.decoding(), "engine": "auto"}  # the other engines give no text before its end
        return self._answerer.answer(
            [Row(values, "messages", 1)], format_name=self._manner.format_name, on_text=on_text, decoding=decoding
        )[0]

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._answerer.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt that a request becomes.

        Raises:
            DataError: it becomes none.
        """
        row = Row(request.row(self._manner), "messages", 1)
        return len(self._answerer.builder(row, self._manner.format_name).prompt(row).input_ids)

    async def models(self, _: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/NAME``."""
        check_model(request.path_params["name"], self._name)
        return JSONResponse(self._model())

    async def health(self, _: Request) -> Response:
        """``GET /health``."""
        return JSONResponse({"status": "ok"})

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                raise Refused(f"the request is larger than {MOST_BYTES:,} bytes", code="request_too_large", status=413)
        asked = read_request(body)
        check_model(asked.model, self._name)
        asked.row(self._manner)
        return await run_in_threadpool(self._respond, asked)

    def _respond(self, asked: ChatRequest) -> Response:
        facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._name}
        prompt_tokens = self.prompt_tokens(asked)
        answer = Answer(self, asked)
        pieces = answer.pieces()
        if asked.stream:
            first = next(pieces, "")  # what cannot be answered is told with its status
            return StreamingResponse(
                self._events(facts, first, pieces, answer, prompt_tokens if asked.includes_usage() else None),
                media_type="text/event-stream",
            )
        text = "".join(pieces)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": answer.finish_reason,
            "logprobs": None,
        }
        usage = _usage(prompt_tokens, answer.num_tokens)
        return JSONResponse({**facts, "object": "chat.completion", "choices": [choice], "usage": usage})

    def _events(
        self, facts: dict[str, Any], first: str, pieces: Iterator[str], answer: Answer, prompt_tokens: int | None
    ) -> Iterator[str]:
        def event(delta: dict[str, Any] | None, reason: str | None = None, **more: Any) -> str:
            choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]
            chunk = {**facts, "object": "chat.completion.chunk", "choices": choices, **more}
            return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

        yield event({"role": "assistant", "content": ""})
        try:
            if first:
                yield event({"content": first})
            for piece in pieces:
                yield event({"content": piece})
        except Exception as error:
            yield f"data: {json.dumps(_told(error)[1])}\n\n"
            return
        yield event({}, answer.finish_reason)
        if prompt_tokens is not None:
            yield event(None, usage=_usage(prompt_tokens, answer.num_tokens))
        yield "data: [DONE]\n\n"

    def _model(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._created, "owned_by": "tunesmith"}


def make_app(answerer: Answerer, name: str) -> Starlette:
    """The application that serves a model under a name."""
    server = Server(answerer, name)
    routes = [
        Route("/health", server.health),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.model),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
    ]
    kinds: tuple[type[Exception], ...] = (Refused, TunesmithError, HTTPException, Exception)
    return Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, _tell))


async def _tell(_: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response()
    status, told = _told(error)
    return JSONResponse(told, status)


def _told(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, in OpenAI's shape."""
    code = param = None
    if isinstance(error, Refused):
        status, what, code, param = error.status, error.what, error.code, error.param
    elif isinstance(error, DataError):
        status, what, param = 400, error.line(), "messages"
    elif isinstance(error, HTTPException):
        status, what = error.status_code, f"{error.detail}: there are /v1/chat/completions and /v1/models here"
    elif isinstance(error, TunesmithError):
        status, what = 500, error.line()
    else:
        status, what = 500, f"{type(error).__name__}: {redacted(str(error))[:1000]}"
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": what, "type": kind, "param": param, "code": code}}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
