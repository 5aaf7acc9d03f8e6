"""The site of docs/, as far as it can be looked at without building it: every page has its place, every link its end.

``make docs`` builds it with ``mkdocs build --strict``, and ``scripts/check_site.py`` then looks at what was built.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
SITE: dict[str, Any] = yaml.safe_load((PROJECT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(DOCS.rglob("*.md"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROJECT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for inside in entry.values():
            yield from [inside] if isinstance(inside, str) else in_nav(inside)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site (and GitHub) makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", prose(page), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        found.add(f"{slug}_{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(page: Path) -> list[str]:
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "`", prose(page)))


def test_every_page_has_one_place_in_the_site() -> None:
    assert Counter(in_nav(SITE["nav"])) == Counter(str(page.relative_to(DOCS)) for page in PAGES)
    assert len(PAGES) > 30


@pytest.mark.parametrize(
    "page", [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem
)
def test_links_end_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not page.is_relative_to(DOCS) or target.is_relative_to(DOCS), f"{page.name}: {link} leaves the site"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link} has no such heading"


def test_nothing_is_fetched_when_the_site_is_read(tmp_path: Path) -> None:
    assert SITE["theme"]["font"] is False
    (tmp_path / "index.html").write_text('<script src="assets/a.js"></script><a href="https://example.org">a page</a>')
    assert script("check_site").fetched(tmp_path) == []
    (tmp_path / "style.css").write_text("@import url(https://fonts.example.org/a.css);")
    (tmp_path / "other.html").write_text('<link rel="stylesheet" href="https://cdn.example.org/a.css">')
    assert script("check_site").fetched(tmp_path) == [
        "other.html: https://cdn.example.org/a.css",
        "style.css: https://fonts.example.org/a.css",
    ]


def test_the_reference_is_up_to_date() -> None:
    assert script("make_reference").stale() == [], "run `make docs`"


def test_every_file_of_a_run_folder_is_described() -> None:
    from tunesmith.report.belongings import NAMES

    page = (DOCS / "reference/run_folder.md").read_text(encoding="utf-8")
    names = [name.replace("[0-9]*", "N") for name in NAMES if not name.startswith(".")]
    assert len(names) > 20
    assert [name for name in names if f"`{name}" not in page] == []
