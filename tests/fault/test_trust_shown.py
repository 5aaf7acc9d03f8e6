"""Names lead nowhere and nothing steers a terminal: what records, rows, names and values of others can do (S4, S5)."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest

from fault_helpers import JOBS, ROWS, calls
from helpers import write_rows
from tunesmith import notices
from tunesmith.cli import output
from tunesmith.config.resolve import from_values, schema_defaults
from tunesmith.data.preview import PreviewRow, Token
from tunesmith.errors import ConfigError
from tunesmith.export.card import Records, clean, render
from tunesmith.export.inference import settings_of
from tunesmith.report.folder import read_json, write_json
from tunesmith.report.preview import page
from tunesmith.train.checkpoint import MANIFEST, Batches, commit
from tunesmith.visible import as_json

EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202eb\r"
"""Sets a title, clears the screen, in both widths of escape; deletes, reverses, and returns to the line's start."""


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/../../x", "~/x", "..", "a\\..\\..\\x", "a\nb", "a\x1b[2J", "c:x"]
)
def test_the_finished_model_stays_in_its_run_folder(name: str, tmp_path: Path, said) -> None:
    code, _, errors = said("config", "--model_name_or_path=m", f"--final_subdir={name}")
    assert (code, "final_subdir" in errors) == (2, True), errors
    with pytest.raises(ConfigError, match="final_subdir"):
        from_values({"model.model_name_or_path": "m", "training.final_subdir": name})
    from_values({"model.model_name_or_path": "m", "training.final_subdir": "final/model.1"})


def test_a_record_does_not_say_that_everything_is_the_runs_own(tmp_path: Path) -> None:
    from tunesmith.report.belongings import belonging

    (tmp_path / "thesis.txt").touch()
    for name in ("*", "../*", "thesis*", 5):
        settings = {"training.final_subdir": name}
        write_json(tmp_path / "run.json", {"status": "x", "settings": settings, "settings_fingerprint": "x"})
        assert belonging(tmp_path) == ["run.json"]


def test_a_manifest_names_no_file_outside(tmp_path: Path) -> None:
    from tunesmith.train import checkpoint

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    os.mkfifo(tmp_path / "pipe")
    commit(folder, Batches(1, 1, 1))
    manifest = read_json(folder / MANIFEST)
    manifest.pop(checkpoint.SEAL)
    for name in ("../pipe", str(tmp_path / "pipe"), "/etc/passwd"):
        manifest["files"] = {name: "0"}
        write_json(folder / MANIFEST, manifest | {checkpoint.SEAL: checkpoint._seal(manifest)})
        assert "outside" in str(checkpoint.problem(folder))


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    """A file of this machine that no stranger should read."""
    file = tmp_path / "letter.txt"
    file.write_text("meet me at noon")
    return file


def test_what_lies_beside_a_model_is_text_and_never_the_name_of_a_file(letter: Path, tmp_path: Path) -> None:
    content = {
        "version": 1, "how_to_use": "", "format": "prompt_completion", "columns": {},
        "prompt": {"kind": "text", "query": "{prompt}", "before": "", "after": "", "begin_token_ids": [],
                   "cut_after": None},
        "special_in_content": "split", "stop_token_ids": [2], "stop_tokens": ["</s>"], "generation": {},
        "max_length": 9, "settings": {"data.instruction": str(letter), "data.template": None},
    }  # fmt: skip
    write_json(tmp_path / "inference.json", content)
    from tunesmith.data.template_files import read_instruction

    assert read_instruction(settings_of(tmp_path)["data.instruction"]) == str(letter)


def test_no_record_has_a_file_read_into_the_prompt(letter: Path, base: Path, tmp_path: Path, said) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    for name in ("instruction", "template"):
        settings = schema_defaults() | {
            "model.model_name_or_path": str(base), "adapter.use_lora": False, f"data.{name}": str(letter),
        }  # fmt: skip
        write_json(base / "run.json", {"settings": settings, "settings_fingerprint": "x"})
        code, out, errors = said("predict", base, rows, "-", "--max_new_tokens=1")
        assert (code, "letter.txt" in errors, "noon" in out + errors) == (7, True, False), errors


