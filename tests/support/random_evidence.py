"""Random evidence for the gate: holdouts of very different sizes, rare classes, audits and history.

Golden sets come with it, and what makes a rejection a question.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.gate.base import Audit, DataEvidence, Evidence, GateConfig, PairedAnswers, PastExperience
from tests.support.random_questions import with_disputes, with_golden, with_near_duplicates, with_traffic

Bits = NDArray[np.bool_]
MOODS = (*["harmless"] * 4, "one", "some", "some", "all", "rare", "new", "eroded")
"""What an update does, each as likely as it occurs here."""


@dataclass(frozen=True)
class World:
    """What all holdouts of one evidence share."""

    rng: np.random.Generator
    shares: NDArray[np.float64]
    """(classes,) share of each class."""
    accuracy: float
    churn: float
    mood: str
    hurt: tuple[int, ...]
    """The places among the past experiences, or the class, that are hurt."""
    loss: float


def random_case(seed: int, index: int, *, questions: bool = True) -> tuple[Evidence, GateConfig]:
    """Evidence and configuration number `index` of the sequence that starts from `seed`.

    Without `questions` it has no golden sets, and nothing that makes a rejection a question.
    """
    rng = np.random.default_rng([seed, index])
    config = _config(rng)
    past_count, new_count = int(rng.integers(1, 13)), int(rng.integers(1, 4))
    world = _world(rng, config, past_count)
    largest = float(rng.choice([100, 600, 3000, 3000]))
    total = past_count + int(rng.integers(0, 4))
    numbers = sorted(int(each) for each in rng.choice(total + 2, size=past_count, replace=False))
    past, history = _past(world, config, numbers, largest)
    new = tuple(
        _paired(world, total + 2 + number, _size(rng, largest), new=True) for number in range(new_count)
    )
    evidence = Evidence(
        data=DataEvidence(600, 0),
        past=past,
        new=new,
        attempt=None if rng.random() < 0.1 else int(rng.choice([1, 1, 2, 3])),
        audit=_audit(world, config, past) if rng.random() < 0.5 else None,
        champion=total,
        history=history,
    )
    return _with_questions(world, evidence, config) if questions else evidence, config


def _with_questions(world: World, evidence: Evidence, config: GateConfig) -> Evidence:
    """The evidence with golden sets, disputes and the like, each in some of the cases."""
    rng, numbers = world.rng, [each.experience for each in evidence.past]
    hurt = {"all": numbers, "one": [numbers[each] for each in world.hurt if each < len(numbers)]}
    hurt["some"] = hurt["one"]
    stopped = sorted(hurt.get(world.mood, []))
    if rng.random() < 0.4:
        evidence = with_golden(rng, evidence, config)
    if rng.random() < (0.9 if stopped else 0.3):
        evidence = with_disputes(rng, evidence, stopped)
    if rng.random() < (0.35 if stopped else 0.2):
        evidence = with_traffic(rng, evidence)
    if rng.random() < (0.3 if stopped else 0.1):
        evidence = with_near_duplicates(rng, evidence, stopped)
    return evidence


def _config(rng: np.random.Generator) -> GateConfig:
    """Margins and the like: mostly those that a pipeline would have."""
    margin = round(float(rng.uniform(0.02, 0.1)), 3)
    same = rng.random() < 0.7
    return GateConfig(
        margin=margin,
        learning_margin=margin if same else round(float(rng.uniform(0.02, 0.1)), 3),
        single_margin=float(rng.choice([0.15, 0.15, 0.15, 0.1, 0.2])),
        rare_margin=float(rng.choice([0.5, 0.5, 0.5, 0.4])),
        budget=0.05 if rng.random() < 0.3 else round(float(rng.uniform(0.05, 0.15)), 3),
        audits=int(rng.choice([50, 50, 5, 2])),
        alpha=float(rng.choice([0.05, 0.05, 0.1, 0.01])),
        planned_churn=float(rng.choice([0.12, 0.12, 0.04, 0.2])),
        holdout_looks=500 if rng.random() < 0.97 else 3,
    )


def _world(rng: np.random.Generator, config: GateConfig, past_count: int) -> World:
    """Classes (with rare ones in half of the cases), accuracy, churn, and what the update hurts."""
    shares = rng.dirichlet(np.full(int(rng.integers(2, 13)), 5.0))
    if rng.random() < 0.5:
        rare = rng.choice(len(shares), size=int(rng.integers(1, 1 + len(shares) // 2)), replace=False)
        shares[rare] = rng.uniform(0.001, 1.1 * config.margin, len(rare))
        shares /= shares.sum()
    mood = str(rng.choice(MOODS))
    several = int(rng.integers(2, 4)) if mood == "some" else 1
    places = rng.choice(past_count, size=min(several, past_count), replace=False)
    hurt = (int(np.argmin(shares)),) if mood == "rare" else tuple(int(each) for each in places)
    loss = float(rng.uniform(0.2, 0.9)) if mood == "rare" else float(rng.uniform(0.5, 3.0)) * config.margin
    churn = float(rng.choice([0.0, 0.01, 0.03, 0.06, 0.12]))
    return World(rng, shares, float(rng.uniform(0.6, 0.98)), churn, mood, hurt, loss)


def _size(rng: np.random.Generator, largest: float) -> int:
    """Records of a holdout: small ones as often as large ones."""
    return int(np.exp(rng.uniform(np.log(20), np.log(largest))))


def _answers(world: World, labels: NDArray[np.int64], loss: float) -> tuple[Bits, Bits]:
    """Bits of two models, of which the second lost so much."""
    rng, n = world.rng, len(labels)
    baseline = rng.random(n) < world.accuracy
    if rng.random() < 0.005:
        baseline[:] = False
    lose = np.full(n, world.churn / 2 + loss) / max(world.accuracy, 0.01)
    if world.mood == "rare":
        lose[labels == world.hurt[0]] += world.loss
    gain = world.churn / 2 / (1 - world.accuracy)
    flips = rng.random(n) < np.where(baseline, lose, gain)
    return baseline, baseline ^ flips


def _paired(
    world: World,
    number: int,
    n: int,
    *,
    place: int | None = None,
    new: bool = False,
    margin: float | None = None,
) -> PairedAnswers:
    """Answers on one holdout; `place` is that among the past ones."""
    hit = world.mood == "all" or (world.mood == "new" and new)
    hit = hit or (world.mood in ("one", "some") and place in world.hurt)
    labels = world.rng.choice(len(world.shares), size=n, p=world.shares).astype(np.int64)
    baseline, challenger = _answers(world, labels, world.loss if hit else 0.0)
    looks = int(world.rng.integers(0, 6))
    return PairedAnswers(
        number, baseline, challenger, margin=None if new else margin, looks=0 if new else looks, labels=labels
    )


def _past(
    world: World, config: GateConfig, numbers: list[int], largest: float
) -> tuple[tuple[PairedAnswers, ...], tuple[PastExperience, ...]]:
    """Past holdouts, and a history in which some others are retired, and the oldest are archived."""
    rng = world.rng
    has_own, has_history = rng.random() < 0.2, rng.random() < 0.7
    archived = int(rng.integers(0, 4)) if has_history and rng.random() < 0.3 else 0
    past, history = [], []
    for number in range(max(numbers) + 1):
        n = _size(rng, largest)
        is_archived = number in numbers[:archived]
        if number in numbers:
            own = round(float(rng.uniform(0.02, 0.2)), 3) if has_own and rng.random() < 0.3 else None
            margin = None if is_archived else own
            kept = max(n // 3, 10) if is_archived else n
            past.append(_paired(world, number, kept, place=numbers.index(number), margin=margin))
        history.append(PastExperience(number, n, is_archived))
    return tuple(past), tuple(history) if has_history else ()


def _audit(world: World, config: GateConfig, past: tuple[PairedAnswers, ...]) -> Audit:
    """Sealed records of the past experiences, against their anchors."""
    rng = world.rng
    eroded = world.mood == "eroded"
    factor, looks = float(rng.choice([0.5, 1, 3])), int(rng.choice([0, 1, 5, 30]))
    sealed, gate, history = [], [], []
    for place, each in enumerate(past):
        n = 0 if rng.random() < 0.05 else int(each.n * factor * rng.uniform(0.5, 1.5))
        loss = float(rng.uniform(0.3, 2.5)) * config.budget if eroded and rng.random() < 0.7 else 0.0
        seen = max(looks - place, 0)
        failures = int(rng.integers(0, 1 + min(seen, 4))) if rng.random() < 0.3 else 0
        runs = int(rng.integers(1, 1 + min(failures, seen - failures + 1))) if failures else 0
        parts = []
        for records in (n, each.n):
            labels = rng.choice(len(world.shares), size=records, p=world.shares).astype(np.int64)
            parts.append(_answers(world, labels, loss))
        sealed.append(
            PairedAnswers(each.experience, *parts[0], each.margin, seen, failures=failures, failure_runs=runs)
        )
        gate.append(PairedAnswers(each.experience, *parts[1], each.margin))
        history.append(PastExperience(each.experience, n))
        if rng.random() < 0.05:
            history.insert(0, PastExperience(-1 - place, int(n * rng.uniform(0.5, 2))))
    known = tuple(history) if rng.random() < 0.7 else ()
    return Audit(tuple(sealed), gate=tuple(gate), history=known)
