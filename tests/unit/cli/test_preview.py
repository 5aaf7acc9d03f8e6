"""``tunesmith preview``: what it shows is what the real trainer draws, token by token and label by label."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from helpers import resolved_from, story_rows, write_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.data.preview import TokenReader

COMMON: dict[str, Any] = {"max_length": 256, "per_device_train_batch_size": 3, "lora_dropout": 0.0}


def command(model: Path, data: str, *more: str, **settings: Any) -> list[str]:
    flags = [part for name, value in (COMMON | settings).items() for part in (f"--{name}", str(value))]
    return ["preview", "--model_name_or_path", str(model), "--train_data", data, *flags, *more]


def shown(capsys: pytest.CaptureFixture[str], argv: list[str]) -> list[dict[str, Any]]:
    """The rows of ``preview --json``."""
    notices.clear()
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"rows"}
    for row in result["rows"]:
        assert set(row) <= {"source", "tokens", "note"}
        assert all(set(token) == {"id", "text", "trained", "weight"} for token in row["tokens"])
    return list(result["rows"])


Drawn = list[tuple[str, list[int], list[int], list[float]]]


def drawn(model: Path, data: str, **settings: Any) -> Drawn:
    """Origin, ids, labels and weights of every example in the first epoch of the real trainer, in its order."""
    from tunesmith.model.load import load_model
    from tunesmith.train.processes import Processes
    from tunesmith.train.run import build_trainer, inference_contract, trainer_arguments
    from tunesmith.train.setup import set_up

    resolved = resolved_from(model_name_or_path=str(model), train_data=data, **(COMMON | settings))
    setup = set_up(resolved, Processes())
    loaded = load_model(resolved, setup.precision, setup.device)
    trainer = build_trainer(setup, loaded, inference_contract(setup, loaded), trainer_arguments(setup))
    loader = trainer.get_train_dataloader()
    loader.set_epoch(0)
    examples = []
    for batch in loader:
        ids, labels = batch["input_ids"], batch["labels"]
        weights = batch.get("weights", (labels != -100).float())
        if "attention_mask" in batch:
            lengths = batch["attention_mask"].sum(1).tolist()
            pieces = [(row, 0, length) for row, length in enumerate(lengths)]
        else:
            starts = [at for at, position in enumerate(batch["position_ids"][0].tolist()) if position == 0]
            pieces = [(0, start, end) for start, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True)]
        for origin, (row, start, end) in zip(batch["origins"], pieces, strict=True):
            whole = (ids, labels, weights)
            examples.append((origin, *(tensor[row, start:end].tolist() for tensor in whole)))
    return examples


def assert_same(rows: list[dict[str, Any]], expected: Drawn) -> None:
    """The rows of a preview are the examples of the trainer: origins, ids, labels and weights."""
    assert [row["source"] for row in rows] == [origin for origin, *_ in expected]
    for row, (_, ids, labels, weights) in zip(rows, expected, strict=True):
        assert [token["id"] for token in row["tokens"]] == ids
        assert [token["trained"] for token in row["tokens"]] == [label != -100 for label in labels]
        counted = [weight if label != -100 else 0.0 for weight, label in zip(weights, labels, strict=True)]
        assert [token["weight"] for token in row["tokens"]] == counted


@pytest.mark.parametrize("batching", ["padded", "length_grouped", "packed", "unpadded"])
@pytest.mark.parametrize("data_seed", [None, 5])
def test_rows_are_those_that_the_trainer_draws(
    batching: str,
    data_seed: int | None,
    stories_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(20))
    settings: dict[str, Any] = {"batching": batching, "output_dir": str(tmp_path / "run")}
    settings |= {} if data_seed is None else {"data_seed": data_seed}
    expected = drawn(stories_model, data, **settings)
    rows = shown(capsys, command(stories_model, data, "--num", "20", **settings))
    assert len(rows) == len(expected) == 20
    assert [row["source"] for row in rows] == [origin for origin, *_ in expected]
    trained = untrained = 0
    assert_same(rows, expected)
    for row in rows:
        trained += sum(token["trained"] for token in row["tokens"])
        untrained += sum(not token["trained"] for token in row["tokens"])
    assert trained > 100
    assert untrained > 100
    assert [origin for origin, *_ in expected] != [f"{data}:{line}" for line in range(1, 21)]


@pytest.mark.parametrize("batching", ["padded", "packed", "unpadded"])
def test_weights_are_those_of_the_batch(
    batching: str, stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in story_rows(6)]
    rows[1]["weight"], rows[4]["weight"] = 0.5, 2
    data = write_rows(tmp_path / "rows.jsonl", rows)
    settings: dict[str, Any] = {"batching": batching, "output_dir": str(tmp_path / "run")}
    expected = drawn(stories_model, data, **settings)
    shown_rows = shown(capsys, command(stories_model, data, "--num", "6", **settings))
    assert_same(shown_rows, expected)
    assert {token["weight"] for row in shown_rows for token in row["tokens"]} == {0.0, 0.5, 1.0, 2.0}


def test_streamed_rows_are_those_that_the_trainer_draws(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(9))
    settings: dict[str, Any] = {"max_steps": 3, "output_dir": str(tmp_path / "run")}
    expected = drawn(stories_model, data, streaming=True, **settings)
    assert_same(shown(capsys, command(stories_model, data, "--num", "9", streaming="true", **settings)), expected)


def test_seeds_give_other_orders_and_the_first_batch_is_the_default(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(30))
    first = shown(capsys, command(stories_model, data))
    assert len(first) == 3
    assert shown(capsys, command(stories_model, data, num=7))[:3] == first
    assert shown(capsys, command(stories_model, data, seed=1)) != first
    assert len(shown(capsys, command(stories_model, data, per_device_train_batch_size=12))) == 8


def test_neither_weights_nor_model_libraries_are_needed(stories_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(stories_model / name, folder)
    data = write_rows(tmp_path / "rows.jsonl", story_rows(5))
    heavy = ("trl", "peft", "bitsandbytes", "datasets", "transformers.modeling_utils")
    program = (
        "import sys\nfrom tunesmith.cli.main import main\n"
        f"code = main({command(folder, data, '--json')!r})\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert len(json.loads(done.stdout)["rows"]) == 3


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_texts_of_tokens_are_together_the_text_of_all(text: str, tokenizer: Any) -> None:
    ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    texts = TokenReader(tokenizer, {tokenizer.eos_token_id}).texts(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_pieces_of_a_character_come_with_its_last_token(gpt2_tokenizer: Any) -> None:
    ids = gpt2_tokenizer("a 𓀀 b").input_ids
    texts = TokenReader(gpt2_tokenizer, set()).texts(ids)
    assert "".join(texts) == "a 𓀀 b"
    assert "" in texts
    assert not any("\ufffd" in text for text in texts)


def long_and_short(tmp_path: Path) -> str:
    """Rows of which 2, 4 and 5 have more than 60 tokens; the fourth is the longest."""
    rows = [
        {"prompt": "Once upon a time, " * times, "completion": f" Tom had {times} toys."}
        for times in (1, 20, 2, 40, 12)
    ]
    return write_rows(tmp_path / "rows.jsonl", rows)


def test_chosen_rows(stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = long_and_short(tmp_path)

    def lines(*more: str, **settings: Any) -> list[int]:
        rows = shown(capsys, command(stories_model, data, *more, max_length=60, **settings))
        return [int(row["source"].rpartition(":")[2]) for row in rows]

    assert lines("--where", "dropped", too_long="drop") == [2, 4, 5]
    assert lines("--where", "dropped", too_long="truncate_prompt") == []
    assert lines("--where", "cut", too_long="truncate_prompt") == [2, 4, 5]
    assert lines("--where", "cut", "--num", "2", too_long="truncate_prompt") == [2, 4]
    assert lines("--where", "longest", "--num", "3", too_long="drop") == [4, 2, 5]
    assert lines("--row", "3", too_long="drop") == [3]


def test_rows_that_are_not_trained_say_why(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = long_and_short(tmp_path)

    def row(**settings: Any) -> dict[str, Any]:
        return shown(capsys, command(stories_model, data, "--row", "2", max_length=60, **settings))[0]

    dropped = row(too_long="drop")
    assert dropped["note"] == "dropped: too_long"
    assert len(dropped["tokens"]) > 60
    assert not any(token["trained"] for token in dropped["tokens"])
    assert row(too_long="error")["note"].startswith("refused: ")
    cut = row(too_long="truncate_prompt")
    assert cut["note"] == f"cut (truncate_prompt): 60 of {len(dropped['tokens'])} tokens are left"
    assert len(cut["tokens"]) == 60
    assert cut["tokens"][-1]["trained"]


def test_what_training_would_refuse_is_refused(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = long_and_short(tmp_path)
    assert main(command(stories_model, data, max_length=60)) == 3
    assert f"error: {data}:2: " in capsys.readouterr().err
    assert main(command(stories_model, data, "--row", "99")) == 3
    assert "no row of this run stands at line 99" in capsys.readouterr().err
    assert main(command(stories_model, data, "--row", "1", "--where", "cut")) == 2
    assert main(command(stories_model, data, "--num", "0")) == 2
    assert main(command(tmp_path / "absent", data)) == 4


NASTY = {
    "prompt": "a \x1b[31mred\x1b]0;title\x07 \u202eright\u202c \u200b|",
    "completion": " <b>bold</b> [bold]rich[/bold]\r\nend \x9b31m",
}


@pytest.mark.parametrize("colours", [False, True])
def test_content_cannot_steer_the_terminal(
    colours: bool,
    stories_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "2000")
    data = write_rows(tmp_path / "rows.jsonl", [NASTY])
    notices.clear()
    assert main(command(stories_model, data)) == 0
    out = capsys.readouterr().out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert (plain != out) == colours
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e]", plain)
    for text in (r"\x1b[31mred\x1b]0;title\x07", r"\u202eright", r"\u202c", "<b>bold</b> [bold]rich[/bold]", r"\x0d↵"):
        assert text in plain
    if not colours:
        marked = plain[plain.index("⟦", plain.index(":1")) : plain.rindex("⟧") + 1]
        assert marked.startswith("⟦ <b>bold")
        assert marked.endswith("</s>⟧")
        assert "⟦" not in marked[1:]


def test_weights_that_are_not_one_are_marked() -> None:
    from tunesmith.cli.preview import coloured, marked
    from tunesmith.data.preview import PreviewRow, Token

    tokens = (
        Token(1, "ask", False, 0.0, False, False),
        Token(2, " half", True, 0.5, False, False),
        Token(3, " more", True, 0.5, False, False),
        Token(4, " full", True, 1.0, False, False),
        Token(5, "</s>", True, 1.0, True, True),
    )
    row = PreviewRow("f:1", tokens)
    assert marked(row) == "ask⟦x0.5  half more⟧⟦ full</s>⟧"
    assert coloured(row).plain == "ask×0.5 half more×1 full</s>"
    assert row.end_is_trained
    assert row.num_trained == 4
    assert not PreviewRow("f:1", tokens[:-1]).end_is_trained
