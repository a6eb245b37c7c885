"""The data guard before learning: judges each experience of a batch once, and stops the bad ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from service.gate.base import Answer, DataEvidence
from service.gate.guards import batch as batch_guards
from service.gate.screen import data_evidence, profile
from service.training.inspection import Inspector, broken_records, pictures
from service.training.tasks import Result, Stored, Task
from streams.base import Experience

NEWEST_HOLDOUTS, OLDER_HOLDOUTS = 5, 5
"""Past holdouts that new data is compared with, at most."""

_FAILED = 2
_BADNESS: Mapping[Answer, int] = {"pass": 0, "undecided": 1, "fail": _FAILED}


def reference_holdouts(task: Task) -> list[Stored]:
    """Past holdouts that new data is compared with, newest first: the newest, and some older ones."""
    newest_first = sorted(task.past_holdouts, key=lambda part: part.experience, reverse=True)
    newest, older = newest_first[:NEWEST_HOLDOUTS], newest_first[NEWEST_HOLDOUTS:]
    spread = np.linspace(0, len(older) - 1, min(len(older), OLDER_HOLDOUTS)).astype(int)
    return [*newest, *(older[index] for index in spread)]


def screen(task: Task, parts: Sequence[Experience], past: Inspector | None) -> Result:
    """A result without a challenger: what the data guard found on the batch.

    Each experience is judged alone. The result holds the evidence and findings of the worst one, or of the
    newest among equally bad ones. Shift is tested on all experiences together, and can make the guard
    stricter.
    """
    evidence = [_evidence(task, part) for part in parts]
    readable = all(data.misshapen is None and not data.nonfinite_records for data in evidence)
    shift = None
    if past and readable:
        evidence = [
            replace(data, suspects=past.suspects(part)) for data, part in zip(evidence, parts, strict=True)
        ]
        shift = past.shift(parts, alpha=task.gate.shift_alpha)
    config = task.gate.for_shift(shift)
    findings = [batch_guards.data(data, config) for data in evidence]
    badness = [max(_BADNESS[finding.answer] for finding in each) for each in findings]
    worst = max(range(len(parts)), key=lambda index: (badness[index], index))
    stopped = tuple(part.index for part, each in zip(parts, badness, strict=True) if each == _FAILED)
    return Result(
        data=evidence[worst],
        data_findings=tuple(each.storable() for each in findings[worst]),
        stopped=stopped,
        screens={part.index: profile(part.inputs, part.labels) for part in parts},
        shift=shift,
        pictures=pictures(parts[worst], evidence[worst]) if stopped else {},
    )


def _evidence(task: Task, part: Experience) -> DataEvidence:
    """The evidence on an experience alone, without the past holdouts."""
    data = data_evidence(
        part.inputs,
        part.labels,
        n_classes=len(task.stream.classes),
        shape=task.stream.shape,
        reference=task.references,
    )
    return replace(data, worst=broken_records(part)) if data.nonfinite_records else data
