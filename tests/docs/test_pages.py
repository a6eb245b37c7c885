"""Every page is in the site, reads well at any width, and leads somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.doc_pages import DOCS, PAGES, SITE_PAGES, anchors, links, prose, title_of
from tests.support.repository import ROOT

WIDTH = 100
LARGEST_IMAGE = 150_000
LEAST_WORDS = 30
MUST_BE_DEFINED = {
    "anchor",
    "backpressure",
    "backward transfer",
    "dead-letter queue",
    "drift",
    "experience",
    "forgetting",
    "late data",
    "non-inferiority",
    "tumbling window",
    "watermark",
}
ODD_WORDS = {
    r"(?<!dead )(?<!dead-)letters?": "dead letter",
    r"halves": "unmatched record",
    r"places?": "cursor, position, offset or index",
    r"told|tells?": "documented, reports, says",
    r"beside": "next to",
    r"anew": "again",
    r"mend(s|ed|ing)?": "fix",
    r"lets? go( of)?": "release",
    r"lives": "lifetimes (simulated)",
    r"doors?": "request limits",
    r"twins?": "near duplicates",
    r"books": "records",
    r"world": "environment",
    r"strangers?": "unknown",
    r"worn out": "exhausted",
    r"dear(er|est)?": "expensive",
}
"""What a reader must not have to guess, with what to write instead."""
ORDINARY = (
    "in place of",
    "leaves the pixels in place",
    "Dead Letter Channel",
)
"""Where such a word has its usual meaning."""


def no_table(text: str) -> str:
    """Rows of tables repeat descriptions of the code, which its own tests hold."""
    return re.sub(r"^\|.*$", "", text, flags=re.M)


@pytest.mark.parametrize("path", PAGES, ids=title_of)
def test_every_link_leads_to_a_page_and_to_a_heading_that_is_there(path: Path) -> None:
    for target in links(path.read_text()):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page.read_text()), target


@pytest.mark.parametrize("path", SITE_PAGES, ids=title_of)
def test_no_page_of_the_site_links_outside_it(path: Path) -> None:
    for target in links(path.read_text()):
        if "://" not in target:
            assert (path.parent / target.split("#")[0]).resolve().is_relative_to(DOCS), target


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text())
    named = list(_leaves(config["nav"]))
    assert sorted(named) == [path.relative_to(DOCS).as_posix() for path in SITE_PAGES]


def _leaves(entry: Any) -> Any:
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from _leaves(inner)


@pytest.mark.parametrize("path", [ROOT / "README.md", *SITE_PAGES], ids=title_of)
def test_lines_are_at_most_a_hundred_characters_wide(path: Path) -> None:
    """But for rows of tables, and for one string of JSON, which cannot be broken."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.startswith("|") and not re.fullmatch(r'\s*"\w+": ".*",?', line):
            assert len(line) <= WIDTH, f"line {number}: {line}"


@pytest.mark.parametrize("path", [ROOT / "README.md", *SITE_PAGES], ids=title_of)
def test_pages_use_the_words_of_the_field(path: Path) -> None:
    text = " ".join(no_table(prose(path.read_text())).split())
    for ordinary in ORDINARY:
        text = text.replace(ordinary, "")
    for odd, instead in ODD_WORDS.items():
        found = re.search(rf".{{0,40}}\b({odd})\b.{{0,40}}", text, flags=re.I)
        assert found is None, f"write {instead!r}: {found and found.group()}"


def test_nobody_is_sent_to_the_package_of_another_project() -> None:
    for path in PAGES:
        assert not re.search(r"pip install (-\S+ )*['\"]?holdfast(?!-)", path.read_text()), path


def test_every_image_is_there_small_and_described() -> None:
    shown = set()
    for path in [ROOT / "README.md", *SITE_PAGES]:
        text = path.read_text()
        for described, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
            image = (path.parent / target).resolve()
            assert len(described) >= 20, f"{title_of(path)}: say what {target} shows"
            assert image.stat().st_size <= LARGEST_IMAGE
            shown.add(image)
    assert shown == set((DOCS / "images").iterdir())


def test_the_glossary_defines_the_words_of_the_field_with_their_sources() -> None:
    text = (DOCS / "glossary.md").read_text()
    entries = re.split(r"^## ", text, flags=re.M)[1:]
    words = [entry.splitlines()[0] for entry in entries]
    assert len(words) >= LEAST_WORDS
    assert words == sorted(words, key=str.lower)
    assert {word.lower() for word in words} >= MUST_BE_DEFINED
    assert f"The {len(words)} words" in text
    for entry in entries:
        _, definition, source = entry.strip().split("\n\n")
        assert len(definition.split()) >= 8
        assert re.match(r"Source: .{10,}", source)
