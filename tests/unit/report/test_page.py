"""The page of a run: it tells what the folder holds, of runs in any state; what strangers wrote stays words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import run_training, story_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.config.resolve import schema_defaults
from tunesmith.errors import ConfigError, StorageError
from tunesmith.evaluate.result import EvaluationResult, write_result
from tunesmith.report.folder import read_json, write_json, write_jsonl
from tunesmith.report.page import REPORT, write_report
from tunesmith.report.page_curves import curves
from tunesmith.report.page_facts import read_run
from tunesmith.report.page_tables import settings, side_by_side
from tunesmith.report.told import status_now
from tunesmith.report.told import text_of as as_text

NASTY = (
    "</td><script>document.title='taken'</script><img src=x onerror=alert(1)> $\\frac{1}$ {{ 7 * 7 }} \x1b[31m \u202e"
)


@pytest.fixture(scope="module")
def finished(stories_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("page")
    return Path(run_training(folder, stories_model, story_rows(6), eval_rows=story_rows(3, 1), max_steps=3).folder)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def judge(run: Path, right: list[bool], source: str = "eval.jsonl", **texts: Any) -> None:
    """Put an evaluation into a run folder."""
    rows = [
        {"source": f"{source}:{line}", "prompt": "Is it?", "reference": "yes", "output": "yes" if correct else "no",
         "answer": "yes" if correct else "no", "correct": correct} | texts
        for line, correct in enumerate(right, start=1)
    ]  # fmt: skip
    accuracy = sum(right) / len(right)
    metrics = {
        "task": "classification", "main_metric": "accuracy", "num_examples": len(right), "accuracy": accuracy,
        "confidence": {"accuracy": [0.25, 0.75]}, "mistakes": {"yes -> no": right.count(False)},
        "confusion_matrix": {"labels": ["yes", "no"], "columns": ["yes", "no", "?"], "counts": [[2, 1, 0], [0, 0, 0]]},
    }  # fmt: skip
    write_jsonl(run / "evaluation" / "predictions.jsonl", rows)
    write_json(run / "evaluation" / "metrics.json", metrics)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_a_finished_run_has_its_page_and_owns_it(finished: Path) -> None:
    page = text_of(finished / REPORT)
    assert '<span class="state finished">finished</span>' in page
    assert REPORT in read_json(finished / "run.json")["files"]
    for title in ("loss", "learning rate", "gradient norm", "throughput, tokens per second"):
        assert f"<h3>{title}</h3>" in page
    assert page.count('<svg class="curve"') >= 5
    assert "model.model_name_or_path" in page
    assert "<pre>" in page


def test_it_is_one_file_that_asks_for_nothing(run: Path) -> None:
    judge(run, [True, False])
    page = text_of(write_report([run]))
    assert "default-src 'none'" in page
    assert not re.search(r"""\bsrc\s*=|\baction\s*=|@import|https?:|<script|<link|href="(?!#)|url\((?!#)""", page)
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(names)


def test_settings_that_differ_from_the_default_come_first(run: Path) -> None:
    as_default = {path: as_text(json.loads(json.dumps(value))) for path, value in schema_defaults().items()}
    first, rest = settings([read_run(run)])
    told = [row.name for row in first.rows]
    differs = [row.cells[0].text != text for row in first.rows for text in [as_default[row.name]]]
    assert "training.max_steps" in told
    assert differs == sorted(differs, reverse=True)
    assert {row.cells[0].note for row in first.rows} >= {"command line"}
    assert rest.title == "Defaults"
    assert all(row.cells[0].text == as_default[row.name] for row in rest.rows)
    facts = read_json(run / "run.json")
    assert len(first.rows) + len(rest.rows) == len(facts["settings"])


def test_figures_matrix_and_answers_are_told(run: Path) -> None:
    judge(run, [True, True, False, False])
    page = text_of(write_report([run]))
    assert "0.2500 to 0.7500" in page
    assert "confusion matrix" in page
    assert "<h3>Wrong: 2</h3>" in page
    assert "<h3>Right: 2</h3>" in page
    assert "yes -&gt; no: 2" in page


