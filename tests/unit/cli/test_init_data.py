"""``tunesmith init --data``: what it writes loads and passes ``check``; what it cannot read it refuses by name."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.config.load import load
from tunesmith.config.schema import RunConfig

CHAT = [{"role": "user", "content": "hello {}"}, {"role": "assistant", "content": "hi {}"}]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices.clear()
    monkeypatch.chdir(tmp_path)


def numbered(value: Any, number: int) -> Any:
    """``value`` with ``{}`` replaced, however deep."""
    text = json.dumps(value).replace("{}", str(number))
    return json.loads(text)


def write_csv(name: str, number: int = 30, **columns: Any) -> str:
    with open(name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for index in range(number):
            values = [value[index % len(value)] if isinstance(value, list) else value for value in columns.values()]
            writer.writerow([numbered(value, index) for value in values])
    return name


def write_lines(name: str, number: int = 30, **columns: Any) -> str:
    rows = [numbered(columns, index) for index in range(number)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def write_parquet(name: str) -> str:
    import pyarrow
    import pyarrow.parquet

    table = {"sentence": [f"row {index}" for index in range(30)], "label": [index % 3 for index in range(30)]}
    pyarrow.parquet.write_table(pyarrow.table(table), name)
    return name


def configuration(folder: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    with monkeypatch.context() as there:
        there.chdir(folder)
        return load("config.yaml", []).config


FILES = {
    "labels": lambda: write_csv("a.csv", text="row {}", label=["good", "bad"]),
    "tabs, and labels that are numbers": write_parquet,
    "odd names": lambda: write_csv("a b.csv", Frage="wer ist {}", Antwort=["ja", "nein"]),
    "two texts": lambda: write_lines("a.jsonl", title="t {}", body="b {}", topic="x {}"),
    "chats": lambda: write_lines("a.jsonl", messages=CHAT),
    "chats in CSV": lambda: write_csv("a.csv", dialog=json.dumps(CHAT)),
    "pairs that say nothing between": lambda: write_lines("a.jsonl", prompt="what is {}?", completion="it is {}"),
    "one text": lambda: write_lines("a.jsonl", story="once {} upon a time"),
    "instructions": lambda: write_lines("a.jsonl", instruction="add {}", input="to it", output="done {}"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_written_passes_check(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = FILES[kind]
    data = make("a.parquet") if make is write_parquet else make()  # type: ignore[operator]
    assert main(["init", "--data", data, "made/here", "--yes"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:3] == [
        "cd made/here", "tunesmith check config.yaml", "tunesmith preview config.yaml --num 1",
    ]  # fmt: skip
    config = configuration("made/here", monkeypatch)
    assert config.data.train_data == f"../../{data}"
    assert config.data.dev_split == pytest.approx(0.2)
    assert not config.training.save_merged_model
    labelled = kind in ("labels", "tabs, and labels that are numbers", "odd names")
    assert (config.evaluation.task == "classification") == labelled
    assert (config.data.dev_stratify_by is not None) == labelled
    written = Path("made/here/config.yaml").read_text(encoding="utf-8")
    assert "  # tokens; the longest of your rows has" in written


def test_the_answer_begins_where_the_model_sees_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--data", write_csv("a.csv", text="row {}", label=["good", "bad"]), "here"]) == 0
    monkeypatch.chdir("here")
    capsys.readouterr()
    assert main(["preview", "config.yaml", "--num", "1"]) == 0
    shown = capsys.readouterr().out
    assert "[/INST]" in shown.replace(" ", "")


def test_labels_are_texts_also_where_they_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["init", "--data", write_parquet("a.parquet"), "here"]) == 0
    assert configuration("here", monkeypatch).evaluation.labels == ["0", "1", "2"]


def test_rows_without_answer_are_counted_and_nulls_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["good", "bad", "good", "bad", "good", "bad", "good", ""]
    assert main(["init", "--data", write_csv("a.csv", 32, text="row {}", label=labels), "here"]) == 0
    assert configuration("here", monkeypatch).data.empty_completion == "drop"
    assert main(["init", "--data", write_lines("b.jsonl", question="q {}", answer=None), "there"]) == 3
    assert "error: b.jsonl" in capsys.readouterr().err
    assert not Path("there").exists()


def test_questions_that_occur_twice_stay_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"row {index}" for index in range(20)]
    assert main(["init", "--data", write_csv("a.csv", 30, text=texts, label=["good", "bad"]), "here"]) == 0
    assert configuration("here", monkeypatch).data.dev_group_by == "prompt"


def test_chats_of_two_turns_in_a_row_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [CHAT[0], {"role": "user", "content": "are you there?"}, CHAT[1]]
    assert main(["init", "--data", write_lines("a.jsonl", messages=chat), "here"]) == 0
    assert configuration("here", monkeypatch).data.turn_order == "merge"


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    data = write_csv("a.csv", text="row {}", label=["good", "bad"])
    Path("config.yaml").write_text("mine", encoding="utf-8")
    assert main(["init", "--data", data, "."]) == 6
    assert "config.yaml: is there already" in capsys.readouterr().err
    assert Path("config.yaml").read_text(encoding="utf-8") == "mine"


REFUSED = [
    (["--data", "none.csv", "d"], 3, "none.csv: there is no such file"),
    (["--data", "odd.csv", "d"], 3, "there are alpha, beta, gamma; name them: --prompt COLUMN --answer COLUMN"),
    (["--data", "odd.csv", "d", "--prompt", "alfa"], 2, "no row has the column 'alfa'; did you mean 'alpha'"),
    (["--data", "odd.csv", "d", "--prompt", "beta", "--answer", "beta"], 2, "both question and answer"),
    (["--data", "odd.csv"], 2, "the folder"),
    (["--data", "empty.csv", "d"], 3, "no examples"),
    (["nli_cott", "d"], 2, "did you mean 'nli_cot'"),
    (["nli_cot", "d", "--answer", "x"], 2, "--answer belongs to --data"),
    (
        ["--data", "odd.csv", "d", "--prompt", "alpha", "--answer", "beta", "--model", "no/such/model"],
        4,
        "no/such/model",
    ),
]


@pytest.mark.parametrize(("words", "code", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_refusals(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv("odd.csv", alpha="a {}", beta="b {}", gamma="c {}")
    write_csv("empty.csv", 0, text="", label="")
    assert main(["init", *words]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not Path("d").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_three_questions_at_most_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv("odd.csv", alpha="a {}", beta="b {}", gamma="c {}")
    monkeypatch.setattr("sys.stdin", Terminal("gamma\nalpha\n\n"))
    assert main(["init", "--data", data, "here"]) == 0
    asked = [line for line in capsys.readouterr().err.splitlines() if "?" in line]
    assert asked == [
        "Which column is the question? (alpha, beta, gamma)",
        "Which column is the answer?",
        "Which model? (a folder, or a name on the hub) [nano-mistral]",
    ]
    assert configuration("here", monkeypatch).data.columns == {"question": "gamma", "answer": "alpha"}
    monkeypatch.setattr("sys.stdin", Terminal("delta\n"))
    assert main(["init", "--data", data, "there"]) == 2
    assert "there is no column 'delta'" in capsys.readouterr().err


def test_chats_are_asked_for_the_model_alone_and_flags_for_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    assert main(["init", "--data", write_lines("a.jsonl", messages=CHAT), "one"]) == 0
    assert capsys.readouterr().err.count("?") == 1
    words = ["--prompt", "text", "--answer", "label", "--model", "nano-mistral"]
    assert main(["init", "--data", write_csv("a.csv", text="row {}", label=["good", "bad"]), "two", *words]) == 0
    assert "?" not in capsys.readouterr().err