def unsafe_in(text: str) -> set[str]:
    """Characters of a text that steer, hide or reorder; the library's progress bar is none of ours."""
    return {one for one in text.replace("\rLoading weights", "") if one != "\n" and not one.isprintable()}


def test_S5_one_place_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = {"output.py", "notices.py", "torchrun.py"}  # the latter two escape as well, and know no cli
    others = [
        f"{file.name}:{call.lineno}"
        for file, name, call in calls()
        if name in ("print", "sys.stdout.write", "sys.stderr.write") and file.name not in allowed
    ]
    assert not others
    for show in (output.say, output.say_json, output.say_piece, output.tell):
        show(EVIL)
        assert not unsafe_in("".join(capsys.readouterr()))
    monkeypatch.setattr(notices, "_listener", notices._to_stderr)
    notices.clear()
    notices.notify(EVIL)
    assert not unsafe_in(capsys.readouterr().err)


def test_S5_json_for_programs_holds_the_same_data() -> None:
    value = {EVIL: [EVIL, "漢é 🙂", "\U000e0001"]}
    assert not unsafe_in(as_json(value))
    assert json.loads(as_json(value, 2)) == value
    assert "漢é 🙂" in as_json(value)


def test_S5_files_keep_what_terminals_do_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdout", stream)
        output.say_file(EVIL)
        assert bool(unsafe_in(stream.getvalue())) is not terminal


def test_S5_names_of_files_columns_models_and_values(base: Path, tmp_path: Path, said) -> None:
    evil = EVIL.replace("\r", "")
    folder = tmp_path / evil
    folder.mkdir()
    rows = write_rows(folder / "rows.jsonl", [{**row, evil: evil} for row in ROWS])
    model = [f"--model_name_or_path={base}", f"--train_data={rows}", f"--output_dir={tmp_path}/run"]
    for words in (
        ["config", *model, f"--run_name={evil}"], ["config", *model, f"--{evil}=1"], ["check", *model],
        ["config", *model, f"--run_name={evil}", "--json"], ["preview", *model], ["preview", *model, "--json"],
        ["predict", base, rows, "-", "--max_new_tokens=1"], ["predict", tmp_path / evil, rows, "-"],
        ["config", folder / "absent.py"], [evil], ["config", f"--model_name_or_path={evil}", f"--seed={evil}"],
        ["evaluate", base, f"--data={rows}", "--task=exact", "--max_new_tokens=1"],
    ):  # fmt: skip
        _, out, errors = said(*words)
        assert not unsafe_in(out + errors), words
        assert out + errors


def test_S4_pages_and_cards_hold_no_markup_of_others() -> None:
    evil = "<script>alert(1)</script>\n# a heading\n[link](javascript:x)../../x"
    row = PreviewRow(evil, [Token(1, evil, True, False, False, 1.0)], None)
    html = page(evil, evil, [evil], [row])
    assert "<script>alert" not in html
    assert "\n# a heading" not in clean(evil)
    run = {
        "settings": {"model.model_name_or_path": evil, "data.format": evil}, "origins": {"data.format": "x"},
        "command": evil, "result": {"metrics": {evil: 1.0}}, "finished": evil, "versions": {evil: evil},
        "model": {}, "data": {}, "plan": {},
    }  # fmt: skip
    card = render(Records(run, {}, {"task": evil, "num_examples": 1, evil: 0.5}, {}), "full")
    body = re.sub(r"```.*?```", "", card.split("---\n", 2)[2], flags=re.DOTALL)  # markup means nothing in code
    assert not re.search(r"(?<!\\)<script", body)
    assert "\n# a heading" not in body


@pytest.mark.parametrize("engine", JOBS)
def test_S4_names_in_job_files_are_quoted(engine: str, tmp_path: Path, said) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    evil = "a'; touch ran; '\n#SBATCH --x\n$(touch ran)"
    (tmp_path / "own.json").write_text(json.dumps({"model_name_or_path": "nano-mistral", "train_data": rows}))
    for setting in (f"--run_name={evil}", f"--output_dir={tmp_path}/{evil}", f"--name={evil}"):
        code, out, errors = said("launch", tmp_path / "own.json", f"--on={engine}", *JOBS[engine], setting)
        assert (code == 0 and "\n#SBATCH --x" not in out and "\n$(touch" not in out) or code == 2, (out, errors)
