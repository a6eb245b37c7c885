"""What only reads takes no write lock: by its source, and while another connection holds that lock."""

import ast
import sqlite3
import time
from collections.abc import Iterator
from functools import cache

import pytest

from tests.support.api_parts import Api, declare, learn, running_api
from tests.support.repository import ROOT

PACKAGES = ("service", "streams")
STATEMENTS = {"insert", "update", "delete"}
"""SQLAlchemy's functions whose statements change rows."""
LIBRARIES = {"sa", "sql", "postgresql", "sqlite"}
LOCK = "pg_advisory_xact_lock"


@cache
def functions() -> tuple[tuple[str, ast.FunctionDef], ...]:
    return tuple(
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    )


def called(node: ast.AST) -> set[str]:
    """Names of the functions that are handed a connection inside."""
    return {
        ast.unparse(each.func).rpartition(".")[2]
        for each in ast.walk(node)
        if isinstance(each, ast.Call)
        and any(isinstance(given, ast.Name) and given.id == "connection" for given in each.args)
    }


def changes_rows(node: ast.AST) -> bool:
    """Whether there is a statement inside that changes rows, or takes a lock."""
    return any(
        (
            isinstance(each, ast.Attribute)
            and each.attr in STATEMENTS
            and isinstance(each.value, ast.Name)
            and each.value.id in LIBRARIES
        )
        or (isinstance(each, ast.Constant) and isinstance(each.value, str) and LOCK in each.value)
        for each in ast.walk(node)
    )


@cache
def writers() -> frozenset[str]:
    """Names of functions that change rows, by themselves or through one that they hand their connection."""
    found = [(node.name, changes_rows(node), called(node)) for _, node in functions()]
    names = {name for name, writes, _ in found if writes}
    while more := {name for name, _, calls in found if calls & names} - names:
        names |= more
    return frozenset(names)


def test_a_transaction_that_takes_the_write_lock_writes() -> None:
    """`engine.begin()` takes SQLite's one write lock; a transaction that only reads is `reading(engine)`."""
    idle = []
    for where, node in functions():
        for block in ast.walk(node):
            if not isinstance(block, ast.With):
                continue
            begins = any(ast.unparse(item.context_expr).endswith("engine.begin()") for item in block.items)
            inside = ast.Module(body=list(block.body), type_ignores=[])
            if begins and not changes_rows(inside) and not called(inside) & writers():
                idle.append(where)
    assert not idle, f"these only read, so they take `reading(engine)`: {idle}"


def test_the_search_for_writers_sees_the_difference() -> None:
    assert {"promote", "append", "enqueue", "write", "close_review", "lock_pipeline"} <= writers()
    readers = {"load_spec", "lineage", "of_pipeline", "marks", "_stored_answers", "aliases", "seen"}
    assert not readers & writers()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("reading")) as running:
        yield running


def test_every_get_answers_while_another_connection_holds_the_write_lock(api: Api) -> None:
    pipeline = declare(api, "held")
    learn(api, pipeline, "promote")
    update = learn(api, pipeline, "review")
    described = api.http.get("/openapi.json").json()["paths"]
    paths = [path for path, operations in described.items() if "get" in operations]
    assert len(paths) >= 13
    writer = sqlite3.connect(api.settings.root / "holdfast.db", isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        for path in paths:
            started = time.monotonic()
            answer = api.http.get(path.format(pipeline=pipeline, update=update, dead_letter="0" * 16))
            # One that waited for the writer would give up after 30 seconds, with status 503.
            assert time.monotonic() - started < 10, path
            assert answer.status_code == (404 if "{dead_letter}" in path else 200), (path, answer.text)
    finally:
        writer.execute("ROLLBACK")
        writer.close()
