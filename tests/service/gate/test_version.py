"""The gate's version stands for what the gate says: verdicts of one version can be compared."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np

from service.gate.base import (
    GATE_VERSION,
    Audit,
    Bits,
    Evidence,
    Freeze,
    GateConfig,
    PairedAnswers,
    PastExperience,
)
from service.gate.decide import decide
from tests.service.gate.guards.test_all_guards import ALL, GOOD, sound

SAYS = {2: "2509b0f7d2ed1389980dc21f30f09c22aeb2ee29823de699c6d1fcb95cf158b8"}
"""Version of the gate -> digest of its verdicts on the evidence below."""


def right(n: int, *, wrong_each: int) -> Bits:
    bits: Bits = np.arange(n) % wrong_each != 0
    return bits


def evidence() -> list[tuple[Evidence, GateConfig]]:
    """Evidence that each guard answers to in more than one way."""
    worse = replace(sound(0), challenger=right(600, wrong_each=3))
    slightly = replace(sound(0), challenger=right(600, wrong_each=16), looks=3, margin=0.02)
    small = PairedAnswers(3, right(60, wrong_each=9), right(60, wrong_each=7))
    anchored = PairedAnswers(0, right(900, wrong_each=20), right(900, wrong_each=19), looks=2)
    few = sound(20, n=40)
    sealed = Audit(
        tuple(replace(anchored, experience=each, failures=1, failure_runs=1) for each in range(7)),
        last_audited=1,
        gate=(anchored,),
        history=tuple(PastExperience(each, 900) for each in (0, 2, 4, 6, 1, 3, 5)),
    )
    fallen = replace(anchored, experience=8, challenger=right(900, wrong_each=4))
    rare = np.repeat([0, 1, 2, 3], [8900, 60, 36, 4])
    whole = PairedAnswers(0, right(9000, wrong_each=20), right(9000, wrong_each=20), labels=rare)
    gone = replace(whole, challenger=right(9000, wrong_each=20) & (rare != 1))
    broken = replace(GOOD.data, nonfinite_records=3)
    return [
        (GOOD, ALL),
        (replace(GOOD, past=(worse, sound(1))), ALL),
        (replace(GOOD, past=(slightly, sound(1), small), attempt=2), GateConfig(margin=0.05)),
        (replace(GOOD, past=tuple(sound(each, n=90) for each in range(3, 20)), new=(few,)), GateConfig()),
        (replace(GOOD, past=(worse, *(sound(each, n=900) for each in range(3, 9)))), GateConfig(margin=0.04)),
        (replace(GOOD, audit=sealed, champion=2), GateConfig(margin=0.05)),
        (replace(GOOD, audit=replace(sealed, answers=(*sealed.answers, fallen))), GateConfig(margin=0.05)),
        (replace(GOOD, past=(*GOOD.past, sound(1)), attempt=0), ALL),
        (replace(GOOD, past=(), first=True), GateConfig(learning_gain=0.1)),
        (replace(GOOD, audit=Audit((anchored,), last_audited=1), champion=2), GateConfig(margin=0.05)),
        (replace(GOOD, freeze=Freeze("u-1", None), champion=2), GateConfig()),
        (replace(GOOD, running=None, repeats=(), disturbed=()), ALL),
        (Evidence(broken, learnt=False), GateConfig()),
        *(
            (replace(GOOD, past=(each,), classes=("a", "b", "c", "d")), GateConfig())
            for each in (whole, gone)
        ),
    ]


def rounded(document: Any) -> Any:
    """Numbers to six figures: the last bits are the machine's."""
    if isinstance(document, float):
        return float(f"{document:.6g}")
    if isinstance(document, dict):
        return {key: rounded(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [rounded(each) for each in document]
    return document


def test_a_gate_that_says_something_else_has_another_version() -> None:
    verdicts = [decide(each, config).as_dict() for each, config in evidence()]
    said = hashlib.sha256(json.dumps(rounded(verdicts), sort_keys=True).encode()).hexdigest()
    assert said == SAYS.get(GATE_VERSION), (
        "the gate answers the same evidence otherwise: raise GATE_VERSION in service/gate/base.py and put "
        f"{said} here for it (before a release the digest alone may change)"
    )
    assert {verdict["outcome"] for verdict in verdicts} == {"promote", "review", "reject"}
