"""Converting between dialects: what is read back is the same RunConfig, whatever the settings."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic import AfterValidator, BaseModel

from tunesmith.cli.main import main
from tunesmith.config.adjust import NEEDS_EVALUATION, has_evaluation
from tunesmith.config.convert import SUFFIXES, convert, dialect_of, name_in, needed
from tunesmith.config.load import load, read
from tunesmith.config.names import leaf_paths, leaf_type
from tunesmith.config.paths import PATHS
from tunesmith.config.permissions import COMMAND_LINE_ONLY, permissions_of
from tunesmith.config.resolve import Resolved, from_values, resolve, schema_defaults
from tunesmith.config.schema import RunConfig
from tunesmith.errors import ConfigError

DIALECTS = ("python", "json", "yaml", "hydra")

AMBIGUOUS = [
    *["no", "null", "~", "1e-4", "0o17", "1_000", "on", "2024-01-01", "a: b", "# x", "${model.path}", "\\${x}", "="],
    *["it's", 'a "b"', " pad ", "line\nbreak", "é ü 漢", "@at", "%p", "- x", "[a]", "{b}", ".5", "0x1f", "true"],
]
TEXTS = st.one_of(
    st.sampled_from(AMBIGUOUS),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), min_size=1, max_size=12),
)
FLOATS = st.one_of(st.sampled_from([1e-5, 2e-4, 0.5, 3e-05, 0.1 + 0.2]), st.floats(1e-9, 0.99))


def value_of(path: str) -> SearchStrategy[Any]:
    """Valid values of a setting, from its type; paths without ``~`` and ``$VAR``, which reading replaces."""
    section, _, name = path.partition(".")
    limits = RunConfig.model_fields[section].annotation.model_fields[name].metadata
    highest = [limit.le for limit in limits if getattr(limit, "le", None) is not None]
    whole = int in (leaf_type(path), *typing.get_args(leaf_type(path))) and bool(highest)
    values = st.integers(1, int(min(highest))) if whole else _strategy(leaf_type(path))
    return values.filter(lambda value: not re.search(r"(^|[\['])~|\$", str(value))) if path in PATHS else values


def _strategy(annotation: Any) -> SearchStrategy[Any]:
    import types
    import typing

    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = [limit for mark in arguments[1:] for limit in getattr(mark, "metadata", ())]
        patterns = [limit.pattern for limit in limits if getattr(limit, "pattern", None)]
        if patterns:
            return st.from_regex(re.compile(patterns[0], re.ASCII), fullmatch=True)
        highest = [limit.le for limit in limits if getattr(limit, "le", None) is not None]
        if arguments[0] is int and highest:
            return st.integers(1, int(min(highest)))
        rules = [mark.func for mark in arguments[1:] if isinstance(mark, AfterValidator)]
        return _strategy(arguments[0]).filter(lambda value: all(_takes(rule, value) for rule in rules))
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(_strategy, arguments))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(_strategy(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text("abcxyz_", min_size=1, max_size=5), _strategy(arguments[1]), max_size=2)
    plain: dict[Any, SearchStrategy[Any]] = {
        bool: st.booleans(), int: st.integers(1, 10**6), float: FLOATS, str: TEXTS, type(None): st.none(),
        Any: st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), FLOATS, TEXTS),
    }  # fmt: skip
    return plain[annotation]


def _takes(rule: Callable[[Any], Any], value: Any) -> bool:
    try:
        rule(value)
    except ValueError:
        return False
    return True


SETTINGS = st.fixed_dictionaries(
    {},
    optional={path: value_of(path) for path in leaf_paths() if path not in COMMAND_LINE_ONLY},
)


def make(values: dict[str, Any]) -> Resolved:
    given = schema_defaults() | {"model.model_name_or_path": "some/model"} | values
    return from_values(given, permissions=permissions_of(given))


def back(text: str, dialect: str, folder: Path) -> Resolved:
    path = folder / f"again{SUFFIXES[dialect]}"
    path.write_text(text, encoding="utf-8")
    return resolve(read(path, dialect))


def valid(values: dict[str, Any]) -> Resolved:
    """A configuration without contradictions between switches, and with aligned saves: JSON files move them."""
    values = dict(values)
    if values.get("quantization.load_in_4bit") or values.get("quantization.load_in_8bit"):
        values["adapter.use_lora"] = True
        values["quantization.load_in_8bit"] = not values.get("quantization.load_in_4bit")
    if values.get("training.bf16"):
        values["training.fp16"] = False
    if values.get("training.eval_steps"):
        values["training.save_steps"] = 2 * values["training.eval_steps"]
    if not has_evaluation(make(values).values()):
        values |= NEEDS_EVALUATION
    return make(values)


IN_PROCESS = ("json", "yaml", "hydra", "yaml", "json")
FIXTURE_IS_FINE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


@settings(
    max_examples=10, deadline=None, suppress_health_check=FIXTURE_IS_FINE, phases=[Phase.explicit, Phase.generate]
)
@given(values=SETTINGS)
def test_around_the_dialects_read_in_this_process(values: dict[str, Any], tmp_path: Path) -> None:
    around(valid(values), IN_PROCESS, tmp_path)


@settings(max_examples=3, deadline=None, suppress_health_check=FIXTURE_IS_FINE, phases=[Phase.explicit, Phase.generate])
@given(values=SETTINGS)
def test_around_all_dialects_and_back(values: dict[str, Any], tmp_path: Path) -> None:
    around(valid(values), (*DIALECTS, "python"), tmp_path)


def around(first: Resolved, dialects: Sequence[str], folder: Path) -> None:
    current = first
    for dialect in dialects:
        current = back(convert(current, dialect, "a test"), dialect, folder)
        assert current.values() == first.values()
        assert current.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_setting_survives(dialect: str, tmp_path: Path) -> None:
    base = make({})
    changed = {}
    for path in leaf_paths():
        if path not in {*COMMAND_LINE_ONLY, "model.model_name_or_path", "adapter.use_lora"}:
            value = _other_value(path, base.values()[path])
            changed |= {} if value is _NO_OTHER else {path: value}
    assert len(changed) == len(leaf_paths()) - 6  # peft_type and task_type have one value only
    changed["quantization.load_in_8bit"] = changed["training.fp16"] = False
    changed["training.eval_steps"] = changed["training.save_steps"]
    changed["training.eval_strategy"] = "steps"  # early stopping ends without
    resolved = make(changed)
    for path in changed:
        assert path.endswith(("load_in_8bit", "fp16")) or resolved.values()[path] != base.values()[path]
    assert back(convert(resolved, dialect, "a test"), dialect, tmp_path).fingerprint() == resolved.fingerprint()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("use_lora", [True, False])
def test_adapters_on_and_off(dialect: str, use_lora: bool, tmp_path: Path) -> None:
    for adapter in ({}, {"adapter.lora_r": 3, "adapter.target_modules": ["v_proj"]}):
        resolved = make({"adapter.use_lora": use_lora} | adapter)
        assert back(convert(resolved, dialect, "a test"), dialect, tmp_path).fingerprint() == resolved.fingerprint()


_NO_OTHER = object()


def _choices(annotation: Any) -> list[Any]:
    """Every word of every Literal in a type."""
    import typing

    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return list(arguments)
    return [choice for argument in arguments for choice in _choices(argument)]


def _other_value(path: str, current: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    plain = (
        not current,
        7,
        0.25,
        0.75,
        "x",
        "2024-05-06",
        ["wandb"],
        ["x"],
        [0.5],
        {"x": "y"},
        {"x": "user"},
        {"x": 7},
        {"x": 0.5},
    )
    for value in (*_choices(leaf_type(path)), *plain):
        try:
            valid = TypeAdapter(leaf_type(path)).validate_python(value, strict=True)
        except ValidationError:
            continue
        if valid != current and value != current:
            return value
    return _NO_OTHER


def test_only_what_is_needed_is_written_under_the_dialects_own_names() -> None:
    resolved = make({"training.num_train_epochs": 7, "data.max_length": 77, "data.columns": {"question": "q"}})
    for dialect, expected in {
        "python": {"model_id": "some/model", "num_epochs": 7, "max_seq_length": 77},
        "json": {"model_name_or_path": "some/model", "num_train_epochs": 7, "max_seq_length": 77},
        "yaml": {"model.path": "some/model", "training.epochs": 7, "dataset.question_column": "q"},
        "hydra": {"model.model_name_or_path": "some/model", "model.max_sequence_len": 77, "train.num_train_epochs": 7},
    }.items():
        written = dict(needed(resolved, dialect))
        assert expected.items() <= written.items(), dialect
    defaults = resolve(read_text_as("yaml", "model: {path: m}\n"))
    assert needed(defaults, "yaml") == [("model.path", "m")]


def read_text_as(dialect: str, text: str) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{SUFFIXES[dialect]}")
        path.write_text(text)
        return read(path, dialect)


def test_comment_names_the_source_and_json_stays_json() -> None:
    resolved = make({})
    header = convert(resolved, "python", "a.yaml\nimport os").partition("\n")[0]
    assert header == "# Written by tunesmith from a.yaml import os."
    assert convert(resolved, "yaml", "b.py").startswith("# Written by tunesmith from b.py.\n")
    assert json.loads(convert(resolved, "json", "b.py"))["model_name_or_path"] == "some/model"


def test_switches_are_written_as_the_document_does() -> None:
    assert ("use_packing", True) in needed(make({"training.batching": "packed"}), "python")
    assert ("batching", "unpadded") in needed(make({"training.batching": "unpadded"}), "python")


def test_the_permission_to_run_code_is_never_written() -> None:
    resolved = make(
        {"model.allow_remote_code": True, "model.trust_remote_code": True, "evaluation.task_function": "own.py:score"}
    )
    for dialect in DIALECTS:
        text = convert(resolved, dialect, "a test")
        assert "allow_remote_code" not in text
        assert "task_function" not in text
        assert "trust_remote_code" in text


def test_a_default_that_needs_evaluation_is_written_only_with_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Document 3 stops early where there are evaluation rows; what is written asks for no more than that."""
    source = tmp_path / "source.json"
    source.write_text('{"model_name_or_path": "some/model"}')
    assert main(["config", str(source), "--to", "yaml"]) == 0
    assert "early_stopping_patience" not in capsys.readouterr().out
    assert main(["config", str(source), "--to", "yaml", "--eval_file", "held_out.jsonl"]) == 0
    assert "early_stopping_patience: 5" in capsys.readouterr().out


