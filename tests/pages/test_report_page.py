"""The page of a run in a real browser: it can be read in light and dark and on a phone, and asks for nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from browsing import SCHEMES, contrast
from helpers import run_training, story_rows
from tunesmith.report.folder import write_json, write_jsonl
from tunesmith.report.page import write_report

Browse = Callable[..., str]
MEASURE = """<script>
const found = new Set();
for (const node of document.querySelectorAll('body *')) {
  if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
  let ground = node;
  while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  const style = getComputedStyle(node), drawn = node.namespaceURI.endsWith('svg');
  found.add(JSON.stringify([drawn ? style.fill : style.color, getComputedStyle(ground).backgroundColor]));
}
document.body.dataset.colours = JSON.stringify([...found].map(JSON.parse));
document.body.dataset.width = document.documentElement.scrollWidth;
document.body.dataset.requests = performance.getEntriesByType('resource').length;
document.body.dataset.curves = [...document.querySelectorAll('.curve')].filter(one => one.clientWidth > 200).length;
</script>"""


@pytest.fixture(scope="module")
def page(stories_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with an evaluation."""
    folder = tmp_path_factory.mktemp("report")
    run = run_training(folder, stories_model, story_rows(6), eval_rows=story_rows(3, 1), max_steps=2).folder
    row = {"source": "eval.jsonl:1", "prompt": "x" * 300, "reference": "yes", "output": "no <b>", "answer": "no"}
    write_jsonl(run / "evaluation" / "predictions.jsonl", [row | {"correct": correct} for correct in (True, False)])
    matrix = {"labels": ["yes", "no"], "columns": ["yes", "no", "unreadable"], "counts": [[0, 1, 0], [0, 1, 0]]}
    figures = {"task": "exact", "main_metric": "exact_match", "num_examples": 2, "exact_match": 0.5}
    figures |= {"confidence": {"exact_match": [0.1, 0.9]}, "confusion_matrix": matrix}
    write_json(run / "evaluation" / "metrics.json", figures)
    return write_report([run])


@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_can_be_read(scheme: str, width: int, page: Path, browse: Browse, tmp_path: Path) -> None:
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))  # which forbids what measures
    copy = tmp_path / "page.html"
    copy.write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    options = ("--dump-dom", f"--window-size={width},900", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}")
    dom = browse(copy, *options)
    body = dict(re.findall(r'data-(\w+)="([^"]*)"', dom[dom.index("<body") :].partition(">")[0]))
    assert int(body["width"]) <= width
    assert body["requests"] == "0"
    assert int(body["curves"]) >= 5
    colours = json.loads(body["colours"].replace("&quot;", '"'))
    assert len(colours) >= 5
    for ink, ground in colours:
        if ground.startswith("rgb("):  # a shade of the matrix lies on the card's ground, and has that one's ink
            assert contrast(ink, ground) >= 4.5, (ink, ground)


def test_the_browser_has_nothing_to_complain_of(page: Path, browse: Browse, capfd: pytest.CaptureFixture[str]) -> None:
    dom = browse(page, "--dump-dom", "--enable-logging=stderr", "--log-level=0")
    assert "no &lt;b&gt;" in dom
    assert "CONSOLE" not in capfd.readouterr().err
