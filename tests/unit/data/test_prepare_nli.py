"""NLI fine-tuning files: selections, the split by premise, the leak check, and errors with their lines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import main
from tunesmith.data.nli import nli_text
from tunesmith.data.prepare_nli import check_no_leak, prepare_nli
from tunesmith.errors import DataError, DataErrors
from tunesmith.synthetic.nli import make_nli_thoughts


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def thought(number: int, *, predicted: int, true: int, premise: str | None = None) -> dict[str, Any]:
    return {
        "id": f"t{number}",
        "premise": premise or f"premise {number}",
        "hypothesis": f"hypothesis {number}",
        "thought_process": f"step 1: thought {number}.",
        "predicted_label": predicted,
        "true_label": true,
        "correct": predicted == true,
    }


def reflection(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key != "correct"}
    return {**kept, "error_analysis": "a slip", "improved_thought_process": f"step 1: better {row['id']}."}


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """Two right thoughts and a wrong one with its reflection."""
    rows = [thought(1, predicted=1, true=1), thought(2, predicted=0, true=0), thought(3, predicted=1, true=0)]
    return {
        "thoughts": write(tmp_path / "thoughts.jsonl", rows),
        "reflections": write(tmp_path / "reflections.jsonl", [reflection(rows[2])]),
    }


def answers(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    found = []
    for row in rows:
        answer = json.loads(row["text"].partition("[/INST] ")[2].removesuffix(" </s>"))
        found.append((answer["thought_process"], answer["predicted_label"]))
    return found


RIGHT = [("step 1: thought 1.", 1), ("step 1: thought 2.", 0)]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("correct", RIGHT),
        ("reflected", [*RIGHT, ("step 1: better t3.", 0)]),
        ("all", [*RIGHT, ("step 1: thought 3.", 1)]),
    ],
)
def test_what_each_selection_trains_on(three: dict[str, str], select: Any, expected: list[tuple[str, int]]) -> None:
    prepared = prepare_nli(**three, select=select, eval_share=0)
    assert answers(prepared.train) == expected
    assert prepared.eval == []


def test_a_row_is_the_text_of_the_document(three: dict[str, str]) -> None:
    row = prepare_nli(**three, select="correct", eval_share=0).train[0]
    assert row == {"id": "t1", "text": nli_text("premise 1", "hypothesis 1", "step 1: thought 1.", 1)}
    assert row["text"].startswith("<s>[INST] Premise: premise 1\nHypothesis: hypothesis 1\n\nUse chain of thought")
    assert row["text"].endswith('"predicted_label": 1} </s>')


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    thoughts, reflections = make_nli_thoughts(400, seed=3)
    return {
        "thoughts": write(folder / "thoughts.jsonl", thoughts),
        "reflections": write(folder / "reflections.jsonl", reflections),
    }


def premise_of(row: dict[str, Any]) -> str:
    return str(row["text"].partition("Premise: ")[2].partition("\nHypothesis: ")[0])


def test_no_premise_is_on_both_sides_and_every_selection_is_judged_on_the_same_rows(world: dict[str, str]) -> None:
    by_selection = {name: prepare_nli(**world, select=name) for name in ("correct", "reflected", "all")}  # type: ignore[arg-type]
    assert len(by_selection) == 3
    for prepared in by_selection.values():
        sides = {premise_of(row) for row in prepared.train}, {premise_of(row) for row in prepared.eval}
        assert len(sides[0]) > 100
        assert len(sides[1]) > 10
        assert not sides[0] & sides[1]
    assert by_selection["correct"].eval == by_selection["reflected"].eval == by_selection["all"].eval
    assert len(by_selection["reflected"].train) > len(by_selection["correct"].train)


def test_evaluation_rows_carry_true_labels(world: dict[str, str]) -> None:
    true = {}
    for line in Path(world["thoughts"]).read_text().splitlines():
        row = json.loads(line)
        true[row["premise"], row["hypothesis"]] = row["true_label"]
    rows = prepare_nli(**world, select="all").eval
    assert len(rows) > 20
    for row, (_, label) in zip(rows, answers(rows), strict=True):
        hypothesis = row["text"].partition("\nHypothesis: ")[2].partition("\n")[0]
        assert label == true[premise_of(row), hypothesis]


def test_the_seed_decides_and_the_share_is_kept(world: dict[str, str]) -> None:
    first, again = (prepare_nli(**world, select="reflected", seed=1) for _ in range(2))
    other = prepare_nli(**world, select="reflected", seed=2)
    assert first == again
    assert {row["id"] for row in first.eval} != {row["id"] for row in other.eval}
    premises = {premise_of(row) for row in first.train + first.eval}
    half = prepare_nli(**world, select="reflected", eval_share=0.5)
    assert len({premise_of(row) for row in half.eval}) == round(len(premises) * 0.5)


def test_every_row_read_is_accounted_for(world: dict[str, str]) -> None:
    counts = prepare_nli(**world, select="correct").counts
    read = counts["thought rows read"] + counts["reflection rows read"]
    assert read == 400 + 120
    used = counts["training rows"] + counts["evaluation rows"]
    unused = counts["not selected by --select correct"] + counts["left out of evaluation: wrong label"]
    assert used + unused + counts.get("repeated rows left out", 0) == read


def test_an_evaluation_file_keeps_its_premises_out_of_training(three: dict[str, str], tmp_path: Path) -> None:
    row = {"id": "e", "text": nli_text(" Premise  1", "anything", "step 1: x.", 0)}
    held_out = write(tmp_path / "eval.jsonl", [row])
    prepared = prepare_nli(**three, select="correct", eval_file=held_out)
    assert answers(prepared.train) == RIGHT[1:]
    assert prepared.counts["left out: premise occurs in the evaluation file"] == 1
    untemplated = write(tmp_path / "rows.jsonl", [{"premise": "premise 2", "hypothesis": "h"}])
    assert answers(prepare_nli(**three, select="correct", eval_file=untemplated).train) == RIGHT[:1]


def test_the_leak_check_finds_a_leak_whatever_its_spacing() -> None:
    train = [{"id": "a", "text": nli_text("The dog  runs .", "h", "t", 1)}]
    check_no_leak(train, [{"premise": "A dog runs ."}])
    with pytest.raises(DataError, match="in training and in evaluation") as caught:
        check_no_leak(train, [{"premise": "the dog runs ."}])
    assert caught.value.where == "a"


def test_repeated_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [thought(1, predicted=1, true=1)] * 3
    prepared = prepare_nli(thoughts=write(tmp_path / "t.jsonl", rows), select="all", eval_share=0)
    assert len(prepared.train) == 1
    assert prepared.counts["repeated rows left out"] == 2


# Tables


def test_real_explanations_become_steps(real_data: Path) -> None:
    prepared = prepare_nli(csv=str(real_data / "nli_esnli" / "esnli_dev.csv"), eval_share=0.1)
    assert prepared.counts["table rows read"] == 9842
    assert len(prepared.train) + len(prepared.eval) == 9842
    labels = Counter(label for _, label in answers(prepared.train + prepared.eval))
    assert labels == {1: 3329, 0: 3278 + 3235}
    premises = {premise_of(row) for row in prepared.train}, {premise_of(row) for row in prepared.eval}
    assert not premises[0] & premises[1]
    assert abs(len(premises[1]) / (len(premises[0]) + len(premises[1])) - 0.1) < 0.01
    rows = {row["id"]: row for row in prepared.train + prepared.eval}
    assert answers([rows["esnli_dev-3"]]) == [
        (
            "step 1: saying the two women are holding packages is a way to paraphrase that the packages they are "
            "holding are to go packages . step 2: sentence 1 states that two women are holding to-go packages ;  "
            "to-go packages are a form of package . step 3: women can embrace while they are holding packages .",
            1,
        )
    ]


@pytest.mark.parametrize(
    ("label", "expected"), [("1", 1), ("0", 0), ("entailment", 1), ("neutral", 0), ("Contradiction", 0)]
)
def test_labels_of_tables(tmp_path: Path, label: str, expected: int) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"premise,hypothesis,label,explanation_1\na dog runs,an animal moves,{label},dogs are animals\n")
    prepared = prepare_nli(csv=str(path), eval_share=0)
    assert answers(prepared.train) == [("step 1: dogs are animals .", expected)]
    assert prepared.train[0]["id"] == "t-2"


def test_columns_of_the_release_and_pairs_without_gold_label(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    header = "pairID,gold_label,Sentence1,Sentence2,Explanation_1"
    path.write_text(f"{header}\np1,entailment,a,b,because .\np2,-,c,d,unsure .\n")
    prepared = prepare_nli(csv=str(path), eval_share=0)
    assert [row["id"] for row in prepared.train] == ["p1"]
    assert prepared.counts["table rows left out: no gold label"] == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,b,2,because", "label is '2'"),
        (",b,1,because", "premise is ''"),
        ("a,b,1,", "neither thought_process nor explanation_1"),
        ("a,b,1", "3 fields where the header has 4"),
    ],
)
def test_a_broken_table_row_is_named(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"premise,hypothesis,label,explanation_1\na,b,1,because\n{row}\n")
    with pytest.raises(DataError) as caught:
        prepare_nli(csv=str(path), eval_share=0)
    assert caught.value.where == f"{path}:3"
    assert words in caught.value.what


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"predicted_label": 5}, "predicted_label is 5"),
        ({"predicted_label": True}, "predicted_label is True"),
        ({"thought_process": None}, "thought_process is None"),
        ({"correct": False}, "correct is False"),
        ({"premise": 3}, "premise is 3"),
    ],
)
def test_a_broken_thought_row_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    rows = [thought(1, predicted=1, true=1), thought(2, predicted=1, true=1) | change]
    path = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(DataError) as caught:
        prepare_nli(thoughts=path, select="all", eval_share=0)
    assert caught.value.where == f"{path}:2"
    assert words in caught.value.what


def test_all_broken_rows_are_listed(tmp_path: Path) -> None:
    rows = [thought(number, predicted=7, true=1) for number in range(5)]
    with pytest.raises(DataErrors) as caught:
        prepare_nli(thoughts=write(tmp_path / "t.jsonl", rows), select="all")
    (line,) = caught.value.lines()
    assert "t.jsonl:1: " in line
    assert line.endswith("(and 4 more: 2, 3, 4 ...)")


# The verb


@pytest.fixture
def arguments(three: dict[str, str], tmp_path: Path) -> list[str]:
    sources = ["--thoughts", three["thoughts"], "--reflections", three["reflections"]]
    return ["data", "prepare", "nli", *sources, "--eval_share", "0.34", "--output", str(tmp_path / "out")]


def test_the_verb_writes_files_and_a_record(arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main([*arguments, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    rows = {name: (tmp_path / "out" / name).read_text().splitlines() for name in ("train_ft.jsonl", "eval_ft.jsonl")}
    assert (len(rows["train_ft.jsonl"]), len(rows["eval_ft.jsonl"])) == (2, 1)
    assert (counts["training rows"], counts["evaluation rows"]) == (2, 1)
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["select"] == "reflected"
    assert record["counts"] == counts
    assert len(record["sources"]) == 2


def test_nothing_is_written_over(arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(arguments) == 0
    before = (tmp_path / "out" / "train_ft.jsonl").read_bytes()
    assert main([*arguments, "--seed", "5"]) == 6
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "train_ft.jsonl").read_bytes() == before
    assert main([*arguments, "--select", "all", "--overwrite"]) == 0
    assert (tmp_path / "out" / "train_ft.jsonl").read_bytes() != before


def test_a_broken_line_exits_3_and_writes_nothing(
    arguments: list[str], three: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    with Path(three["thoughts"]).open("a") as stream:
        stream.write('{"id": "t4", \n')
    assert main(arguments) == 3
    assert f"error: {three['thoughts']}:4: not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "extra",
    [["--csv", "x.csv"], ["--eval_share", "1.5"], ["--select", "some"], ["--no_such_option", "1"]],
)
def test_a_wrong_command_line_exits_2(arguments: list[str], extra: list[str], capsys: Any) -> None:
    assert main([*arguments, *extra]) == 2
    assert capsys.readouterr().err.startswith("error: command line: ")
