"""Templates that write the day: one day for a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from row_faults import DATE_TEMPLATE, Call, answer, asked


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Moves this process to a place on earth: at two of them it is never the same day."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


FIRST, SECOND = "Etc/GMT+12", "Pacific/Kiritimati"


def test_kept_data_is_of_the_day_that_its_template_writes(
    call: Call, template: Callable[[str], Path], tmp_path: Path, day: Callable[[str], None]
) -> None:
    rows, path = [{"messages": [asked(), answer()]}], template(DATE_TEMPLATE)
    kept = {"cache": "true", "cache_dir": tmp_path / "cache", "template": path}
    day(FIRST)
    first = call(rows, **kept).texts
    day(SECOND)
    second = call(rows, **kept).texts
    assert first != second
    assert second == call(rows, template=path).texts
    assert (
        first
        == call(rows, template=path, template_date=time.strftime("%Y-%m-%d", time.gmtime(time.time() - 43200))).texts
    )
    assert len(list((tmp_path / "cache").glob("data-*"))) == 2


def test_a_run_that_continues_on_another_day_keeps_its_own(
    call: Call, template: Callable[[str], Path], tmp_path: Path, day: Callable[[str], None]
) -> None:
    rows = [{"messages": [asked(f"q{number}"), answer(f"a{number}")]} for number in range(4)]
    how = {"template": template(DATE_TEMPLATE), "save_strategy": "steps", "save_steps": 1, "max_length": 64}

    def recorded() -> tuple[str, str]:
        data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
        return data["template_date"], data["train_fingerprint"]

    day(FIRST)
    assert call(rows, "train", **how).code == 0
    first = recorded()
    day(SECOND)
    assert (
        call(rows, "train", **how, max_steps=2, overwrite_output_dir="false", resume_from_checkpoint="latest").code == 0
    )
    assert recorded() == first
    assert call(rows, "train", **how).code == 0
    assert recorded() != first
