"""The pages of the documentation, and what tests read from them: code blocks, commands, prose, headings."""

import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path

from tests.support.repository import ROOT

DOCS = ROOT / "docs"
SITE_PAGES = sorted(DOCS.rglob("*.md"))
"""Every page of the site."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy" / "README.md",
    *SITE_PAGES,
]


def page(name: str) -> str:
    """The text of a page, by its path below docs/, or by its name alone where it is of the reference."""
    return (DOCS / name if "/" in name else DOCS / "reference" / name).read_text()


def title_of(path: Path) -> str:
    """A page's path in the repository, as the id of a test."""
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of one language, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def commands(text: str) -> Iterator[list[str]]:
    """Every `make` and `holdfast` line of the shell blocks, as words from the program's name on."""
    for block in [*blocks(text, "sh"), *blocks(text, "")]:
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\w+=\S* )*(\.venv/bin/)?(holdfast|make)\b", line):
                words = shlex.split(line, comments=True)
                yield list(dropwhile(lambda word: "=" in word, words))


def prose(text: str) -> str:
    """What a person reads as sentences: no code blocks, no inline code, no targets of links."""
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", without_blocks))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub form them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def links(text: str) -> list[str]:
    """The targets of all links and images of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
