"""Output and exit status of `holdfast update reproduce`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

STATUS = {"reproduced": 0, "impossible": 1, "differs": 3, "verdict not compared": 4}
"""Outcome -> exit status; as everywhere, 1 is a failure and 2 wrong usage or settings."""
MOST = 8
"""At most so many inputs of one kind are listed singly, and so many differences are shown."""


def lines(reproduction: Mapping[str, Any]) -> Iterator[str]:
    """The JSON form of a `Reproduction` as lines of text."""
    yield f"Update {reproduction['update']} of {reproduction['pipeline']}"
    yield "Inputs:"
    for _, same_kind in groupby(reproduction["inputs"], key=lambda each: each["kind"]):
        yield from _inputs(list(same_kind))
    if reproduction["challenger"]:
        yield from _challenger(reproduction["challenger"])
    if reproduction["verdict"]:
        yield from _verdict(reproduction["verdict"])
    for each in reproduction["environment"]:
        yield f"Other environment: {each['where']}: {each['before']} then, {each['after']} now"
    yield f"{reproduction['outcome'].capitalize()}. {reproduction['reason']}"


def _inputs(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    same = [each for each in checks if each["state"] == "same"]
    if len(same) > MOST:
        yield f"  same     {len(same)} times {same[0]['kind']}"
    for each in checks:
        if each["state"] != "same" or len(same) <= MOST:
            yield f"  {each['state']:<7}  {each['name']}{_digests(each)}"
            if each["detail"]:
                yield f"           {each['detail']}"


def _digests(check: Mapping[str, Any]) -> str:
    stored, found = check["stored"], check["found"]
    if check["state"] == "same" or not found:
        return f" ({_short(stored)})" if stored else ""
    return f" ({_short(stored)} stored, {_short(found)} found)"


def _short(text: str) -> str:
    """The first 12 digits of a digest; other text unchanged."""
    return text[:12] if len(text) == 64 else text


def _challenger(challenger: Mapping[str, Any]) -> Iterator[str]:
    if challenger["state"] == "none":
        yield "Challenger: none; the data guard stopped the batch, then and now"
        return
    files = ", ".join(challenger["files"])
    yield f"Challenger: {'same, bit for bit' if challenger['state'] == 'same' else 'differs'} ({files})"
    found = challenger["differences"]
    for each in found[:MOST]:
        yield f"  {each['file']}{': ' + each['what'] if each['what'] else ''}: {each['detail']}"
    if len(found) > MOST:
        yield f"  and {len(found) - MOST} more; --json has all"


def _verdict(verdict: Mapping[str, Any]) -> Iterator[str]:
    if verdict["state"] == "not compared":
        yield (
            f"Verdict: not compared; gate version {verdict['gate_then']} judged the update, "
            f"this release has {verdict['gate_now']}"
        )
        return
    stored = f"{verdict['outcome']}, {verdict['findings']} findings, gate version {verdict['gate_then']}"
    yield f"Verdict: {verdict['state']} ({stored})"
    found = verdict["differences"]
    for each in found[:MOST]:
        yield f"  {each['where']}: {each['before']} stored, {each['after']} made again"
    if len(found) > MOST:
        yield f"  and {len(found) - MOST} more; --json has all"
