"""Every command that a page shows exists, with its options; every command of the program is on a page."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from service import cli
from service.declaration import require_hope
from service.pipelines import parse
from tests.service.api.test_app import ROUTES
from tests.support.doc_pages import PAGES, SITE_PAGES, blocks, commands, prose, title_of
from tests.support.repository import ROOT

CALL = re.compile(r"(?:GET|POST|PUT|DELETE) (/v1/[^\s`'\"?)]+|/healthz|/readyz)")
"""A call that a page names in a sentence."""


@pytest.mark.parametrize("path", PAGES, ids=title_of)
def test_every_command_in_the_documentation_exists(path: Path) -> None:
    verbs = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)[0].split()
    for words in commands(path.read_text()):
        if words[0] == "make":
            assert set(word for word in words[1:] if "=" not in word) <= set(verbs), words
        else:
            _check_command(words[1:])


@pytest.mark.parametrize("path", [ROOT / "README.md", *SITE_PAGES], ids=title_of)
def test_every_command_named_in_a_sentence_exists(path: Path) -> None:
    for named in re.findall(r"`holdfast ([a-z][^`]*)`", path.read_text()):
        if named == "is up":  # What `holdfast up` prints.
            continue
        _check_command([word for word in named.split() if word != "..."], whole=False)


def _check_command(words: list[str], *, whole: bool = True) -> None:
    command: Any = typer.main.get_command(cli.app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if not whole and "|" in words[0]:
            assert set(words[0].split("|")) <= set(command.commands), words
            return
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.split("=")[0] in known | {"--help"}, (command.name, word)


def test_every_command_of_the_program_is_in_the_documentation() -> None:
    documented = " ".join(path.read_text() for path in PAGES)
    command: Any = typer.main.get_command(cli.app)
    assert isinstance(command, click.Command) or hasattr(command, "commands")
    for name, inner in command.commands.items():
        for rest in getattr(inner, "commands", {"": None}):
            assert f"holdfast {name} {rest}".rstrip() in documented


def test_every_yaml_example_is_a_pipeline_that_works() -> None:
    found = [block for path in PAGES for block in blocks(path.read_text(), "yaml")]
    assert found
    for block in found:
        require_hope(parse(block))


def test_every_call_in_a_page_is_to_a_route_that_is_there() -> None:
    known = [re.sub(r"{\w+}", "*", path).split("/") for _, path in ROUTES]
    for page in PAGES:
        for path in CALL.findall(page.read_text()):
            steps = path.split("/")
            assert any(
                len(steps) == len(route)
                and all(want in ("*", step) for want, step in zip(route, steps, strict=True))
                for route in known
            ), f"{title_of(page)}: {path}"


def test_every_setting_named_in_a_page_is_a_setting() -> None:
    settings = (ROOT / "docs" / "reference" / "operations.md").read_text()
    for page in PAGES:
        for name in re.findall(r"\bHOLDFAST_[A-Z_]+\b", page.read_text()):
            assert name in settings or name == "HOLDFAST_TEST_DATA", f"{title_of(page)}: {name}"


def test_prose_is_what_remains_without_code() -> None:
    text = "See `code` in [a page](there.md).\n```sh\nmake\n```\n"
    assert " ".join(prose(text).split()) == "See in [a page]."
