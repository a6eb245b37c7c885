"""A challenger and a verdict that were made again, against those that are stored: the same, or where not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from service.differences import FieldDifference, document_differences
from service.gate.base import GATE_VERSION, Verdict
from service.training.checkpoint import Difference, digests, file_differences
from service.updates.input_checks import Check

Outcome = Literal["reproduced", "differs", "verdict not compared", "impossible"]


@dataclass(frozen=True)
class ChallengerCheck:
    """The challenger that was made again, against the one that is stored."""

    state: Literal["same", "differs", "none"]
    """none: the data guard stopped the batch, then and now."""
    files: tuple[str, ...] = ()
    """Files that were compared."""
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class VerdictCheck:
    """The verdict that was made again, against the stored one."""

    state: Literal["same", "differs", "not compared"]
    outcome: str | None
    """What the stored verdict says."""
    findings: int
    """Of the stored verdict."""
    gate_then: int
    gate_now: int
    differences: tuple[FieldDifference, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """What came of it."""

    update: str
    pipeline: str
    outcome: Outcome
    reason: str
    """One sentence."""
    inputs: tuple[Check, ...]
    challenger: ChallengerCheck | None = None
    """None: nothing was learnt, because an input is not what it was."""
    verdict: VerdictCheck | None = None
    environment: tuple[FieldDifference, ...] = ()
    """How this machine and its libraries differ from those that learnt."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        plain = asdict(self)
        plain["environment"] = [each._asdict() for each in self.environment]
        if self.verdict:
            plain["verdict"]["differences"] = [each._asdict() for each in self.verdict.differences]
        return plain


def challenger_check(then: Mapping[str, str], *, made: Path, stored: Path) -> ChallengerCheck:
    """File by file: by the digest that was stored, and where that is not met, by what is in the files."""
    now = digests(made)
    if not then and not now:
        return ChallengerCheck("none")
    found: list[Difference] = []
    for name in sorted({*then, *now}):
        file = stored / name
        if name not in now or name not in then:
            found.append(Difference(name, "", "only one of the two challengers has it"))
        elif not file.is_file():
            if now[name] != then[name]:
                found.append(Difference(name, "", "it is another, and the stored one is gone"))
        elif differences := file_differences(name, file, made / name):
            found += differences
        elif now[name] != then[name]:
            # Both changed in the same way: being equal to each other proves nothing.
            found.append(Difference(name, "", "neither file has the digest that was stored with the update"))
    return ChallengerCheck("differs" if found else "same", tuple(sorted(now)), tuple(found))


def verdict_check(stored: Mapping[str, Any], *, gate: int, made: Verdict | None) -> VerdictCheck:
    """The stored verdict against the one made again; None: an older gate judged, so none was made.

    Args:
        gate: version of the gate that judged.
    """
    said = VerdictCheck("not compared", stored["outcome"], len(stored["findings"]), gate, GATE_VERSION)
    if made is None:
        return said
    # Through JSON, as the stored one went.
    differences = document_differences(stored, json.loads(json.dumps(made.as_dict())))
    named = tuple(each._replace(where=_named(each.where, stored)) for each in differences)
    return replace(said, state="differs" if named else "same", differences=named)


def _named(where: str, verdict: Mapping[str, Any]) -> str:
    """A finding's path with what it is about: `findings[2] (retention, experience 0).numbers.loss`."""
    head, bracket, rest = where.partition("]")
    place = head.removeprefix("findings[")
    if not bracket or not head.startswith("findings[") or int(place) >= len(verdict["findings"]):
        return where
    finding = verdict["findings"][int(place)]
    about = "" if finding["experience"] is None else f", experience {finding['experience']}"
    return f"{head}] ({finding['guard']}{about}){rest}"


def conclusion(
    checks: Sequence[Check], challenger: ChallengerCheck, verdict: VerdictCheck
) -> tuple[Outcome, str]:
    """The outcome, and why in one sentence."""
    differs = [each.name for each in checks if each.state != "same"]
    if challenger.state == "differs":
        first = challenger.differences[0]
        what = f"{first.what} in {first.file}" if first.what else first.file
        differs.append(f"the challenger ({what}: {first.detail})")
    if verdict.state == "differs":
        change = verdict.differences[0]
        differs.append(f"the verdict ({change.where}: {change.before} stored, {change.after} made again)")
    if differs:
        return "differs", f"Not the same: {'; '.join(differs)}."
    same = "The challenger is the same, bit for bit" if challenger.files else "There was no challenger"
    if verdict.state == "not compared":
        older = f"Judged by gate version {verdict.gate_then}; this release is {verdict.gate_now}"
        return "verdict not compared", f"{older}. {same}; the verdict is not compared."
    return "reproduced", f"{same}; the verdict is the same ({verdict.outcome}, {verdict.findings} findings)."