def test_several_runs_show_where_they_differ(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    facts = read_json(other / "run.json")
    write_json(other / "run.json", facts | {"settings": facts["settings"] | {"training.learning_rate": 0.5}})
    judge(run, [True, True, False], source="../eval.jsonl")
    judge(other, [True, False, False], source="data/eval.jsonl")
    runs = [read_run(folder) for folder in (run, other)]
    assert [row.name for row in settings(runs)[0].rows] == ["training.learning_rate"]
    rows = side_by_side(runs)
    assert [split for split, _ in rows] == [True, False, False]
    assert [answer.correct for answer in rows[0][1] if answer] == [True, False]
    page = text_of(write_report([run, other], tmp_path / "both.html"))
    assert re.search(
        r'<tr class="differs"><th scope="row">training.learning_rate</th><td>0.001.*?class="other">0.5', page
    )
    assert "judged on different rows" not in page
    judge(other, [True, False])
    assert "judged on different rows" in text_of(write_report([run, other], tmp_path / "both.html"))
    with pytest.raises(ConfigError, match="named twice"):
        write_report([run, tmp_path / "other" / ".." / "run"])


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "b" / "run")
    page = text_of(write_report([run, Path(other)], tmp_path / "both.html"))
    assert f">{tmp_path.name}/run<" in page
    assert ">b/run<" in page


def test_a_run_under_way_with_a_torn_log_has_a_page(run: Path) -> None:
    facts = read_json(run / "run.json")
    kept = {name: facts[name] for name in facts if name not in ("result", "finished", "files", "best")}
    write_json(run / "run.json", kept | {"status": "running"})
    (run / "ledger.json").unlink()
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    page = text_of(write_report([run]))
    assert "this run is under way" in page
    assert "this run was killed" in text_of(write_report([run], status_of=status_now(lambda _: False)))
    assert "metrics.jsonl: 1 line is not whole" in page
    assert "no account of rows was written" in page
    assert '<svg class="curve"' in page


@pytest.mark.parametrize("name", ["ledger.json", "evaluation/metrics.json", "evaluation/predictions.jsonl"])
@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"training": 7, "confidence": [1], "per_class": {"a": 1}}', '"x"']
)
def test_files_of_any_content_are_borne(run: Path, name: str, content: str) -> None:
    judge(run, [True])
    (run / name).write_text(content)
    assert "Run it again" in text_of(write_report([run]))


def test_figures_of_any_kind_are_borne(run: Path) -> None:
    log = (
        '{"step": 1, "loss": NaN, "eval_x$": 1e308}\n{"step": "a", "loss": 1}\n{"step": 2, "loss": 1'
        + "0" * 400
        + "}\n"
    )
    (run / "metrics.jsonl").write_text(log + '{"step": 3, "loss": -1e308, "grad_norm": true}\n7\n')
    assert "Run it again" in text_of(write_report([run]))


def test_texts_of_others_stay_texts_and_secrets_stay_at_home(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SecretSecretSecret")
    judge(run, [True, False], source=NASTY, prompt=NASTY, output=NASTY + " hf_SecretSecretSecret", reference=NASTY)
    facts = read_json(run / "run.json")
    facts |= {"command": NASTY, "notices": [NASTY], "error": NASTY, "status": NASTY, "started": NASTY}
    write_json(run / "run.json", facts | {"versions": {NASTY: NASTY}})
    ledger = read_json(run / "ledger.json")
    ledger["training"]["sources"] = {NASTY: {"cut": {NASTY: [NASTY]}}}
    write_json(run / "ledger.json", ledger)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "eval_" + NASTY: 0.5, "memory" + NASTY: 1}) + "\n")
    page = text_of(write_report([run]))
    assert not re.search(r"<script|<img|\x1b|\u202e|hf_Secret", page)
    assert "&lt;HF_TOKEN&gt;" in page
    assert "{{ 7 * 7 }}" in page


