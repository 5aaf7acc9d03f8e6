"""Answers that are JSON: valid, shaped as a schema says, and equal to the reference, field by field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.json_schema import read_json_schema
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.answers import Answer, read_json
from tunesmith.evaluate.metrics import mean
from tunesmith.evaluate.tasks.base import RowLike, ScoredAnswer, Task


class JsonTask(Task):
    """The JSON value of an output equals the completion's, and fulfils a schema where there is one.

    Args:
        schema: file with a JSON Schema.

    Raises:
        ConfigError: the schema cannot be read or is none.
    """

    name = "json"

    def __init__(self, schema: str | Path | None = None) -> None:
        self.schema = schema
        self._validator = None if schema is None else _validator(schema)

    def read(self, text: str) -> Answer:
        return read_json(text)

    def reference(self, row: RowLike, completion: str | None) -> Any:
        answer = self.read(completion or "")
        if answer.how != "json":
            raise DataError("the row's answer is no JSON", where=row.where, remedy="write the completion as JSON")
        problem = self._problem(answer.value)
        if problem:
            raise DataError(
                f"the row's answer breaks the schema: {problem}",
                where=row.where,
                remedy="correct the row or the schema",
            )
        return answer.value

    def correct(self, answer: Answer, reference: Any) -> bool:
        # The reference fulfils the schema, so whatever equals it does.
        return answer.readable and same_json(answer.value, reference)

    def scores(self, answer: Answer, reference: Any, correct: bool) -> dict[str, float]:
        scores = super().scores(answer, reference, correct) | {"valid_json": float(answer.how == "json")}
        if self._validator is not None:
            scores["schema_valid"] = float(answer.readable and not self._problem(answer.value))
        if isinstance(reference, dict) and reference:
            scores["field_accuracy"] = mean([float(_has(answer, name, value)) for name, value in reference.items()])
        return scores

    def figures(self, scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
        right: dict[str, list[float]] = {}
        for item in scored:
            if isinstance(item.reference, dict):
                for name, value in item.reference.items():
                    right.setdefault(name, []).append(float(_has(item.answer, name, value)))
        fields = {name: {"accuracy": mean(values), "support": len(values)} for name, values in right.items()}
        return super().figures(scored) | ({"per_field": fields} if fields else {})

    def mistake(self, scored: ScoredAnswer) -> str:
        answer, reference = scored.answer.value, scored.reference
        if self._problem(answer):
            return "breaks the schema"
        if not isinstance(answer, dict) or not isinstance(reference, dict):
            return "wrong value"
        for name, value in reference.items():
            if not _has(scored.answer, name, value):
                return f"wrong field {name}" if name in answer else f"missing field {name}"
        return "fields too many"

    def _problem(self, value: Any) -> str:
        """The first way in which a value breaks the schema; empty when it fulfils it.

        Raises:
            ConfigError: the schema refers to something outside itself.
        """
        from referencing.exceptions import Unresolvable

        if self._validator is None:
            return ""
        try:
            return next((error.message for error in self._validator.iter_errors(value)), "")
        except Unresolvable as error:
            raise ConfigError(
                f"the schema refers to {error.ref!r}, which is not in it",
                where=str(self.schema),
                remedy="put it under $defs; nothing is fetched",
            ) from error


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: numbers by value (1 and 1.0), and true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def _has(answer: Answer, name: str, value: Any) -> bool:
    return isinstance(answer.value, dict) and name in answer.value and same_json(answer.value[name], value)


def _validator(path: str | Path) -> Any:
    import jsonschema
    from referencing import Registry

    schema = read_json_schema(path)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    # With a registry of its own the library fetches nothing.
    return kind(schema, registry=Registry())
