"""Work on rows in steps, so that what their templates write is asked for together and not row by row.

A template from outside runs in a process of its own; a question to it and its answer take longer than the rendering of
a short chat. Work that needs a rendering yields the request and goes on with what comes back.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeAlias, TypeVar

from tunesmith.data import sandbox
from tunesmith.data.jinja_engine import Shared
from tunesmith.errors import DataError

T = TypeVar("T")
Steps: TypeAlias = Generator[sandbox.Request, Shared, T]
"""Yields what has to be rendered, is sent the texts (or thrown the template's refusal), and returns its result."""


def alone(steps: Steps[T]) -> T:
    """The result of one piece of work.

    Raises:
        DataError: what it raises.
    """
    (found,) = together([steps])
    if isinstance(found, DataError):
        raise found
    return found


def together(work: Sequence[Steps[T]]) -> list[T | DataError]:
    """The results of several pieces of work; of those that raise a DataError, the error."""
    results: dict[int, T | DataError] = {}
    answers: dict[int, Shared | sandbox.TemplateRefusal | None] = dict.fromkeys(range(len(work)))
    while answers:
        requests: dict[int, sandbox.Request] = {}
        for index, answer in answers.items():
            steps = work[index]
            try:
                if isinstance(answer, sandbox.TemplateRefusal):
                    requests[index] = steps.throw(answer)
                else:
                    requests[index] = next(steps) if answer is None else steps.send(answer)
            except StopIteration as end:
                results[index] = end.value
            except DataError as problem:
                results[index] = problem
        answers = dict(zip(requests, sandbox.render_all(list(requests.values())), strict=True))
    return [results[index] for index in range(len(work))]
