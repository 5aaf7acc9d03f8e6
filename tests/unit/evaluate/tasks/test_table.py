"""Which task a kind of data gets: from settings, and from real rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config.schema import DataSection, EvaluationSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.prepare_rag import prepare_rag
from tunesmith.data.row import Row
from tunesmith.data.rows import read_rows
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.answers import Answer
from tunesmith.evaluate.scoring import task_for
from tunesmith.evaluate.tasks import TASKS, ClassificationTask, FunctionTask, JsonTask, choose_task, detect_task


@pytest.mark.parametrize(
    ("format_name", "values", "completion", "task"),
    [
        ("nli", {"premise": "p"}, None, "nli"),
        ("rag", {"prompt": "p"}, None, "rag"),
        ("text", {"text": '[INST] ... {"predicted_label": ...} [/INST] {"predicted_label": 0}'}, "x", "nli"),
        ("question_answer", {"question": "q", "answer": "so\n#### 5"}, "so\n#### 5", "reasoning"),
        ("prompt_completion", {"prompt": "p", "response": "hence \\boxed{5}"}, "hence \\boxed{5}", "reasoning"),
        ("prompt_completion", {"prompt": "p", "response": "The answer is 5"}, "The answer is 5", "reasoning"),
        ("prompt_completion", {"prompt": "p", "completion": "a word"}, "a word", "exact"),
        ("prompt_completion", {"prompt": "p", "completion": '{"a": 1}'}, '{"a": 1}', "json"),
        ("prompt_completion", {"prompt": "p", "completion": "17"}, "17", "exact"),
        ("messages", {"messages": [{"role": "user", "content": "5 apples"}]}, None, "exact"),
        ("messages", {"messages": []}, 'so\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "tool_call"),
        ("messages", {"messages": []}, "the tag <tool_call> begins a call", "exact"),
    ],
)
def test_the_task_follows_from_the_rows(
    row: Callable[..., Row], format_name: str, values: dict[str, object], completion: str | None, task: str
) -> None:
    rows, completions = [row(**values)] * 3, [completion] * 3
    assert detect_task(format_name, rows, completions) == task
    assert choose_task(EvaluationSection(), format_name, rows, completions).name == task


@pytest.mark.parametrize(
    ("completions", "task"),
    [
        (["good", "bad"] * 5, "classification"),
        (["good", "bad"] * 4 + ["good"], "exact"),  # fewer than five rows for each label
        (["3", "4"] * 5, "exact"),  # results of sums are no classes
        ([f"name {number}" for number in range(11)] * 5, "exact"),  # more labels than a label set has
        (["good", "bad"] * 5 + ["a story\nof two lines"], "exact"),
    ],
)
def test_few_short_answers_again_and_again_are_classes(
    row: Callable[..., Row], completions: list[str], task: str
) -> None:
    rows = [row(prompt="p", completion=completion) for completion in completions]
    assert detect_task("prompt_completion", rows, completions) == task
    numbered = [row(prompt="p", label=number % 2) for number in range(10)]
    assert detect_task("prompt_completion", numbered, [None] * 10) == "classification"


def test_a_named_task_is_taken(row: Callable[..., Row], tmp_path: Path) -> None:
    rows = [row(label="x"), row(label="y")]
    names = [choose_task(EvaluationSection(task=name), "text", rows, [None] * 2).name for name in TASKS]
    assert names == list(TASKS)
    assert len(names) == 7
    with pytest.raises(ConfigError, match="scores nothing"):
        choose_task(EvaluationSection(task="none"), "text", rows, [None] * 2)
    (tmp_path / "own.py").write_text("def score(output, row, reference):\n    return True\n", encoding="utf-8")
    section = EvaluationSection(task_function=f"{tmp_path / 'own.py'}:score")
    assert isinstance(choose_task(section, "text", rows, [None] * 2), FunctionTask)
    (tmp_path / "schema.json").write_text("{}", encoding="utf-8")
    section = EvaluationSection(task="json", json_schema=str(tmp_path / "schema.json"))
    task = choose_task(section, "text", rows, [None] * 2)
    assert isinstance(task, JsonTask)
    assert task.schema == section.json_schema


def test_labels_are_those_of_the_settings_or_of_the_rows(row: Callable[..., Row]) -> None:
    rows = [row(label="x"), row(label="y")]
    task = choose_task(EvaluationSection(task="classification", labels=["y", "x", "z"]), "text", rows, [None] * 2)
    assert isinstance(task, ClassificationTask)
    assert task.labels == ("y", "x", "z")
    task = choose_task(EvaluationSection(task="classification"), "text", rows, [None, "why"])
    assert isinstance(task, ClassificationTask)
    assert task.labels == ("why", "x")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: no row states a label"):
        choose_task(EvaluationSection(task="classification"), "text", [row()], [None])


@pytest.mark.parametrize("name", sorted(TASKS))
def test_unreadable_answers_are_never_correct(row: Callable[..., Row], name: str) -> None:
    task = choose_task(EvaluationSection(task=name), "text", [row(label="x")], [None])
    reference: Any = {"nli": 0, "rag": {"answers": [""], "groups": [[""]]}, "json": None}.get(name, "")
    assert not task.correct(Answer(None, "unreadable"), reference)


REAL = [
    ("rag_pubmedqa/pqal_train500.json", "cited", "classification", ["maybe", "no", "yes"]),
    ("rag_xquad_en/xquad.en.part1.json", "cited", "rag", None),
    ("rag_xquad_en/xquad.en.part1.json", "short", "rag", None),
    ("rag_hotpot/dev20.jsonl", "cited", "rag", None),
    ("rag_nq_open/NQ-open.efficientqa.dev.1.1.jsonl", "closed", "rag", None),
    ("rag_alce_asqa_prompts/asqa_default.json", "short", "rag", None),
    ("reason_aqua/dev.json", {"columns": {"answer": "correct"}}, "classification", list("ABCDE")),
    ("reason_aqua/dev.json", {"columns": {"answer": "rationale"}}, "classification", list("ABCDE")),
    ("reason_gsm8k/train.jsonl", {}, "reasoning", None),
    ("nli_esnli/esnli_dev.csv", {}, "nli", [0, 1]),
    ("instruct_selfinstruct/seed_tasks.jsonl", {"columns": {"output": "name"}}, "exact", None),
]


@pytest.mark.parametrize(("source", "how", "name", "labels"), REAL, ids=lambda value: str(value)[:20])
def test_real_data_gets_a_task_that_scores_it(
    real_data: Path, stories: tuple[Any, Any], source: str, how: Any, name: str, labels: list[Any] | None
) -> None:
    """Every row's own answer is right by the task that is found for it, as far as people wrote it readably."""
    data = DataSection(columns=how.get("columns", {})) if isinstance(how, dict) else DataSection(format="rag")
    if isinstance(how, dict):
        rows = read_rows(str(real_data / source))[:600]
        if name == "nli":
            data = DataSection(format="nli")
            rows = [Row({**row.values, "label": int(row.values["label"] == "entailment")}, row.source, row.line)
                    for row in rows]  # fmt: skip
    else:
        prepared = prepare_rag(
            str(real_data / source), num_passages=0 if how == "closed" else 4, chain_of_thought=how == "cited",
            prompt="{question}" if how == "closed" else "{context}\n{question}",
        )  # fmt: skip
        rows = [Row({**values, "completion": values.get("generated_answer", values["answers"])}, source, line)
                for line, values in enumerate(prepared.rows[:300], start=1)]  # fmt: skip
    builder = ExampleBuilder(stories[1], data)
    task = task_for(EvaluationSection(), builder, rows)
    assert task.name == name
    assert labels is None or sorted(getattr(task, "labels", ())) == labels
    golds = [builder.reference(row) for row in rows]
    scored = [task.score_answer(gold or "", task.reference(row, gold)) for row, gold in zip(rows, golds, strict=True)]
    right = sum(item.correct for item in scored) / len(scored)
    assert right > 0.9 if how == {"columns": {"answer": "rationale"}} else right == 1.0
    turned = [
        task.score_answer(gold or "", item.reference) for gold, item in zip(golds[1:] + golds[:1], scored, strict=True)
    ]
    assert sum(item.correct for item in turned) / len(turned) < 0.75
