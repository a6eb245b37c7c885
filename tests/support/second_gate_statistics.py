"""Tests, sample sizes and blocks of the second implementation of the gate's outcome."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, comb, log, pi, sqrt

from scipy.stats import binom, norm

from service.gate.base import GateConfig, PairedAnswers, PastExperience


@dataclass(frozen=True)
class Counts:
    """What two models did on the same records."""

    n: int
    right: int
    """By the baseline."""
    lost: int
    gained: int


@dataclass(frozen=True)
class Block:
    """Holdouts that are judged as one."""

    members: tuple[PairedAnswers, ...]
    joined: frozenset[int] = frozenset()
    """Members that are neighbours, and only make up for the records that the block is short of."""

    @property
    def n(self) -> int:
        """Records of all members."""
        return sum(each.n for each in self.members)

    @property
    def key(self) -> frozenset[int]:
        """The members' numbers."""
        return frozenset(each.experience for each in self.members)


def count(answers: Iterable[PairedAnswers]) -> Counts:
    """Counts of several holdouts together."""
    n = right = lost = gained = 0
    for each in answers:
        assert each.baseline is not None
        assert each.challenger is not None
        n += len(each.baseline)
        right += int(each.baseline.sum())
        lost += int((each.baseline & ~each.challenger).sum())
        gained += int((~each.baseline & each.challenger).sum())
    return Counts(n, right, lost, gained)


def p_margin(counts: Counts, margin: float) -> float:
    """P-value of "the margin or more was lost": Tango's score test, with half a flip more lost."""
    n, lost, gained = counts.n, counts.lost + 0.5, counts.gained
    if not n:
        return 1.0
    b = margin * (2 * n - lost + gained) - lost - gained
    c = -gained * margin * (1 - margin)
    q = (sqrt(b * b - 8 * n * c) - b) / (4 * n)
    spread = sqrt(n * (2 * q + margin * (1 - margin)))
    return float(norm.sf((n * margin - (lost - gained)) / spread))


def p_lost(counts: Counts) -> float:
    """P-value of "nothing was lost": exact McNemar test, one-sided."""
    return float(binom.sf(counts.lost - 1, counts.lost + counts.gained, 0.5)) if counts.lost else 1.0


def p_gained(counts: Counts) -> float:
    """P-value of "nothing was gained": exact McNemar test, one-sided."""
    return p_lost(Counts(counts.n, counts.right, counts.gained, counts.lost))


def holm(values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's adjusted p-values, where so many questions are asked in all."""
    adjusted = [1.0] * len(values)
    largest, asked = 0.0, family or len(values)
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (asked - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def records_needed(margin: float, alpha: float, power: float, churn: float) -> int:
    """Records with which a harmless update passes with this power."""
    root = (norm.isf(alpha) * sqrt(churn + margin) + norm.isf(1 - power) * sqrt(churn)) / margin
    return ceil(float(root) ** 2)


def settled_margin(n: int, alpha: float, power: float, churn: float) -> float:
    """The margin that n records settle."""
    z, root = float(norm.isf(alpha)), sqrt(n)
    fixed = root * churn + float(norm.isf(1 - power)) * sqrt(churn)
    s = (z + sqrt(z * z + 4 * root * fixed)) / (2 * root)
    return s * s - churn


def planned_alpha(config: GateConfig, attempt: int | None) -> float:
    """What a first attempt may spend of alpha: all of it, where there is one only."""
    return config.alpha if attempt is None else 6 * config.alpha / pi**2


def attempt_alpha(config: GateConfig, attempt: int | None) -> float:
    """What this attempt may spend of alpha."""
    return planned_alpha(config, attempt) / (attempt or 1) ** 2


def look_alpha(config: GateConfig, k: int, failures: int = 0, runs: int = 0) -> float:
    """What look k may spend of alpha, after so many failures in so many runs."""
    weight = log(20) * (1 / log(19 + k) - 1 / log(20 + k))
    if not failures:
        return config.alpha * weight / 2
    extra = failures - runs
    of_lengths = 1 / ((extra + 1) * (extra + 2)) / comb(failures - 1, runs - 1)
    return config.alpha * weight * 2.0 ** -(runs + 1) * of_lengths / comb(k - 1, runs)


# Blocks


def partition(order: Iterable[tuple[int, int]], alone: int, together: int | None = None) -> list[list[int]]:
    """Experiences, with their records, of enough records alone, others in blocks; in the order of closing."""
    blocks: list[list[int]] = []
    filling: list[int] = []
    filled = 0
    for number, records in order:
        if records >= alone:
            blocks.append([number])
            continue
        filling.append(number)
        filled += records
        if filled >= (together or alone):
            blocks.append(filling)
            filling, filled = [], 0
    return [*blocks, filling] if filling else blocks


def in_order(history: Sequence[PastExperience], compared: Iterable[PairedAnswers]) -> list[PastExperience]:
    """The history, and after it, by number, what is compared and not in it."""
    known = {each.experience for each in history}
    late = sorted((each.experience, each.n) for each in compared if each.experience not in known)
    return [*history, *(PastExperience(number, records) for number, records in late)]


def make_blocks(
    judged: Sequence[PairedAnswers], history: Sequence[PastExperience], alone: int, together: int
) -> list[Block]:
    """Blocks of what is judged: members that are not, or are archived, leave without moving another."""
    archive = [each.experience for each in history if each.archived]
    groups = partition([(each.experience, each.records) for each in history], alone, together)
    return _filled([archive, *([each for each in group if each not in archive] for group in groups)], judged)


def make_units(
    judged: Sequence[PairedAnswers], history: Sequence[PastExperience], enough: int
) -> list[Block]:
    """Experiences by themselves, small ones with neighbours; the archive first, by the records judged."""
    records = {each.experience: each.n for each in judged}
    archive = [each.experience for each in history if each.archived and each.experience in records]
    others = [(each.experience, each.records) for each in history if not each.archived]
    archived = partition([(each, records[each]) for each in archive], enough)
    return _filled([*archived, *partition(others, enough)], judged)


def _filled(groups: Iterable[Sequence[int]], judged: Sequence[PairedAnswers]) -> list[Block]:
    by_number = {each.experience: each for each in judged}
    members = [tuple(by_number[each] for each in group if each in by_number) for group in groups]
    return [Block(each) for each in members if each]


def joined(blocks: Sequence[Block], enough: Callable[[Block], bool]) -> list[Block]:
    """Every block; one that is short together with those before it, then with those after it."""
    found: dict[frozenset[int], Block] = {}
    for index, block in enumerate(blocks):
        whole, own = block, block.key
        for other in [*reversed(blocks[:index]), *blocks[index + 1 :]]:
            if enough(whole):
                break
            whole = Block(whole.members + other.members)
        if same := found.pop(whole.key, None):
            own |= same.key - same.joined
        found[whole.key] = Block(whole.members, whole.key - own)
    return list(found.values())
