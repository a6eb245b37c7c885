"""Compares a reproduced challenger and verdict with the stored ones, and says where they differ."""

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
    """The reproduced challenger compared with the stored one."""

    state: Literal["same", "differs", "none"]
    """none: the data guard stopped the batch both times, so there is no challenger."""
    files: tuple[str, ...] = ()
    """Files that were compared."""
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class VerdictCheck:
    """The reproduced verdict compared with the stored one."""

    state: Literal["same", "differs", "not compared"]
    outcome: str | None
    """Outcome of the stored verdict."""
    findings: int
    """Number of findings of the stored verdict."""
    gate_then: int
    gate_now: int
    differences: tuple[FieldDifference, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """Result of `holdfast update reproduce`."""

    update: str
    pipeline: str
    outcome: Outcome
    reason: str
    """One sentence."""
    inputs: tuple[Check, ...]
    challenger: ChallengerCheck | None = None
    """None: nothing was learnt, because an input has changed or is missing."""
    verdict: VerdictCheck | None = None
    environment: tuple[FieldDifference, ...] = ()
    """How this machine and its libraries differ from the trainer's."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        plain = asdict(self)
        plain["environment"] = [each._asdict() for each in self.environment]
        if self.verdict:
            plain["verdict"]["differences"] = [each._asdict() for each in self.verdict.differences]
        return plain


def challenger_check(then: Mapping[str, str], *, made: Path, stored: Path) -> ChallengerCheck:
    """Compare two checkpoint folders file by file, and each file also with the digest stored for it."""
    now = digests(made)
    if not then and not now:
        return ChallengerCheck("none")
    found: list[Difference] = []
    for name in sorted({*then, *now}):
        file = stored / name
        if name not in now or name not in then:
            found.append(Difference(name, "", "only one of the two challengers has this file"))
        elif not file.is_file():
            if now[name] != then[name]:
                found.append(Difference(name, "", "it has another digest, and the stored file is missing"))
        elif differences := file_differences(name, file, made / name):
            found += differences
        elif now[name] != then[name]:
            # Both changed in the same way: being equal to each other proves nothing.
            found.append(Difference(name, "", "neither file has the digest that was stored with the update"))
    return ChallengerCheck("differs" if found else "same", tuple(sorted(now)), tuple(found))


def verdict_check(stored: Mapping[str, Any], *, gate: int, made: Verdict | None) -> VerdictCheck:
    """Compare the stored verdict with `made`; None: another gate version judged, so none was made.

    Args:
        gate: version of the gate that judged.
    """
    check = VerdictCheck("not compared", stored["outcome"], len(stored["findings"]), gate, GATE_VERSION)
    if made is None:
        return check
    # Through JSON, as the stored verdict was.
    differences = document_differences(stored, json.loads(json.dumps(made.as_dict())))
    named = tuple(each._replace(where=_named(each.where, stored)) for each in differences)
    return replace(check, state="differs" if named else "same", differences=named)


def _named(where: str, verdict: Mapping[str, Any]) -> str:
    """A path that names the finding: `findings[2] (retention, experience 0).numbers.loss`."""
    head, bracket, rest = where.partition("]")
    index = head.removeprefix("findings[")
    if not bracket or not head.startswith("findings[") or int(index) >= len(verdict["findings"]):
        return where
    finding = verdict["findings"][int(index)]
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
        versions = f"Gate version {verdict.gate_then} judged the update; this release has {verdict.gate_now}"
        return "verdict not compared", f"{versions}. {same}; the verdict is not compared."
    return "reproduced", f"{same}; the verdict is the same ({verdict.outcome}, {verdict.findings} findings)."
