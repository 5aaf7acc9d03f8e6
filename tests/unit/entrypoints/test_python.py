"""``tunesmith.train``, ``load`` and ``preview`` as programs and notebooks call them."""

from __future__ import annotations

import html
import inspect
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from helpers import write_rows
from tunesmith.cli.main import main
from tunesmith.errors import ConfigError, ConfigErrors, DataError, ModelError, StorageError, TunesmithError
from tunesmith.export.merge import Merged

HANDLERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def short_rows(number: int, name: str = "Tom") -> list[dict[str, Any]]:
    return [{"prompt": f"{name} has {index}", "completion": " balls" * index} for index in range(1, number + 1)]


def settings_of(folder: Path, model: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": model / "mistral",
        "train_data": write_rows(folder / "train.jsonl", short_rows(4)),
        "eval_data": write_rows(folder / "eval.jsonl", short_rows(2, "Mia")),
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_new_tokens": 2,
        "report_to": "none",
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> dict[str, Any]:
    return settings_of(tmp_path_factory.mktemp("rows"), models_folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> tunesmith.Run:
    """A run that was trained beside the main thread, as a server or a notebook's worker would."""
    folder = tmp_path_factory.mktemp("run") / "run"
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(tunesmith.train(settings, output_dir=folder)))
    before = [signal.getsignal(number) for number in HANDLERS]
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in HANDLERS] == before
    return found[0]


def test_importing_is_light() -> None:
    """No library is imported by the name alone: those of the standard library that it needs are few."""
    home = str(Path(tunesmith.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {home!r}); before = set(sys.modules); import tunesmith; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code + "; print(*before)"], capture_output=True, text=True, check=True
    )
    after, before = (set(line.split()) for line in done.stdout.splitlines())
    new = after - before
    assert "tunesmith" in new
    assert [name for name in new if name.startswith("tunesmith.")] == []
    assert {name.partition(".")[0] for name in new} <= set(sys.stdlib_module_names) | {"tunesmith"}
    assert len(new) < 40


