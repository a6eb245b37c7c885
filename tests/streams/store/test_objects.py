"""Objects in a folder and in a bucket: the same promises, kept by a real disk and a real S3 server."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.store.objects import (
    ObjectChangedError,
    ObjectError,
    ObjectExistsError,
    ObjectMissingError,
    ObjectStore,
    open_objects,
)
from tests.support import s3 as servers
from tests.support.threads import outcome, together


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        found: str = request.getfixturevalue("s3")
        return found
    folder = tmp_path / "objects"
    folder.mkdir()
    return str(folder)


@pytest.fixture
def objects(location: str) -> ObjectStore:
    return open_objects(location)


def test_gives_back_what_was_created(objects: ObjectStore) -> None:
    data = bytes(range(256)) * 100
    objects.create("deep/er/one.bin", memoryview(data))
    assert objects.read("deep/er/one.bin", 0, len(data)) == data
    assert objects.read("deep/er/one.bin", 250, 260) == data[250:260]
    assert objects.read("deep/er/one.bin", len(data) - 3, len(data) + 50) == data[-3:]
    for start, stop in ((len(data), len(data) + 5), (5, 5), (9, 3)):
        assert objects.read("deep/er/one.bin", start, stop) == b""


def test_lists_by_name_relative_to_its_location(objects: ObjectStore, location: str) -> None:
    names = ["b.txt", "a/z.txt", "a.txt", "a/b/c d.txt", "ü#1%.txt"]
    for size, name in enumerate(names):
        objects.create(name, b"x" * size)
    listed = objects.list()
    assert [found.name for found in listed] == sorted(names)
    assert {found.name: found.size for found in listed} == {name: size for size, name in enumerate(names)}
    assert list(listed) == [objects.info(name) for name in sorted(names)]
    assert open_objects(f"{location}/a").list()[0].name == "b/c d.txt"
    assert objects.location == location


def test_an_object_is_created_once(objects: ObjectStore) -> None:
    objects.create("one", b"first")
    with pytest.raises(ObjectExistsError, match="'one' already"):
        objects.create("one", b"other")
    assert objects.read("one", 0, 9) == b"first"
    tries = together(4, lambda number: outcome(lambda: objects.create("two", b"%d" % number)))
    assert [type(found) for found in tries if found] == [ObjectExistsError] * 3
    assert objects.read("two", 0, 9) == b"%d" % tries.index(None)
    assert [found.name for found in objects.list()] == ["one", "two"]


def test_a_replaced_object_has_another_version(objects: ObjectStore) -> None:
    objects.replace("one", b"first")
    before = objects.info("one")
    assert objects.read("one", 0, 9, version=before.version) == b"first"
    objects.replace("one", b"other")
    assert objects.info("one").version != before.version
    with pytest.raises(ObjectChangedError, match="replaced while it was read"):
        objects.read("one", 0, 9, version=before.version)
    assert objects.read("one", 0, 9) == b"other"


def test_deleting_twice_is_fine_and_what_is_gone_is_missing(objects: ObjectStore) -> None:
    objects.create("one", b"first")
    objects.delete("one")
    objects.delete("one")
    gone: tuple[Callable[[], object], ...] = (
        lambda: objects.info("one"),
        lambda: objects.read("one", 0, 3),
    )
    for attempt in gone:
        with pytest.raises(ObjectMissingError, match="one"):
            attempt()
    assert list(objects.list()) == []


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/passwd", "", "a//b", "nul\0"])
def test_a_name_cannot_lead_out(objects: ObjectStore, name: str) -> None:
    attempts: tuple[Callable[[], object], ...] = (
        lambda: objects.read(name, 0, 10),
        lambda: objects.replace(name, b"x"),
        lambda: objects.create(name, b"x"),
        lambda: objects.delete(name),
    )
    for attempt in attempts:
        with pytest.raises(ObjectError):
            attempt()


@pytest.mark.parametrize(
    "location", ["s3://", "s3://B", "s3://bucket/a/../b", "s3://bucket/a//b", "s3://a_b/c"]
)
def test_a_location_that_is_none_is_refused(location: str) -> None:
    with pytest.raises(ObjectError, match="not a location"):
        open_objects(location)


def test_a_missing_folder_or_bucket_says_what_to_do(s3: str, tmp_path: Path) -> None:
    with pytest.raises(ObjectError, match=r"not there: make it"):
        open_objects(str(tmp_path / "none")).list()
    with pytest.raises(ObjectError, match=r"s3://no-such-bucket.*NoSuchBucket.*AWS_"):
        open_objects("s3://no-such-bucket/a").list()


def test_a_server_that_is_away_is_told_soon_and_without_secrets(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ObjectError, match="endpoint answers") as caught:
        open_objects(s3).list()
    assert servers.SECRET not in f"{caught.value}{caught.getrepr()}"


def test_a_link_is_an_object_only_inside_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "objects", tmp_path / "secret.txt"
    (folder / "sub").mkdir(parents=True)
    outside.write_text("secret")
    (folder / "real.txt").write_text("real")
    (folder / "out.txt").symlink_to(outside)
    (folder / "broken.txt").symlink_to(folder / "nothing")
    (folder / "in.txt").symlink_to(folder / "real.txt")
    (folder / "sub" / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    assert [found.name for found in open_objects(str(folder)).list()] == ["in.txt", "real.txt"]


def test_what_a_crash_left_half_written_is_no_object(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path))
    (tmp_path / ".0123456789abcdef.unfinished").write_bytes(b"half")
    objects.create("whole", b"whole")
    assert [found.name for found in objects.list()] == ["whole"]
