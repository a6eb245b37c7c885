"""How many records of each past holdout an update is judged on, so that the gate's cost stays bounded."""

from collections.abc import Collection, Iterable

from service.gate.base import GateConfig


def records_judged(holdouts: Iterable[int], pinned: Collection[int], gate: GateConfig) -> dict[int, int]:
    """Past holdout -> the number of its records that are judged, at most.

    The newest and the pinned ones are judged whole, up to a limit each. The others share an archive of
    bounded size evenly; where it has fewer records than there are holdouts, evenly spaced ones get one each.
    """
    active = sorted(holdouts)
    archived = sorted(archive(active, pinned, gate))
    share = max(1, min(gate.holdout_records, gate.archive_records // max(1, len(archived))))
    kept = archived
    if len(archived) > gate.archive_records:
        kept = [
            archived[index * len(archived) // gate.archive_records] for index in range(gate.archive_records)
        ]
    dropped, shared = set(archived) - set(kept), set(kept)
    return {
        index: share if index in shared else gate.holdout_records for index in active if index not in dropped
    }


def archive(holdouts: Iterable[int], pinned: Collection[int], gate: GateConfig) -> set[int]:
    """The past holdouts that are archived: neither among the newest nor pinned."""
    active = sorted(holdouts)
    loose = [index for index in active if index not in pinned]
    whole = max(0, gate.max_holdouts - (len(active) - len(loose)))
    return set(loose[: len(loose) - whole] if whole < len(loose) else [])
