"""The picture of a run: its figures are those of the log, and its size is fit for a page."""

from __future__ import annotations

import struct
from pathlib import Path

from tunesmith.report.folder import write_jsonl
from tunesmith.report.plots import draw_curves, read_series


def log(folder: Path) -> None:
    entries = [{"step": step, "epoch": 0.1, "loss": 5 / step, "learning_rate": 1e-3} for step in (1, 2, 3)]
    entries[1]["loss"] = "nan"
    entries.append({"step": 2, "eval_loss": 2.0, "eval_token_accuracy": 0.5, "eval_macro_f1": 0.4, "eval_runtime": 1.0})
    entries.append({"step": 3, "eval_loss": 1.9, "eval_token_accuracy": 0.6, "eval_macro_f1": 0.3, "eval_runtime": 1.0})
    write_jsonl(folder / "metrics.jsonl", entries)


def test_series_are_the_log(tmp_path: Path) -> None:
    log(tmp_path)
    series = read_series(tmp_path / "metrics.jsonl")
    assert series["loss"] == ([1, 3], [5.0, 5 / 3])
    assert series["eval_macro_f1"] == ([2, 3], [0.4, 0.3])
    assert "epoch" not in series


def test_a_picture_1200_pixels_wide_is_drawn(tmp_path: Path) -> None:
    log(tmp_path)
    picture = draw_curves(tmp_path, {"step": 2, "metric": "eval_macro_f1"})
    assert picture == tmp_path / "curves.png"
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert (width, height) == (1200, 4 * 340)


def test_a_run_of_one_point_has_no_picture(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    assert draw_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()