def test_nothing_from_outside_the_folder_is_told(run: Path, tmp_path: Path) -> None:
    judge(run, [True])
    private = tmp_path / "private.jsonl"
    private.write_text('{"output": "of somebody else"}\n')
    (run / "evaluation" / "predictions.jsonl").unlink()
    (run / "evaluation" / "predictions.jsonl").symlink_to(private)
    page = text_of(write_report([run]))
    assert "of somebody else" not in page
    assert "leads out of the run folder" in page


def test_a_file_of_somebody_else_is_not_replaced(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    with pytest.raises(StorageError, match="is no report of ours"):
        write_report([run], mine)
    assert mine.read_text() == "mine"
    with pytest.raises(StorageError, match="no run folder"):
        write_report([tmp_path])


def test_the_verb_prints_where_the_page_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / REPORT).unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / REPORT}\n"
    assert (run / REPORT).is_file()
    assert main(["report", str(run), "--output", str(run / "run.json")]) == 6
    assert main(["report"]) == 2


def test_a_later_evaluation_is_on_the_page(run: Path) -> None:
    (run / REPORT).unlink()
    result = EvaluationResult({"task": "classification", "main_metric": "accuracy", "accuracy": 0.125}, [])
    write_result(run / "evaluation", result)
    assert "0.125" in text_of(run / REPORT)
    (run / REPORT).write_text("somebody's own")
    notices.clear()
    write_result(run / "evaluation", result)
    assert text_of(run / REPORT) == "somebody's own"
    assert [text for text in notices.collected() if "report.html could not be written" in text]


def test_memory_is_a_curve(finished: Path) -> None:
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    peaks = [entry["peak_memory_gib"] for entry in entries if "loss" in entry]
    assert len(peaks) == 3
    assert 0.05 < peaks[0] <= peaks[1] <= peaks[2] < 100
    assert "<h3>peak memory so far, GiB</h3>" in text_of(finished / REPORT)


def panel(run: Path, **logged: list[float]) -> str:
    """The picture of one figure that was logged at steps 1, 2, ..."""
    (name, values) = logged.popitem()
    write_jsonl(run / "metrics.jsonl", [{"step": step, name: value} for step, value in enumerate(values, 1)])
    (curve,) = curves([read_run(run)])
    return str(curve.picture)


def points_of(picture: str) -> list[tuple[float, float]]:
    (way,) = re.findall(r'<polyline points="([^"]*)"', picture)
    return [(float(x), float(y)) for x, _, y in (point.partition(",") for point in way.split())]


def test_a_picture_has_every_point_in_its_place(run: Path) -> None:
    picture = panel(run, loss=[4.0, 1.0, 2.0, 2.5])
    points = points_of(picture)
    assert picture.count("<circle") == len(points) == 4
    (x1, top), (x2, bottom), (x3, middle), _ = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.11)
    assert (bottom - middle) / (bottom - top) == pytest.approx(1 / 3, abs=0.01), "a larger value is higher up"
    assert re.findall(r"<text[^>]*>([^<]*)</text>", picture) == ["1", "2", "3", "4", "1", "2", "3", "4"]


def test_a_long_log_loses_nothing_that_could_be_seen(run: Path) -> None:
    values = [1.0] * 50_000
    values[20_000], values[30_001], values[-1] = 9.0, -7.0, 2.0
    picture = panel(run, loss=values)
    heights = [y for _, y in points_of(picture)]
    assert len(picture) < 50_000
    assert "<circle" not in picture
    assert [heights.count(extreme(heights)) for extreme in (min, max)] == [1, 1]
    assert heights[-1] < heights[0]


@pytest.mark.parametrize("values", [[1e308, -1e308], [5e-324, 0.0], [1e-300], [1.0, 1.0 + 1e-15], [-0.0, 0.0]])
def test_figures_of_any_size_are_drawn(run: Path, values: list[float]) -> None:
    assert len(points_of(panel(run, grad_norm=values))) == len(values)