def test_unknown_dialect() -> None:
    with pytest.raises(ConfigError, match="toml"):
        convert(make({}), "toml", "x")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_verb_config_to(dialect: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.yaml"
    source.write_text("model: {path: nano-mistral, dtype: float32}\ndataset: {name: rows.jsonl}\n")
    assert main(["config", str(source), "--to", dialect, "--seed", "5"]) == 0
    target = tmp_path / f"target{SUFFIXES[dialect]}"
    target.write_text(capsys.readouterr().out)
    assert load(target).fingerprint() == load(source, ["--seed", "5"]).fingerprint()


def test_strategies_cover_the_schema() -> None:
    assert len(leaf_paths()) > 100
    assert all(isinstance(value_of(path), SearchStrategy) for path in leaf_paths())
    assert issubclass(type(make({}).config), BaseModel)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_setting_has_a_name_in_each_dialect(dialect: str) -> None:
    """The name stands for the whole of it, so that whoever writes it sets this setting and no part of it."""
    names, _, _ = dialect_of(dialect)
    for path in leaf_paths():
        spelling = names.find(name_in(path, dialect), dialect)
        assert (spelling.path, spelling.part) == (path, None)


def test_names_that_a_dialect_has_for_itself() -> None:
    assert name_in("adapter.lora_r", "yaml") == "model.lora_config.r"
    assert name_in("data.max_length", "hydra") == "model.max_sequence_len"
    assert name_in("model.model_name_or_path", "python") == "model_id"
    assert name_in("training.logging_steps", "json") == "log_every_n_steps"
