"""What retention promises of a promotion, and what could go unseen: one note for each."""

import math

import numpy as np

from service.gate import stats
from service.gate.base import PairedAnswers
from tests.service.gate.guards.test_retention import CLOSED, answered, settled, several
from tests.support.gate_parts import CONFIG, paired


def test_what_a_promotion_promises_is_said_and_what_could_go_unseen() -> None:
    """Of small ones together with their neighbours too; of what nothing is judged so, nothing is promised."""
    _, notes = answered(*several(700, range(2)), paired(50, experience=5))
    assert [each.about for each in notes] == ["promise", "promise", "retention"]
    blocks, single, unseen = notes
    assert blocks.sentence == (
        "past experiences, in blocks of neighbours: a challenger that truly lost 5 points or more on a block "
        "is promoted at most 5 % of the time"
    )
    assert single.sentence == (
        "each past experience by itself, the smallest with their neighbours: a challenger that truly lost "
        f"what their records settle, here {100 * settled(700):.1f} points at most, is promoted at most 5 % "
        "of the time"
    )
    assert (blocks.numbers["margin"], single.numbers["margin"]) == (0.05, settled(700))
    assert unseen.sentence.startswith("experience 5 has 50 records: a loss of up to ")
    assert unseen.sentence.endswith(" points could go unseen")
    assert unseen.numbers["n"] == 50
    alone = answered(*several(600, range(2)))[1][1]
    assert alone.sentence.startswith("each past experience by itself: a challenger that ")
    grouped = answered(*several(100, range(12)))[1][1]
    assert grouped.sentence.startswith("past experiences in small groups: a challenger that ")


def test_a_promise_stands_for_each_kind_of_finding_and_for_each_margin_of_its_own() -> None:
    def promised(*past: PairedAnswers) -> list[str]:
        return [each.sentence.split(": ")[0] for each in answered(*past)[1] if each.about == "promise"]

    blocks = "past experiences, in blocks of neighbours"
    assert promised(paired(CLOSED), paired(CLOSED, experience=1)) == [blocks], "the block answers for it"
    own = [paired(600, experience=each, margin=each / 100) for each in (8, 9)]
    assert promised(*own) == ["experience 8", "experience 9"]
    assert promised(paired(CLOSED), *own) == [blocks, "experience 8", "experience 9"]
    note = answered(*own)[1][0]
    assert note.sentence == (
        "experience 8: a challenger that truly lost 8 points or more, its own margin, is promoted at most "
        "5 % of the time"
    )
    assert note.numbers == {"margin": 0.08, "alpha": 0.05}


def test_only_what_is_small_could_go_unseen_and_the_smallest_is_named() -> None:
    assert len(answered(*several(600, range(3)))[1]) == 2
    alike = answered(*several(100, range(12)))[1][2]
    assert alike.sentence.startswith(
        "experiences 0 to 11 have 100 records each: a loss on one of them of up to"
    )
    apart = answered(*several(100, range(12)), paired(60, experience=12))[1][2]
    assert apart.sentence.startswith(
        "experiences 0 to 12 have 60 to 100 records: a loss on the smallest of up to"
    )
    assert apart.numbers["unseen"] > alike.numbers["unseen"]


def test_what_could_go_unseen_is_seen_nineteen_times_in_twenty() -> None:
    """The alarm on one of twelve of 100 records, at the loss and the churn that the note tells."""
    _, notes = answered(*several(100, range(12)))
    loss = notes[2].numbers["unseen"]
    family = 12 + 1 + 6
    random = np.random.default_rng(0)
    shares = [loss, 0.0, 1 - loss]
    lost, gained, _ = random.multinomial(100, shares, 4000).T
    seen = stats.mcnemar_drop_p(lost, gained) * family <= CONFIG.alarm_alpha
    assert seen.mean() >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 4000)
