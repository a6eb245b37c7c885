"""What a crash run left behind, looked at from outside and held against what was produced."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.state.database import connect
from streams.base import Experience
from streams.state.manifest import ExperienceRow, Manifest
from streams.store.experiences import ExperienceStore
from tests.chaos.crashes.files import Partition
from tests.chaos.crashes.life import Place
from tests.chaos.crashes.records import RECORDS, Truth, Variant, good, truth, values_of
from tests.chaos.crashes.streams import PIPELINE

_ALL = 10_000_000


@dataclass
class Verdict:
    """Counts, and every promise that was not kept."""

    experiences: int = 0
    records_produced: int = 0
    records_in_experiences: int = 0
    duplicates: int = 0
    """Records that are in experiences more than once, as often as that is too often."""
    lost: int = 0
    foreign: int = 0
    """Records in experiences that nobody produced."""
    dead_letters_expected: int = 0
    dead_letters_found: int = 0
    copies_sent: int = 0
    copies_dropped: int = 0
    halves_waiting: int = 0
    """Features without a label and labels without features, which wait on."""
    orphans_collected: int = 0
    problems: list[str] = field(default_factory=list)

    def require(self, kept: bool, problem: str) -> None:
        if not kept:
            self.problems.append(problem)


def judge(place: Place, variant: Variant, chunks: int, partitions: Mapping[str, Partition]) -> Verdict:
    """Read all that the database and the store hold. Collects the garbage, and looks again."""
    verdict = Verdict()
    engine = connect(place.database)
    manifest, store = Manifest(engine), place.store()
    rows = manifest.experiences(PIPELINE)
    expected = truth(variant, chunks)
    verdict.experiences = len(rows)
    verdict.require([row.index for row in rows] == list(range(len(rows))), "the indices have gaps")
    sizes = {row.rows for row in rows if not row.decision.get("forced")}
    verdict.require(sizes <= {RECORDS}, f"experiences were cut with {sorted(sizes)} records")
    contents = [_read(store, row, verdict) for row in rows]
    _count_records(verdict, expected, contents)
    reached = _follow_offsets(verdict, variant, rows, contents, partitions)
    _compare_letters(verdict, manifest, partitions)
    _compare_waiting(verdict, manifest, store, place, partitions, reached)
    with engine.begin() as connection:
        dropped = connection.exec_driver_sql("SELECT duplicates FROM stream_states").scalar_one()
    verdict.copies_sent, verdict.copies_dropped = expected.copies, int(dropped)
    verdict.require(dropped == expected.copies, f"{expected.copies} copies were sent and {dropped} dropped")
    _collect_garbage(verdict, manifest, store, place)
    engine.dispose()
    return verdict


def _read(store: ExperienceStore, row: ExperienceRow, verdict: Verdict) -> list[str]:
    """The ids in all parts of an experience, whose records must be as they were sent."""
    ids: list[str] = []
    for part in (row.train, row.gate, row.audit):
        found = store.open(part.digest, index=row.index)
        verdict.require(len(found) == part.rows, f"a part of experience {row.index} has another length")
        _compare_values(verdict, found)
        ids += found.record_ids.tolist()
    return ids


def _compare_values(verdict: Verdict, found: Experience) -> None:
    values = [values_of(record) for record in found.record_ids.tolist()]
    inputs = np.array([[x, y] for x, y, _ in values], dtype=np.float32).reshape(-1, 2)
    labels = [label for _, _, label in values]
    same = np.array_equal(found.inputs, inputs) and found.labels.tolist() == labels
    verdict.require(same, f"a record in experience {found.index} is not what was sent")


def _count_records(verdict: Verdict, expected: Truth, contents: Sequence[list[str]]) -> None:
    found = Counter(record for ids in contents for record in ids)
    verdict.records_produced = expected.records.total()
    verdict.records_in_experiences = found.total()
    verdict.lost = len(expected.records.keys() - found.keys())
    verdict.foreign = len(found.keys() - expected.records.keys())
    verdict.duplicates = sum(count - 1 for count in found.values())
    verdict.require(not verdict.lost, f"{verdict.lost} records are in no experience")
    verdict.require(not verdict.foreign, f"{verdict.foreign} records were never produced")
    verdict.require(not verdict.duplicates, f"{verdict.duplicates} records are there again")


def _follow_offsets(
    verdict: Verdict,
    variant: Variant,
    rows: Sequence[ExperienceRow],
    contents: Sequence[list[str]],
    partitions: Mapping[str, Partition],
) -> dict[str, int]:
    """Every partition's spans join end to start, but for what became no record; and an experience holds what
    its spans hold. Answers how many payloads of each were passed."""
    reached: dict[str, int] = dict.fromkeys(partitions, 0)
    for row, ids in zip(rows, contents, strict=True):
        inside: list[str] = []
        for name, span in row.positions.items():
            partition = partitions[name]
            start, end = partition.place_of(span.start), partition.place_of(span.end)
            between = partition.items[reached[name] : start]
            empty = all(not one.record or one.copy for one in between)
            joined = reached[name] <= start <= end and (not between if variant == "late" else empty)
            verdict.require(joined, f"experience {row.index} does not join the one before it in {name}")
            inside += good(partition.items[start:end])
            reached[name] = end
        if variant in ("plain", "s3"):
            verdict.require(sorted(ids) == sorted(inside), f"experience {row.index} is not its spans")
        elif variant == "window":
            verdict.require(set(ids) <= set(inside), f"experience {row.index} is not within its spans")
    for name, place in reached.items():
        rest = [one for one in partitions[name].items[place:] if one.record and not one.copy]
        verdict.require(not rest or variant == "late", f"{len(rest)} records of {name} were not reached")
    return reached


def _compare_letters(verdict: Verdict, manifest: Manifest, partitions: Mapping[str, Partition]) -> None:
    expected = Counter(
        (name, payload) for name, partition in partitions.items() for payload in partition.poison
    )
    found = Counter(
        (letter.partition, letter.payload) for letter in manifest.dead_letters(PIPELINE, limit=_ALL)
    )
    verdict.dead_letters_expected, verdict.dead_letters_found = expected.total(), found.total()
    missing, more = (expected - found).total(), (found - expected).total()
    verdict.require(not missing, f"{missing} dead letters are missing")
    verdict.require(not more, f"{more} dead letters are there again, or are of good records")


def _compare_waiting(
    verdict: Verdict,
    manifest: Manifest,
    store: ExperienceStore,
    place: Place,
    partitions: Mapping[str, Partition],
    reached: Mapping[str, int],
) -> None:
    """Of what the offsets have passed, halves without their other half wait, each once, and nothing else."""
    if not place.spec.record_schema.late_labels:
        return
    passed = Counter(
        record for name, count in reached.items() for record in good(partitions[name].items[:count])
    )
    expected = Counter(record for record, halves in passed.items() if halves == 1)
    found: Counter[str] = Counter()
    for part in manifest.waiting(PIPELINE):
        records = store.records(part.digest, place.spec.record_schema)
        found.update(records.take(~part.gone).ids.to_pylist())
    missing, more = (expected - found).total(), (found - expected).total()
    verdict.halves_waiting = found.total()
    verdict.require(not missing, f"{missing} halves that wait are lost")
    verdict.require(not more, f"{more} halves wait again, or though they are complete")


def _collect_garbage(verdict: Verdict, manifest: Manifest, store: ExperienceStore, place: Place) -> None:
    """What no row names is what the collector takes; then only what is named is left."""
    keep = manifest.digests()
    named = {f"{digest}.arrow" for digest in keep}
    before = _files(place)
    orphans = before - named
    verdict.require(named <= _kept(place), "a file that the manifest names is missing")
    taken = set(store.collect_garbage(keep, grace_seconds=-60.0))
    verdict.orphans_collected = len(orphans)
    verdict.require(taken == orphans, f"{len(taken ^ orphans)} files were collected wrongly, or not at all")
    verdict.require(_files(place) == named, "files that nothing names are left")


def _kept(place: Place) -> set[str]:
    """The files where they must be."""
    return _remote(place) if place.remote else _local(place.folder)


def _files(place: Place) -> set[str]:
    return _local(place.folder) | _remote(place)


def _local(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _remote(place: Place) -> set[str]:
    from streams.store.objects import open_objects

    return {info.name for info in open_objects(place.remote).list()} if place.remote else set()
