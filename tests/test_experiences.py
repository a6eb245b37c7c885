"""The experience store: deterministic bytes, zero-copy reads, damage found, orphans removed."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streams.base import ExperienceDamagedError, RecordSchema
from streams.experiences import ExperienceStore
from streams.records import Records, empty_records, text_column
from tests.real_data import mnist_test

SCHEMA = RecordSchema(shape=(28, 28), dtype="uint8", classes=tuple("0123456789"), groups=("writer",))


def digits(count: int) -> Records:
    images, labels = mnist_test()
    ids = text_column([f"digit-{place}" for place in range(count)])
    writers = text_column([f"writer-{place % 7}" for place in range(count)])
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
    stranger = folder / "notes.txt"
    left_over = folder / f"{orphan}.99-abcd.tmp"
    for path in (stranger, left_over):
        path.write_text("x")
    old = time.time() - 7200
    for path in (store.path(kept), store.path(orphan), stranger, left_over):
        os.utime(path, (old, old))
    deleted = store.collect_garbage({kept}, grace_seconds=3600)
    assert sorted(deleted) == sorted([store.path(orphan).name, left_over.name])
    assert stranger.exists()
    assert len(store.open(kept, index=0)) == 3
    assert len(store.open(fresh, index=0)) == 5


def test_an_open_experience_outlives_its_file(store: ExperienceStore) -> None:
    experience = store.open(store.write(digits(10), SCHEMA), index=0)
    store.collect_garbage(set(), grace_seconds=-10)
    assert np.array_equal(experience.inputs, digits(10).features)
