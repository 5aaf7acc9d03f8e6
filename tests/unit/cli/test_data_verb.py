"""``tunesmith data make`` and ``download``: the files they write and the ends they come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import main
from tunesmith.data.download import DATA_SETS, named_labels

FILES = {
    "nli": {
        "train_ft.jsonl": {"id", "text"},
        "eval_ft.jsonl": {"id", "text"},
        "train.jsonl": {"premise", "hypothesis", "thought_process", "predicted_label"},
        "heldout.jsonl": {"premise", "hypothesis", "thought_process", "predicted_label"},
        "thoughts.jsonl": {"thought_process", "predicted_label", "true_label", "correct"},
        "reflections.jsonl": {"error_analysis", "improved_thought_process", "true_label"},
    },
    "rag": {"train.jsonl": {"query", "answers", "positive_passages"}, "heldout.jsonl": {"query", "answers"}},
    "reasoning": {"train.jsonl": {"prompt", "response"}, "heldout.jsonl": {"prompt", "response"}},
}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("what", FILES)
def test_make_writes_rows_of_the_right_shape(what: str, tmp_path: Path) -> None:
    assert main(["data", "make", what, str(tmp_path), "--num_train", "60", "--num_heldout", "20"]) == 0
    for name, columns in FILES[what].items():
        made = rows(tmp_path / name)
        assert made
        assert all(columns <= set(row) for row in made)
    train, heldout = [name for name in FILES[what] if name.startswith(("train", "heldout", "eval"))][:2]
    assert (len(rows(tmp_path / train)), len(rows(tmp_path / heldout))) == (60, 20)


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        arguments = ["--num_train", "40", "--num_heldout", "8", "--seed", seed]
        assert main(["data", "make", "nli", str(tmp_path / folder), *arguments]) == 0
    contents = {folder: (tmp_path / folder / "train_ft.jsonl").read_bytes() for folder in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]


def test_made_files_go_through_prepare(tmp_path: Path) -> None:
    assert main(["data", "make", "nli", str(tmp_path), "--num_train", "100", "--num_heldout", "20"]) == 0
    sources = {
        "correct": ["--thoughts", str(tmp_path / "thoughts.jsonl")],
        "csv": ["--csv", str(tmp_path / "source.csv")],
    }
    out = str(tmp_path / "out")
    held_out = ["--eval_file", str(tmp_path / "eval_ft.jsonl")]
    assert main(["data", "prepare", "nli", *sources["correct"], *held_out, "--output", out]) == 0
    assert len(rows(tmp_path / "out" / "train_ft.jsonl")) == 70
    # a source table has labels and no thoughts
    assert main(["data", "prepare", "nli", *sources["csv"], "--output", out + "2"]) == 3


def test_make_writes_nothing_over(tmp_path: Path, capsys: Any) -> None:
    arguments = ["data", "make", "reasoning", str(tmp_path), "--num_train", "5", "--num_heldout", "5"]
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "1"]) == 6
    assert "exist already" in capsys.readouterr().err
    assert main([*arguments, "--seed", "1", "--overwrite"]) == 0


@pytest.mark.parametrize("extra", [["--num_train", "0"], ["--num_train", "many"], ["stray"], ["--seeed", "1"]])
def test_a_wrong_command_line_exits_2(extra: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "make", "nli", str(tmp_path), *extra]) == 2
    assert capsys.readouterr().err.startswith("error: command line: ")


def test_download_says_that_the_hub_is_out_of_reach(tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "download", "esnli", str(tmp_path)]) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("error: esnli/esnli: cannot be downloaded: ")
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_download_knows_its_names(tmp_path: Path, capsys: Any) -> None:
    assert {"snli", "esnli", "gsm8k", "asqa"} <= set(DATA_SETS)
    assert main(["data", "download", "esnl", str(tmp_path)]) == 3
    assert "did you mean 'esnli' or 'snli'?" in capsys.readouterr().err


def test_class_labels_become_names() -> None:
    import datasets

    features = datasets.Features(
        {"premise": datasets.Value("string"), "label": datasets.ClassLabel(names=["entailment", "neutral"])}
    )
    data = datasets.Dataset.from_dict({"premise": ["a", "b", "c"], "label": [0, 1, -1]}, features=features)
    assert [row["label"] for row in named_labels(data)] == ["entailment", "neutral", "-"]


def test_cache_lists_and_clears(tmp_path: Path, stories_model: Path, capsys: Any, monkeypatch: Any) -> None:
    from helpers import resolved_from, story_rows, write_rows
    from tunesmith.model.tokenizer import load_tokenizer
    from tunesmith.train.prepare import prepare_data

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "kept"))
    assert main(["data", "cache"]) == 0
    assert "0 kept" in capsys.readouterr().out
    train = write_rows(tmp_path / "train.jsonl", story_rows(6))
    resolved = resolved_from(model_name_or_path=str(stories_model), train_data=train)
    prepare_data(resolved, load_tokenizer(resolved.config.model))
    assert main(["data", "cache", "--json"]) == 0
    (kept,) = json.loads(capsys.readouterr().out)["kept"]
    assert kept["examples"] == 6
    assert kept["train_data"] == train
    assert main(["data", "cache", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert list((tmp_path / "kept").iterdir()) == []
    assert main(["data", "cache", "--clear", "--cache_dir", str(tmp_path / "nowhere")]) == 0
    assert main(["data", "cache", "extra"]) == 2
