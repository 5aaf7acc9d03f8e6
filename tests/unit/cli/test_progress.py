"""What a run looks like on terminals of several widths, and where there is no terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tunesmith import notices
from tunesmith.cli import progress, sweep

FACTS: dict[str, Any] = {
    "model": {
        "name": "nano-mistral", "total": 1_234_567, "trainable": 12_345, "held": "full precision with LoRA",
        "precision": "float32", "attention": "sdpa", "device": "cpu",
    },
    "data": {
        "train_rows": 1200, "eval_rows": 200, "train_tokens": 45_678, "trained_share": 0.31, "dropped": 1, "cut": 2,
    },
    "plan": {
        "total_steps": 1500, "global_batch_size": 16, "steps_per_epoch": 75, "warmup_steps": 5, "num_processes": 1,
    },
}  # fmt: skip
LOSSES = [5.0 - 0.16 * step for step in range(30)]
SAMPLE = {"question": "Premise: a man walks his dog.\nAnswer:", "answer": "\x1b[31mentailment " + "word " * 40}


@pytest.fixture(autouse=True)
def as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notices.VERBOSITY, raising=False)
    monkeypatch.setattr(notices, "_listener", notices._to_stderr)


def terminal(width: int, encoding: str = "utf-8") -> Console:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")  # as standard error has it
    return Console(file=stream, width=width, height=40, force_terminal=True, color_system=None, highlight=False)


def frame(bar: progress.Bar, width: int) -> list[str]:
    """The lines of the live part as they stand now."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(bar.get_renderable())
    return console.file.getvalue().rstrip("\n").splitlines()


def written(console: Console) -> str:
    console.file.flush()
    return console.file.buffer.getvalue().decode()


def shown(console: Console) -> progress.Terminal:
    listener = progress.Terminal(console)
    listener.on_start(FACTS)
    for step, loss in enumerate(LOSSES, start=1):
        listener.stepped(step * 50, 1500)
        listener.logged({"step": step * 50, "loss": loss, "learning_rate": 2e-4, "tokens_per_second": 12_345.6})
    listener.sampled(1500, [SAMPLE])
    return listener


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_with_losses_and_a_sample_below_it(width: int) -> None:
    console = terminal(width)
    listener = shown(console)
    bar, losses, sample = frame(listener._bar, width)
    listener.logged({"step": 1500, "eval_loss": 0.31, "eval_token_accuracy": 0.91, "eval_exact_match": 0.8})
    listener.on_end()
    assert bar.startswith("training ━")
    assert "1500/1500 eta 00:00" in bar
    assert losses.startswith("loss 0.36  █")
    assert losses.endswith("▁  lr 2.00e-04  12,345.6 tok/s")
    assert sample.startswith("sample at 1500: Premise: a man walks his... -> ")
    assert sample.endswith("…")
    text = written(console)
    above = [line for line in text.splitlines() if line and "\x1b" not in line]
    assert max(map(len, [*above, bar, losses, sample])) <= width
    assert above[0].startswith("model     nano-mistral: 1,234,567 parameters")
    assert [line[:10].strip() for line in above if not line.startswith(" ")] >= ["model", "data", "steps"]
    assert text.splitlines()[-1].endswith("losses    5 ██▇▇▇▆▆▆▆▅▅▅▄▄▄▃▃▃▃▂▂▂▁▁ 0.36")
    assert "\x1b[31m" not in sample


def test_an_answer_stands_beside_the_one_that_was_expected() -> None:
    listener = shown(terminal(80))
    listener.sampled(20, [SAMPLE | {"answer": "neutral", "reference": "entailment\nsince walking is moving"}])
    assert frame(listener._bar, 80)[2] == "sample at 20: neutral (expected: entailment since walking is moving)"
    listener.sampled(30, [])
    assert frame(listener._bar, 80)[2].startswith("sample at 20: ")


def test_without_unicode_there_are_no_bars_of_losses() -> None:
    console = terminal(80, "ascii")
    listener = shown(console)
    _, losses, sample = frame(listener._bar, 80)
    assert losses == "loss 0.36  lr 2.00e-04  12,345.6 tok/s"
    assert len(sample) == 79
    assert sample.isascii()
    listener.on_end()
    assert written(console).splitlines()[-1].endswith("losses    5 to 0.36")


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 8, ""),
        ([1.0], 8, "▁"),
        ([2.0, 2.0], 8, "▁▁"),
        ([1.0, 2.0, 3.0], 8, "▁▅█"),
        ([4.0, 4.0, 1.0, 1.0], 2, "█▁"),
        ([float(value) for value in range(100)], 8, "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_row_of_bars(values: list[float], width: int, expected: str) -> None:
    assert progress.row_of_bars(values, width) == expected


@pytest.mark.parametrize("terminal_of", [lambda: Console(file=io.StringIO()), lambda: terminal(80)])
def test_lines_alone_where_nothing_can_be_drawn_again(
    terminal_of: Callable[[], Console], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe, and a terminal that cannot move its cursor."""
    monkeypatch.setenv("TERM", "dumb")
    listener = progress.make_listener(terminal_of())
    assert isinstance(listener, progress.Plain)
    listener.on_start(FACTS)
    listener.logged({"step": 50, "loss": "nan", "learning_rate": 1e-4})
    listener.sampled(50, [SAMPLE])
    listener.on_end()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert said[-1].startswith("step     50  loss nan  lr 1.00e-04  eta ")


def test_the_time_left_of_a_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of an earlier process took none of this one's time."""
    clock = iter([0.0, 0.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    listener = progress.Plain()
    listener.on_start(FACTS)
    for step in range(1001, 1011):
        listener.stepped(step, 1500)
    listener.logged({"step": 1010, "loss": 1.0, "learning_rate": 1e-4})
    assert capsys.readouterr().err.splitlines()[-1].endswith("eta 16:20")  # 490 steps of 2 s


def test_a_long_run_keeps_no_more_losses_than_can_be_drawn() -> None:
    listener = progress.Terminal(terminal(80))
    for step in range(3 * progress.MOST_LOSSES):
        listener.logged({"step": step, "loss": float(step), "learning_rate": 1e-4})
    assert len(listener._losses) < progress.MOST_LOSSES
    assert listener._losses == sorted(listener._losses)


def test_a_sweep_shows_the_trial_under_way_and_those_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal(80)
    bars: list[progress.Bar] = []

    class Kept(progress.Bar):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            bars.append(self)

    monkeypatch.setattr(progress, "Bar", Kept)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    trials = [
        SimpleNamespace(name=f"trial-{number}", settings={"seed": number}, value=value, seconds=2.0, status="finished")
        for number, value in enumerate((0.5, 0.25, None), start=1)
    ]
    trials[2].status = "running"
    state: Any = SimpleNamespace(trials=trials, total=4, metric="eval_loss", mode="min")
    with sweep.following(state) as (began, settled):
        began(trials[2])
        bar, trial, values = frame(bars[0], 80)
        assert "2/4" in bar
        assert trial == "trial-3  seed 3"
        assert values == "eval_loss  █▁  best 0.25"
        trials[2].status, trials[2].value = "finished", 0.75
        settled(trials[2])
        assert frame(bars[0], 80)[1:] == ["eval_loss  ▅▁█  best 0.25"]
