"""The commands that README and the tutorial show are run; how many is asserted as well.

README's walk is trained once here. Its figures, and what the tutorial adds, are looked at in what it left.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import commands
from tunesmith import notices
from tunesmith.cli.main import VERBS, main

PROJECT = Path(__file__).parents[2]
WALK = Path("demo/tickets")


@dataclass
class Walked:
    """What README's commands left: the folder in which they began, what each of them printed, and all that was told."""

    folder: Path
    printed: dict[str, str]
    told: str


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    home = tmp_path_factory.mktemp("readme")
    for folder in ("recipes", "docs"):
        (home / folder).symlink_to(PROJECT / folder)
    printed: dict[str, str] = {}
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr("sys.stderr", told)
        notices.clear()
        for line in commands(PROJECT / "README.md"):
            program, *arguments = shlex.split(line)
            if program == "make":
                targets = (PROJECT / "Makefile").read_text(encoding="utf-8")
                assert re.search(rf"^{arguments[0]}:", targets, flags=re.MULTILINE)
                printed[line] = ""
            elif program == "cd":
                os.chdir(arguments[0])
            else:
                assert program == "tunesmith"
                out = io.StringIO()
                patch.setattr("sys.stdout", out)
                assert main(arguments) == 0, line
                printed[line] = out.getvalue()
    return Walked(home, printed, "\n".join([*printed.values(), told.getvalue()]))


def test_readme_commands_run(walked: Walked) -> None:
    assert list(walked.printed)[:2] == ["make demo", "make test"]
    assert len(walked.printed) == 12
    for made in ("run/evaluation/metrics.json", "run/report.html", "answers.jsonl", "merged/proof.json"):
        assert (walked.folder / WALK / made).is_file()


def test_readme_ends_in_a_success_that_is_seen(walked: Walked) -> None:
    """Accuracy on rows that were held out, as it is printed: nearly all right, and none or few before training."""
    table = walked.printed["tunesmith evaluate run --baseline"]
    assert re.search(r"^model +accuracy ", table, flags=re.MULTILINE), table
    rows = re.findall(r"^.*? (\d\.\d{3}) \[", table, flags=re.MULTILINE)
    before, after = map(float, rows)
    assert after > 0.9
    assert before < 0.4
    metrics = json.loads((walked.folder / WALK / "run/evaluation/metrics.json").read_text(encoding="utf-8"))
    assert (metrics["task"], metrics["num_examples"]) == ("classification", 12)
    assert metrics["accuracy"] > 0.9
    shown = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"accuracy {after:.3f}, untrained {before:.3f}" in shown


def test_answers_and_departments_agree(walked: Walked) -> None:
    lines = (walked.folder / WALK / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 60
    answers = [next(row[name] for name in ("prediction", "answer", "output") if name in row) for row in rows]
    right = sum(answer.strip() == row["department"] for answer, row in zip(answers, rows, strict=True))
    assert right > 0.9 * len(rows)


def test_a_first_run_goes_as_its_page_says(
    walked: Walked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands are README's, which were run; the last one, a talk, is held here."""
    *lines, last = commands(PROJECT / "docs/tutorial.md")
    assert [line for line in lines if not line.startswith("cd ")] == [line for line in walked.printed if line in lines]
    assert len(lines) == 8
    monkeypatch.chdir(walked.folder / WALK)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello, my card was charged after I cancelled. It is urgent.\n"))
    assert main(shlex.split(last)[1:]) == 0
    assert capsys.readouterr().out.strip() == "billing"


def test_what_the_tutorial_shows_is_printed(walked: Walked) -> None:
    """Line by line, ``...`` standing for anything; the first block is the table itself."""
    page = (PROJECT / "docs/tutorial.md").read_text(encoding="utf-8")
    table, *shown = re.findall(r"^```text\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    rows = (PROJECT / "docs/how_to/tickets.csv").read_text(encoding="utf-8")
    assert all(line in rows for line in table.splitlines())
    lines = [line for block in shown for line in block.splitlines()]
    assert len(lines) > 20
    told = [" ".join(line.split()) for line in walked.told.splitlines()]
    patterns = {line: ".*".join(re.escape(part) for part in " ".join(line.split()).split("...")) for line in lines}
    missing = [line for line, pattern in patterns.items() if not any(re.search(pattern, one) for one in told)]
    assert missing == []


def test_first_commands_of_the_page_on_troubles(
    walked: Walked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor, config, preview, check = commands(PROJECT / "docs/troubleshooting.md")
    monkeypatch.chdir(walked.folder / WALK)
    for line in (config, preview):
        assert main(shlex.split(line)[1:]) == 0
    assert "end token trained" in capsys.readouterr().out
    assert doctor.split()[1] in VERBS
    assert check.split()[1] in VERBS


def test_every_verb_explains_itself(capsys):
    explained = 0
    for verb in VERBS:
        try:
            code = main([verb, "--help"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert code == 0
        assert "usage: tunesmith" in capsys.readouterr().out
        explained += 1
    assert explained == len(VERBS) >= 5
