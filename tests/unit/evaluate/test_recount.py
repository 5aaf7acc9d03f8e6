"""metrics.json and mistakes.json of every task, counted again from predictions.jsonl alone, by other means."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn import metrics as sk

from tunesmith.data.prepare_rag import prepare_rag
from tunesmith.data.row import Row
from tunesmith.evaluate.generate import Generation
from tunesmith.evaluate.result import write_result
from tunesmith.evaluate.scoring import Case, score_generations
from tunesmith.evaluate.tasks import (
    ClassificationTask,
    ExactTask,
    FunctionTask,
    JsonTask,
    NliTask,
    RagTask,
    ReasoningTask,
    Task,
    ToolCallTask,
)

Predictions = list[dict[str, Any]]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n", "word"]}
OWN = "def score(output, row, reference):\n    return {'score': output == reference, 'length': len(output)}\n"


def evaluated(folder: Path, task: Task, references: Sequence[Any], outputs: Sequence[str]) -> Predictions:
    """Score, write, and read back what was written: predictions, with ``metrics.json`` checked for what all share."""
    rng = random.Random(1)
    cases = [Case(f"rows.jsonl:{line}", "p", reference) for line, reference in enumerate(references, start=1)]
    generations = [Generation(output, [7] * rng.randint(1, 9), rng.random() < 0.8) for output in outputs]
    write_result(folder, score_generations(task, cases, generations, bootstrap_samples=100, seed=3))
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    metrics, mistakes = figures(folder), json.loads((folder / "mistakes.json").read_text("utf-8"))
    assert len(predictions) == metrics["num_examples"] == len(outputs)
    assert metrics["task"] == task.name
    number = len(predictions)
    assert metrics["parse_failure_rate"] == pytest.approx(
        sum(item["read_as"] == "unreadable" for item in predictions) / number
    )
    assert metrics["stopped_share"] == pytest.approx(sum(item["stopped"] for item in predictions) / number)
    assert metrics["read_as"] == Counter(item["read_as"] for item in predictions)
    assert not any(item["correct"] for item in predictions if item["read_as"] == "unreadable")
    assert metrics[metrics["main_metric"]] == pytest.approx(
        sum(item["scores"][metrics["main_metric"]] for item in predictions) / number
    )
    assert metrics["mistakes"] == {kind: found["count"] for kind, found in mistakes.items()}
    assert metrics["mistakes"]["not stopped"] == sum(not item["stopped"] for item in predictions)
    told = sum(count for kind, count in metrics["mistakes"].items() if kind != "not stopped")
    assert told == sum(not item["correct"] for item in predictions)  # each wrong answer is of one kind
    for name, (low, high) in metrics["confidence"].items():
        assert low <= metrics[name] <= high
    return predictions


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def mistaken(rng: random.Random, values: Sequence[Any]) -> list[Any]:
    """``values`` with about a third of them exchanged."""
    return [value if rng.random() < 0.7 else rng.choice(values) for value in values]


LABELS: dict[str, tuple[Callable[[], Task], list[Any], str]] = {
    "nli": (NliTask, [0, 1], '{{"thought_process": "x", "predicted_label": {}}}'),
    "classification": (lambda: ClassificationTask(["good", "bad", "so so"]), ["good", "bad", "so so"], "It is {}."),
}


@pytest.mark.parametrize("name", LABELS)
def test_tasks_with_classes_equal_scikit_learn(name: str, tmp_path: Path) -> None:
    make, labels, shape = LABELS[name]
    rng = random.Random(2)
    gold = [rng.choice(labels) for _ in range(200)]
    shapes = [shape, "label: {}", '{{"label": "{}", "predicted_label": {}}}', "nothing {}?"]
    outputs = [
        rng.choice(shapes).format(label, json.dumps(label)).replace("It is", "The answer is")
        for label in mistaken(rng, gold)
    ]
    predictions = evaluated(tmp_path, make(), gold, outputs)
    found = figures(tmp_path)
    truth = [str(item["reference"]) for item in predictions]
    said = ["-" if item["answer"] is None else str(item["answer"]) for item in predictions]
    names = [str(label) for label in labels]
    assert 0.3 < sk.accuracy_score(truth, said) < 0.7
    assert 0 < said.count("-") < 100
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    for average, function in (
        ("macro_f1", sk.f1_score), ("macro_precision", sk.precision_score), ("macro_recall", sk.recall_score)
    ):  # fmt: skip
        again = function(truth, said, labels=names, average="macro", zero_division=0)
        assert found[average] == pytest.approx(again)
    report = sk.classification_report(truth, said, labels=names, output_dict=True, zero_division=0)
    for label in names:
        theirs = {key.replace("f1-score", "f1"): value for key, value in report[label].items()}
        assert found["per_class"][label] == pytest.approx(theirs)
    matrix = sk.confusion_matrix(truth, said, labels=[*names, "-"])[: len(names)].tolist()
    assert found["confusion_matrix"] == {"labels": labels, "columns": [*labels, "unreadable"], "counts": matrix}
    pairs = Counter(f"{t} -> {a}" for t, a in zip(truth, said, strict=True) if a not in (t, "-"))
    assert {kind: count for kind, count in found["mistakes"].items() if " -> " in kind} == pairs
    assert set(found["confidence"]) == {"accuracy", "macro_f1"}


def test_exact_answers(tmp_path: Path) -> None:
    words = ["a red ball", "the dog!", "cake", "toy car"] * 20
    outputs = [text.upper() for text in mistaken(random.Random(4), words)]
    predictions = evaluated(tmp_path, ExactTask(), words, outputs)
    plain = [
        [re.sub(r"\W|\b(a|the)\b", "", item[key].lower()) for key in ("output", "reference")] for item in predictions
    ]
    assert figures(tmp_path)["exact_match"] == pytest.approx(sum(a == b for a, b in plain) / len(plain))
    assert 0.5 < figures(tmp_path)["exact_match"] < 1


def test_final_numbers_of_gsm8k(real_data: Path, tmp_path: Path) -> None:
    lines = (real_data / "reason_gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    solutions = [json.loads(line)["answer"] for line in lines]
    task = ReasoningTask()
    references = [task.reference(Row({}, "x", 1), solution) for solution in solutions]
    predictions = evaluated(tmp_path, task, references, mistaken(random.Random(5), solutions))
    right = [
        math.isclose(float(item["output"].split("####")[1].replace(",", "")), float(Fraction(item["reference"])))
        for item in predictions
    ]
    assert figures(tmp_path)["exact_match"] == pytest.approx(sum(right) / len(right))
    assert 0.6 < sum(right) / len(right) < 0.9


def test_answers_and_citations_over_xquad(real_data: Path, tmp_path: Path) -> None:
    rows = prepare_rag(str(real_data / "rag_xquad_en" / "xquad.en.part1.json"), chain_of_thought=True).rows[:150]
    task = RagTask()
    references = [task.reference(Row(row, "x", 1), None) for row in rows]
    chains = mistaken(random.Random(6), [row["generated_answer"] for row in rows])
    outputs = [chain.replace("[1]", "[2][Document 3]") for chain in chains]
    predictions = evaluated(tmp_path, task, references, outputs)
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    again: dict[str, list[float]] = {name: [] for name in predictions[0]["scores"]}
    for item, row in zip(predictions, rows, strict=True):
        answer = item["output"].split("<ANSWER>:")[1].strip()
        said, gold = words_of(answer), words_of(row["answers"][0])
        same = sum((Counter(said) & Counter(gold)).values())
        again["exact_match"].append(float(said == gold))
        again["f1"].append(2 * same / (len(said) + len(gold)))
        again["string_exact_match"].append(float(" ".join(gold) in " ".join(said)))
        again["rouge_l"].append(rouge.score(row["answers"][0], answer)["rougeL"].fmeasure)
        outside = re.sub("##begin_quote##.*?##end_quote##", "", item["output"], flags=re.S)
        cited = {int(number) for number in re.findall(r"\[(?:Document )?(\d+)\]", outside)}
        supporting = {row["passages"].index(text.strip()) + 1 for text in row["positive_passages"]}
        again["citation_precision"].append(len(cited & supporting) / len(cited))
        again["citation_recall"].append(len(cited & supporting) / len(supporting))
    assert len(again) == 6
    found = figures(tmp_path)
    for name, values in again.items():
        assert found[name] == pytest.approx(sum(values) / len(values)), name
        assert 0.4 < found[name] < 0.95, name
    assert set(found["confidence"]) == set(again)


def words_of(text: str) -> list[str]:
    kept = re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def test_json_answers(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    rng = random.Random(7)
    golds = [{"n": number, "word": rng.choice(["a", "b"])} for number in range(6)] * 10
    outputs = [json.dumps(value if rng.random() < 0.8 else value | {"n": "1"}) for value in mistaken(rng, golds)]
    outputs[::10] = ["no {json"] * 6
    outputs[5] = f"Here: {json.dumps(golds[5])}"
    predictions = evaluated(tmp_path, JsonTask(tmp_path / "schema.json"), golds, outputs)
    found = figures(tmp_path)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    answers = [(item["answer"], item["reference"]) for item in predictions]
    assert found["exact_match"] == pytest.approx(sum(answer == gold for answer, gold in answers) / 60)
    assert found["schema_valid"] == pytest.approx(sum(validator.is_valid(answer) for answer, _ in answers) / 60)
    assert found["valid_json"] == pytest.approx(sum(item["output"].startswith("{") for item in predictions) / 60)
    assert found["parse_failure_rate"] == pytest.approx(0.1)
    for name in ("n", "word"):
        right = sum((answer or {}).get(name) == gold[name] for answer, gold in answers)
        assert found["per_field"][name] == {"accuracy": pytest.approx(right / 60), "support": 60}
    assert 0 < found["exact_match"] < found["schema_valid"] < 1


def test_tool_calls(tmp_path: Path) -> None:
    rng = random.Random(9)
    golds = [[{"name": rng.choice(["f", "g"]), "arguments": {"n": n, "s": str(n)}} for n in range(1 + number % 2)]
             for number in range(60)]  # fmt: skip
    said = ["".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
            for calls in mistaken(rng, golds)]  # fmt: skip
    said[::10] = ["It rains."] * 6
    said[5::10] = ["<tool_call>\n{broken\n</tool_call>"] * 6
    predictions = evaluated(tmp_path, ToolCallTask(), golds, said)
    found = figures(tmp_path)
    again: dict[str, list[float]] = {"exact_match": [], "names_match": [], "calls_found": []}
    for item in predictions:
        calls = [json.dumps(json.loads(call), sort_keys=True) for call in re.findall(r"\{\".*\}", item["output"])]
        wanted = [json.dumps(call, sort_keys=True) for call in item["reference"]]
        names = [sorted(json.loads(call)["name"] for call in side) for side in (calls, wanted)]
        again["exact_match"].append(Counter(calls) == Counter(wanted))
        again["names_match"].append(names[0] == names[1])
        again["calls_found"].append(sum((Counter(calls) & Counter(wanted)).values()) / len(wanted))
    for name, values in again.items():
        assert found[name] == pytest.approx(sum(values) / 60), name
        assert 0.2 < found[name] < 0.9
    assert found["mistakes"]["unreadable"] == 6
    assert found["mistakes"]["no call"] == 6
    assert set(found["confidence"]) == set(again)


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    task = FunctionTask(f"{tmp_path / 'own.py'}:score")
    golds = [f"answer {number}" for number in range(40)]
    references = [task.reference(Row({"id": number}, "x", number), gold) for number, gold in enumerate(golds)]
    predictions = evaluated(tmp_path, task, references, mistaken(random.Random(8), golds))
    found = figures(tmp_path)
    right = [item["output"] == item["reference"]["answer"] for item in predictions]
    assert found["score"] == pytest.approx(sum(right) / 40)
    assert found["length"] == pytest.approx(sum(len(item["output"]) for item in predictions) / 40)
    assert 0.5 < found["score"] < 1
    assert found["mistakes"]["score below 1"] == 40 - sum(right)