def test_every_name_that_is_promised_is_there_and_documented() -> None:
    import tunesmith.train.run

    assert set(tunesmith.__all__) <= set(dir(tunesmith))
    for name in ("train", "load", "preview", "Run", "Preview", "TunesmithError"):
        assert getattr(tunesmith, name).__doc__
    assert callable(tunesmith.train)  # although the package of that name is imported
    assert list(inspect.signature(tunesmith.train).parameters) == ["config", "dialect", "settings"]
    assert (Path(tunesmith.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tunesmith.nothing  # noqa: B018


def test_a_run_tells_what_it_came_to(run: tunesmith.Run, settings: dict[str, Any]) -> None:
    assert run.status == "finished"
    assert {"loss", "eval_loss"} <= set(run.metrics)
    assert [entry["step"] for entry in run.history if "loss" in entry] == [1, 2]
    assert run.settings["training.max_steps"] == 2
    assert repr(tunesmith.load(str(run.folder))) == repr(run)
    assert "finished" in repr(run)
    assert repr(tunesmith.Run("nowhere")) == "<Run nowhere: no record>"


def test_the_record_names_a_command_that_means_the_same(
    run: tunesmith.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    words = shlex.split(facts["command"])
    assert words[:4] == ["python", "-m", "tunesmith", "train"]
    assert main(["config", *words[4:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values"] == facts["settings"]


def test_a_run_is_judged_and_asked(run: tunesmith.Run) -> None:
    result = run.evaluate(limit=1)
    assert result.metrics["num_examples"] == 1
    assert result.folder == run.folder / "evaluation"
    made = run.predict([{"prompt": "Once upon a time"}, {"prompt": "Tom"}], column="said", max_new_tokens=3)
    assert [set(row) for row in made] == [{"prompt", "said", "stopped"}] * 2
    assert len(run.predict(run.settings["data.eval_data"], column="said", read=True)) == 2
    assert len(run.compare(limit=1).models) == 2


def test_a_run_is_merged_and_reported(run: tunesmith.Run, tmp_path: Path) -> None:
    merged = run.merge(tmp_path / "merged", dtype="float32", proof=False)
    assert isinstance(merged, Merged)
    assert (merged.path / "model.safetensors").is_file()
    assert run.report() == run.folder / "report.html"
    assert run.report(tmp_path / "page.html").is_file()
    with pytest.raises(StorageError):
        run.merge(tmp_path / "merged", proof=False)
    with pytest.raises(ConfigError, match="learning_rate is no permission"):
        run.merge(tmp_path / "other", learning_rate=True)


def test_rows_are_shown_in_a_notebook_and_in_a_terminal(settings: dict[str, Any], tmp_path: Path) -> None:
    harmful = "</span><script>alert(1)</script>"
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Tom", "completion": f" saw\x1b[2J {harmful}."}])
    shown = tunesmith.preview(settings, train_data=rows, num=1)
    assert "⟦" in str(shown)
    assert "\x1b" not in str(shown)
    notebook = shown._repr_html_()
    assert notebook.startswith('<iframe sandbox=""')
    assert re.findall(r"<(?!/?iframe)", notebook) == []  # all of the page stands in an attribute
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', notebook)[1])
    assert page == shown.html()
    assert "<script" not in page
    assert shown.rows[0].num_trained > 0
    assert len(tunesmith.preview(settings, row=2).rows) == 1
    assert tunesmith.preview(settings, where="longest", num=1).title == "the longest rows"


def test_settings_may_stand_in_sections_and_keywords_beat_a_file(settings: dict[str, Any], tmp_path: Path) -> None:
    flat = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    file = tmp_path / "config.json"
    written = flat | {"load_in_4bit": False, "train_batch_size": 1, "save_strategy": "steps"}
    file.write_text(json.dumps(written), encoding="utf-8")
    assert len(tunesmith.preview(file, per_device_train_batch_size=3).rows) == 3
    nested = {"model": {"model_name_or_path": flat["model_name_or_path"]}, "data": {"train_data": flat["train_data"]}}
    assert len(tunesmith.preview({**nested, "training": {"per_device_train_batch_size": 2}}).rows) == 2


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (lambda s: tunesmith.train(s, lerning_rate=1), ConfigError, "Python call: unknown setting 'lerning_rate'"),
        (lambda s: tunesmith.train(s, learning_rate="much"), ConfigError, "learning_rate = 'much'"),
        (lambda s: tunesmith.train(s, lerning_rate=1, sede=2), ConfigErrors, "Python call: unknown setting 'sede'"),
        (lambda s: tunesmith.train(s | {"learning_rate=2": 1}), ConfigError, "no name of a setting"),
        (lambda s: tunesmith.train(s, seed={1}), ConfigError, "Python call: seed is a set"),
        (lambda s: tunesmith.train(7), ConfigError, "Python call: config is a int"),
        (lambda s: tunesmith.train(), ConfigError, "model_name_or_path is not set"),
        (lambda s: tunesmith.train("nowhere.yaml"), ConfigError, "nowhere.yaml: no such configuration file"),
        (lambda s: tunesmith.train(s, train_data="nowhere.jsonl"), DataError, "nowhere.jsonl"),
        (lambda s: tunesmith.train(s, model_name_or_path="nowhere/x"), ModelError, "nowhere/x"),
        (lambda s: tunesmith.preview(s, row=1, where="cut"), ConfigError, "row and where exclude each other"),
        (lambda s: tunesmith.preview(s, where="best"), ConfigError, "where = 'best' is no choice"),
        (lambda s: tunesmith.preview(s, num=0), ConfigError, "num = 0"),
        (lambda s: tunesmith.load("nowhere"), StorageError, "nowhere: no run.json there"),
        (lambda s: tunesmith.Run("nowhere").evaluate(), StorageError, "nowhere: no run.json there"),
        (lambda s: tunesmith.Run("nowhere").merge("x"), StorageError, "nowhere: no run.json there"),
        (lambda s: tunesmith.Run("nowhere").report(), StorageError, "nowhere: no run.json there"),
    ],
)
def test_what_goes_wrong_is_raised(
    call: Any, kind: type[TunesmithError], told: str, settings: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        call(settings)
    assert told in str(caught.value)
    assert "command line:" not in str(caught.value)


def test_wrong_questions_to_a_run_are_raised(run: tunesmith.Run) -> None:
    with pytest.raises(ConfigError, match="Python call: unknown setting 'max_new_token'"):
        run.evaluate(max_new_token=2)
    with pytest.raises(ConfigError, match="cannot be changed for a model that is trained"):
        run.predict([{"prompt": "x"}], learning_rate=1)
    with pytest.raises(DataError, match="there are no rows"):
        run.predict([])
    with pytest.raises(DataError, match="rows:2: is a str"):
        run.predict([{"prompt": "x"}, "y"])
