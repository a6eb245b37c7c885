"""Which past experiences are judged as one: by their order and their numbers of records, never by answers.

Experiences with enough records are judged alone; the others in blocks of neighbours, each closed as soon as
it has enough. A closed block stays as it is: what is learnt later opens the next one, and what is retired
leaves its block without moving any other.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from service.gate.base import PairedAnswers, PastExperience


class Pool(NamedTuple):
    """Experiences judged as one."""

    own: tuple[int, ...]
    """The members of the block, as learnt."""
    joined: tuple[int, ...] = ()
    """Neighbours outside the block that make up for the records it is short of."""

    @property
    def members(self) -> tuple[int, ...]:
        return self.own + self.joined if self.joined else self.own


Enough = Callable[[Sequence[int]], int]
"""Records that these experiences need to be judged as one."""


def blocks_of(
    history: Sequence[PastExperience], sizes: Mapping[int, int], enough: int, *, alone: int | None = None
) -> list[list[int]]:
    """The blocks of the experiences that are judged, oldest first. The archive is one block, the first.

    Args:
        history: every experience that was learnt, in that order, with the records that set the blocks.
        sizes: experience -> its records, of those that are judged.
        enough: records from which on a block is closed.
        alone: records from which on an experience is a block by itself; None: `enough`.
    """
    archive = [each.experience for each in history if each.archived and each.experience in sizes]
    judged = {each.experience for each in history if not each.archived}.intersection(sizes)
    blocks = partition(((each.experience, each.records) for each in history), enough, alone=alone)
    if len(judged) < len(history):
        blocks = [[each for each in block if each in judged] for block in blocks]
    return [block for block in (archive, *blocks) if block]


def units_of(history: Sequence[PastExperience], sizes: Mapping[int, int], enough: int) -> list[list[int]]:
    """As `blocks_of`, with the archive in blocks too, by the records that are judged of it."""
    archive = [each.experience for each in history if each.archived and each.experience in sizes]
    others = [each for each in history if not each.archived]
    archived = partition([(each, sizes[each]) for each in archive], enough)
    return [*archived, *blocks_of(others, sizes, enough)]


def partition(
    history: Iterable[tuple[int, int]], enough: int, *, alone: int | None = None
) -> list[list[int]]:
    """Experiences of enough records alone, the others with their neighbours; by their last members.

    Args:
        history: each experience with its records, in the order in which they were learnt.
        enough: records from which on a block is closed.
        alone: records from which on an experience is a block by itself; None: `enough`.
    """
    alone = enough if alone is None else alone
    blocks: list[list[int]] = []
    open_: list[int] = []
    records = 0
    for experience, n in history:
        if n >= alone:
            blocks.append([experience])
            continue
        open_.append(experience)
        records += n
        # One that is too small to be alone is closed with a neighbour, whatever the others may take.
        if records >= enough and len(open_) > 1:
            blocks.append(open_)
            open_, records = [], 0
    return [*blocks, open_] if open_ else blocks


def pools_of(blocks: Sequence[Sequence[int]], sizes: Mapping[int, int], enough: Enough) -> list[Pool]:
    """Each block, with as many neighbours as make it enough: those before it, then those after.

    Blocks that come to be judged on the same records are one pool. The last pool is that of the newest block.
    """
    records = [sum(map(sizes.__getitem__, block)) for block in blocks]
    pools: dict[Hashable, Pool] = {}
    for place, block in enumerate(blocks):
        if records[place] >= enough(block):
            # No pool of several blocks has the same records: it needs no look for one.
            pools[place] = Pool(tuple(sorted(block) if len(block) > 1 else block))
            continue
        members, n = list(block), records[place]
        for other in (*range(place - 1, -1, -1), *range(place + 1, len(blocks))):
            if n >= enough(members):
                break
            members += blocks[other]
            n += records[other]
        key = frozenset(members)
        # The later of two alike stands at its own place, so that the newest comes last.
        alike = pools.pop(key, None)
        own = {*block, *alike.own} if alike else set(block)
        pools[key] = Pool(tuple(sorted(own)), tuple(sorted(set(members) - own)))
    return list(pools.values())


def history_of(
    history: Sequence[PastExperience], judged: Sequence[PairedAnswers]
) -> tuple[PastExperience, ...]:
    """The history, and after it, by number, what is judged and not in it, with the records judged of it.

    An experience that stands there twice counts once.
    """
    once: dict[int, PastExperience] = {}
    for each in history:
        once.setdefault(each.experience, each)
    known, history = once.keys(), tuple(once.values())
    missing = sorted(
        (each for each in judged if each.experience not in known), key=lambda each: each.experience
    )
    return (*history, *(PastExperience(each.experience, each.n) for each in missing))
