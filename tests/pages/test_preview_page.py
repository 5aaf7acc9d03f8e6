"""The preview's page in a real browser: colours are the labels, text is the data's, and nothing gets out of it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browsing import SCHEMES, contrast
from helpers import story_rows, write_rows
from tunesmith import notices
from tunesmith.cli.main import main

MEASURE = """<script>
for (const token of document.querySelectorAll('.tokens .t')) {
  const style = getComputedStyle(token);
  let ground = token;
  while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  token.dataset.own = style.backgroundColor;
  token.dataset.ground = getComputedStyle(ground).backgroundColor;
  token.dataset.ink = style.color;
}
document.body.dataset.width = document.documentElement.scrollWidth;
document.body.dataset.requests = performance.getEntriesByType('resource').length;
</script>"""
NASTY = {
    "prompt": "a <b>bold</b> & 'x' \"y\" </div></section><script>document.title='taken'</script>\x1b[31m \u202e|",
    "completion": " </span><img src=x onerror=\"document.title='taken'\"> {{ 7 * 7 }} naïve\nend \x07",
}

Browse = Callable[..., str]


class Page(HTMLParser):
    """Sections of a page with their tokens, as the browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.rows: list[list[dict[str, str]]] = []
        self.tags: list[str] = []
        self.body: dict[str, str] = {}
        self._within: list[str] = []
        self._in_tokens = False
        self.title = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self._within.append(tag)
        if tag == "body":
            self.body = attributes
        elif tag == "section":
            self.rows.append([])
            self.sources.append("")
        elif tag == "div" and attributes.get("class") == "tokens":
            self._in_tokens = True
        elif tag == "span" and self._in_tokens:
            self.rows[-1].append({**attributes, "text": ""})

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop() != tag:
            continue
        if tag == "div":
            self._in_tokens = False

    def handle_data(self, data: str) -> None:
        within = self._within[-1] if self._within else ""
        if within == "title":
            self.title += data
        elif within == "b" and self.rows and not self.rows[-1]:
            self.sources[-1] += data
        elif within == "span" and self._in_tokens and self.rows[-1]:
            self.rows[-1][-1]["text"] += data


def write_page(model: Path, data: str, page: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Write the page and return the rows of the same preview as JSON."""
    notices.clear()
    argv = ["preview", "--model_name_or_path", str(model), "--train_data", data, "--html", str(page), "--json"]
    capsys.readouterr()
    assert main(argv) == 0
    return list(json.loads(capsys.readouterr().out)["rows"])


def measured(page: Path, browse: Browse, scheme: str, *options: str) -> Page:
    """The page with every token's colours, measured by a script that the page itself would not allow."""
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
    copy = page.with_name(f"{scheme}.html")
    copy.write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    return Page(browse(copy, "--dump-dom", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", *options))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_colours_are_the_labels_and_can_be_read(
    scheme: str, stories_model: Path, tmp_path: Path, browse: Browse, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(8))
    rows = write_page(stories_model, data, tmp_path / "page.html", capsys)
    page = measured(tmp_path / "page.html", browse, scheme, "--window-size=1200,900")
    assert page.sources == [row["source"] for row in rows]
    assert len(rows) == 8
    grounds: dict[bool, set[str]] = {True: set(), False: set()}
    for row, tokens in zip(rows, page.rows, strict=True):
        assert len(tokens) == len(row["tokens"])
        for token, cell in zip(row["tokens"], tokens, strict=True):
            assert cell["text"] == token["text"]
            assert f"id {token['id']}, " in cell["title"]
            grounds[token["trained"]].add(cell["data-own"])
            assert contrast(cell["data-ink"], cell["data-ground"]) >= 4.5, cell
    assert len(grounds[True]) == 3, "two shades and the end token"
    assert len(grounds[False]) == 2, "none and the shade of every other token"
    assert not grounds[True] & grounds[False]
    assert int(page.body["data-width"]) <= 1200
    assert page.body["data-requests"] == "0"


def test_a_narrow_window_needs_no_scrolling_aside(
    stories_model: Path, tmp_path: Path, browse: Browse, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "x" * 300 + " " + "word " * 50, "completion": " yes"}]
    write_page(stories_model, write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "page.html", capsys)
    page = measured(tmp_path / "page.html", browse, "light", "--window-size=500,900")
    assert int(page.body["data-width"]) <= 500


def test_data_stays_text(
    stories_model: Path, tmp_path: Path, browse: Browse, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [NASTY])
    (row,) = write_page(stories_model, data, tmp_path / "page.html", capsys)
    page = Page(browse(tmp_path / "page.html", "--dump-dom"))
    assert page.title == "Preview: first rows in the trainer's order"
    assert not {"script", "img"} & set(page.tags)
    text = "".join(cell["text"] for cell in page.rows[0] if cell["text"] != "·")
    joined = "".join(token["text"] for token in row["tokens"])
    escapes = (("\x1b", r"\x1b"), ("\x07", r"\x07"), ("\u202e", r"\u202e"))
    for character, written in escapes:
        assert character in joined
        joined = joined.replace(character, written)
    assert text == joined
    assert "{{ 7 * 7 }}" in text


def test_page_is_one_file(stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(3))
    write_page(stories_model, data, tmp_path / "page.html", capsys)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|action)\s*=|url\(|@import|https?:|//", text)
    assert "default-src 'none'" in text


def test_screenshot_is_not_empty(
    stories_model: Path, tmp_path: Path, browse: Browse, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(3))
    write_page(stories_model, data, tmp_path / "page.html", capsys)
    picture = tmp_path / "page.png"
    browse(tmp_path / "page.html", f"--screenshot={picture}", "--window-size=900,700")
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (900, 700)
    assert len(content) > 20_000
