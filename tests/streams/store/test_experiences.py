"""The experience store: same bytes, zero-copy reads, damage found, orphans removed; in a bucket too."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streams.base import ExperienceDamagedError, RecordSchema
from streams.records import Records, empty_records, text_column
from streams.store.experiences import ExperienceStore
from streams.store.objects import LocalObjects, ObjectError, ObjectStore, open_objects
from tests.support.real_data import mnist_test

SCHEMA = RecordSchema(shape=(28, 28), dtype="uint8", classes=tuple("0123456789"), groups=("writer",))


def digits(count: int) -> Records:
    images, labels = mnist_test()
    ids = text_column([f"digit-{index}" for index in range(count)])
    writers = text_column([f"writer-{index % 7}" for index in range(count)])
    return Records(ids, images[:count], labels[:count], np.full(count, np.nan), ids, {"writer": writers})


@pytest.fixture
def store(tmp_path: Path) -> ExperienceStore:
    return ExperienceStore(tmp_path / "experiences")


def test_gives_back_what_was_written(store: ExperienceStore) -> None:
    records = digits(500)
    experience = store.open(store.write(records, SCHEMA), index=7)
    assert (experience.index, len(experience)) == (7, 500)
    assert experience.inputs.dtype == np.uint8
    assert np.array_equal(experience.inputs, records.features)
    assert np.array_equal(experience.labels, records.labels)
    assert experience.record_ids.tolist() == records.ids.tolist()
    assert experience.groups["writer"].tolist() == records.groups["writer"].tolist()


def test_float_features_keep_their_bits(store: ExperienceStore) -> None:
    schema = RecordSchema(shape=(3,), classes=("0", "1"))
    features = np.array([[0.1, -0.0, 3e38], [1e-45, 2, 3]], dtype=np.float32)
    ids = text_column(["a", "b"])
    records = Records(ids, features, np.array([0, 1]), np.array([1.0, 2.0]), ids, {})
    assert store.open(store.write(records, schema), index=0).inputs.tobytes() == features.tobytes()


def test_arrays_are_read_only_views_of_the_file(store: ExperienceStore) -> None:
    experience = store.open(store.write(digits(50), SCHEMA), index=0)
    for array in (experience.inputs, experience.labels):
        assert not array.flags.owndata
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    path = str(store.path(experience.digest))
    assert path in Path("/proc/self/maps").read_text()


def test_the_same_records_give_the_same_bytes(store: ExperienceStore) -> None:
    records = digits(40)
    first = store.write(records, SCHEMA)
    bytes_before = store.path(first).read_bytes()
    strided = replace(records, features=digits(80).features[:40][::-1][::-1])
    assert store.write(strided, SCHEMA) == first
    assert store.write(digits(80).take(slice(40)), SCHEMA) == first
    assert store.path(first).read_bytes() == bytes_before
    assert store.write(digits(41), SCHEMA) != first


def test_no_rows_is_a_file_too(store: ExperienceStore) -> None:
    experience = store.open(store.write(empty_records(SCHEMA), SCHEMA), index=0)
    assert experience.inputs.shape == (0, 28, 28)
    assert experience.groups["writer"].shape == (0,)


def test_damage_is_found_also_after_a_good_open(store: ExperienceStore) -> None:
    digest = store.write(digits(20), SCHEMA)
    store.open(digest, index=0)
    path = store.path(digest)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ExperienceDamagedError, match=r"damaged.*backup"):
        store.open(digest, index=0)
    store.write(digits(20), SCHEMA)
    assert len(store.open(digest, index=0)) == 20, "writing the same records again heals the file"


@pytest.mark.parametrize("content", [b"", b"ARROW1 but not really"])
def test_a_file_that_is_not_arrow_is_damaged(store: ExperienceStore, content: bytes) -> None:
    digest = store.write(digits(2), SCHEMA)
    store.path(digest).write_bytes(content)
    with pytest.raises(ExperienceDamagedError):
        store.open(digest, index=0)


def test_a_missing_file_says_what_to_do(store: ExperienceStore) -> None:
    with pytest.raises(ExperienceDamagedError, match="missing: restore"):
        store.open("0" * 64, index=0)
    with pytest.raises(ExperienceDamagedError, match="not a sha256"):
        store.open("../../etc/passwd", index=0)


def test_garbage_goes_after_its_grace_period(store: ExperienceStore) -> None:
    kept, orphan, fresh = (store.write(digits(count), SCHEMA) for count in (3, 4, 5))
    folder = store.path(kept).parent
    foreign = folder / "notes.txt"
    left_over = folder / f"{orphan}.99-abcd.tmp"
    for path in (foreign, left_over):
        path.write_text("x")
    old = time.time() - 7200
    for path in (store.path(kept), store.path(orphan), foreign, left_over):
        os.utime(path, (old, old))
    deleted = store.collect_garbage({kept}, grace_seconds=3600)
    assert sorted(deleted) == sorted([store.path(orphan).name, left_over.name])
    assert foreign.exists()
    assert len(store.open(kept, index=0)) == 3
    assert len(store.open(fresh, index=0)) == 5


def test_an_open_experience_outlives_its_file(store: ExperienceStore) -> None:
    experience = store.open(store.write(digits(10), SCHEMA), index=0)
    store.collect_garbage(set(), grace_seconds=-10)
    assert np.array_equal(experience.inputs, digits(10).features)


@pytest.mark.parametrize("names", [("id",), ("a-much-longer-id", "x"), ("é" * 9,) * 3])
@pytest.mark.parametrize("shape", [(3,), (5, 7)])
def test_features_begin_at_a_multiple_of_64_bytes(
    store: ExperienceStore, names: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    schema = RecordSchema(shape=shape, classes=("0", "1"))
    ids, count = text_column(list(names)), len(names)
    features = np.ones((count, *shape), np.float32)
    records = Records(ids, features, np.zeros(count, np.int64), np.full(count, np.nan), ids, {})
    assert store.open(store.write(records, schema), index=0).inputs.ctypes.data % 64 == 0


def test_parts_written_together_are_those_written_one_by_one(store: ExperienceStore) -> None:
    parts = [digits(30), empty_records(SCHEMA), digits(7), digits(30), empty_records(SCHEMA)]
    together = store.write_parts(parts, SCHEMA)
    assert together == [store.write(part, SCHEMA) for part in parts]
    assert [len(store.open(digest, index=0)) for digest in together] == [30, 0, 7, 30, 0]
    assert store.write_parts([], SCHEMA) == []


def test_a_part_that_cannot_be_written_leaves_nothing(store: ExperienceStore) -> None:
    broken = replace(digits(3), labels=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="length"):
        store.write_parts([broken, broken], SCHEMA)
    assert list(store.path("0" * 64).parent.iterdir()) == []


def test_a_removed_part_is_gone_and_removing_twice_is_fine(store: ExperienceStore) -> None:
    digest = store.write(digits(3), SCHEMA)
    store.remove(digest)
    store.remove(digest)
    with pytest.raises(ExperienceDamagedError, match="missing"):
        store.open(digest, index=0)


@pytest.fixture
def remote(s3: str) -> ObjectStore:
    return open_objects(s3)


def test_another_machine_reads_what_this_one_wrote(s3: str, tmp_path: Path) -> None:
    here = ExperienceStore.at(s3, cache=tmp_path / "here")
    there = ExperienceStore.at(s3, cache=tmp_path / "there")
    digests = here.write_parts([digits(20), digits(4)], SCHEMA)
    assert not there.path(digests[0]).exists()
    experience = there.open(digests[0], index=3)
    assert np.array_equal(experience.inputs, digits(20).features)
    assert there.path(digests[0]).read_bytes() == here.path(digests[0]).read_bytes()
    assert here.write_parts([digits(20), digits(4)], SCHEMA) == digests, "writing again is fine"
    assert ExperienceStore.at(str(tmp_path / "here"), cache=tmp_path / "unused").open(digests[1], index=0)


def test_a_damaged_cache_file_heals_from_the_bucket(remote: ObjectStore, tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path / "cache", remote=remote)
    digest = store.write(digits(20), SCHEMA)
    whole = store.path(digest).read_bytes()
    store.open(digest, index=0)
    for damaged in (whole[:100], whole[:-1] + b"!", b"", None):
        store.path(digest).unlink()
        if damaged is not None:
            store.path(digest).write_bytes(damaged)
        assert len(store.open(digest, index=0)) == 20
        assert store.path(digest).read_bytes() == whole


def test_a_damaged_or_missing_object_is_told_and_not_installed(remote: ObjectStore, tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path / "cache", remote=remote)
    digest = store.write(digits(20), SCHEMA)
    other = ExperienceStore(tmp_path / "other", remote=remote)
    name = store.path(digest).name
    remote.replace(name, store.path(digest).read_bytes()[:-1] + b"!")
    with pytest.raises(ExperienceDamagedError, match=r"s3://.*damaged.*backup"):
        other.open(digest, index=0)
    remote.delete(name)
    with pytest.raises(ExperienceDamagedError, match=r"missing in s3://"):
        other.open(digest, index=0)
    assert list((tmp_path / "other").iterdir()) == []
    assert len(store.open(digest, index=0)) == 20, "a whole copy in the cache is as good"
    store.write(digits(20), SCHEMA)
    assert len(other.open(digest, index=0)) == 20, "writing the same records again heals the bucket"


def test_nothing_is_promised_while_the_bucket_is_away(tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path / "cache", remote=LocalObjects(tmp_path / "taken"))
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(ObjectError, match="taken"):
        store.write(digits(3), SCHEMA)


def test_the_cache_keeps_what_was_used_last(remote: ObjectStore, tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path / "cache", remote=remote, cache_bytes=110_000)
    first, second, third = (store.write(digits(count), SCHEMA) for count in (60, 61, 62))
    assert not store.path(first).exists(), "about 50 kB each: two fit"
    mapped = store.open(first, index=0)
    assert [store.path(digest).exists() for digest in (first, second, third)] == [True, False, True]
    store.open(third, index=0)
    store.open(second, index=0)
    assert [store.path(digest).exists() for digest in (first, second, third)] == [False, True, True]
    assert np.array_equal(mapped.inputs, digits(60).features), "what is mapped outlives its file"


def test_garbage_goes_from_the_bucket_too(remote: ObjectStore, tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path / "cache", remote=remote)
    kept, orphan, removed = (store.write(digits(count), SCHEMA) for count in (3, 4, 5))
    remote.create("notes.txt", b"x")
    assert store.collect_garbage({kept}, grace_seconds=3600) == []
    store.remove(removed)
    assert store.collect_garbage({kept}, grace_seconds=-10) == [store.path(orphan).name]
    assert [found.name for found in remote.list()] == sorted([store.path(kept).name, "notes.txt"])
