"""Compares two JSON documents field by field."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

LONGEST = 160
"""Characters of a value that are shown, at most."""


class FieldDifference(NamedTuple):
    """One field that differs."""

    where: str
    """Its path, such as `findings[2].numbers.loss`."""
    before: str
    after: str


def document_differences(before: Any, after: Any) -> list[FieldDifference]:
    """Every field that differs, in the order of the documents; empty: they are equal.

    Numbers are equal by value: 1 equals 1.0; 0.1 differs from the next larger float.
    """
    return list(_walk("", before, after))


def _walk(where: str, before: Any, after: Any) -> Iterator[FieldDifference]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            path = f"{where}.{key}" if where else str(key)
            if key not in before or key not in after:
                yield FieldDifference(path, _value(before, key), _value(after, key))
            else:
                yield from _walk(path, before[key], after[key])
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield FieldDifference(where, f"{len(before)} entries", f"{len(after)} entries")
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _walk(f"{where}[{index}]", one, other)
    elif before != after or isinstance(before, bool) != isinstance(after, bool):
        yield FieldDifference(where, _shown(before), _shown(after))


def _value(document: dict[str, Any], key: str) -> str:
    return _shown(document[key]) if key in document else "missing"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
