"""Files as a source: what arrives, grows, is half-written, is replaced or goes; in a folder or bucket."""

import gzip
import os
import re
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet
from pydantic import ValidationError

from streams.allowed import Allowed
from streams.base import (
    DataLostError,
    ForgettingSource,
    RawBatch,
    RecordSchema,
    SchemaChangedError,
    SourceContext,
    SourceError,
    SourceStoppedError,
)
from streams.sources.files.config import FilesConfig
from streams.sources.files.source import FilesSource, build
from streams.store.objects import open_objects
from streams.wire.decode import encode_batch
from tests.support.stream_parts import SCHEMA, payload, records, sqlite_engine

TABLE = RecordSchema(columns=("a", "b"), classes=("down", "up"))
WAIT = 0.25
"""Longer than the time between two looks at a folder."""

Read = list[tuple[str, str, str]]


def source_of(location: Path | str, cursors: Mapping[str, str] | None = None, **settings: Any) -> FilesSource:
    """An open source over a location."""
    schema = settings.pop("schema", TABLE)
    source = FilesSource(
        FilesConfig(location=str(location), **settings), schema, allowed=Allowed(roots=(str(location),))
    )
    source.open(cursors or {})
    return source


def rows_of(batch: RawBatch) -> list[str]:
    """What the records of a batch say, one text a record."""
    if batch.wire != "arrow":
        return [line.decode("latin-1") for line in batch.payloads]
    (stream,) = batch.payloads
    found = pa.ipc.open_stream(pa.py_buffer(stream)).read_all().to_pylist()
    return [str(row) for row in found][batch.skip : batch.skip + len(batch.positions)]


def read(source: FilesSource, *, most: int = 1000, wait: float = 0.0) -> Read:
    """(partition, position, record) of all that is there, or arrives in time."""
    found: Read = []
    while batches := source.poll(most, 0.0 if found else wait):
        assert sum(len(batch.positions) for batch in batches) <= most
        for batch in batches:
            texts = rows_of(batch)
            found += [(batch.partition, *both) for both in zip(batch.positions, texts, strict=True)]
    return found


def said(found: Read) -> list[str]:
    return [text for _, _, text in found]


def lines(*names: str) -> bytes:
    return b"".join(payload(name) + b"\n" for name in names)


def table(first: int, count: int) -> pa.Table:
    indices = range(first, first + count)
    columns = {"a": [float(index) for index in indices], "b": [0.5] * count, "label": ["up"] * count}
    return pa.table(columns)


def write_text(path: Path, count: int, make: Callable[[int], bytes], head: bytes = b"") -> None:
    content = head + b"".join(make(index) for index in range(count))
    path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)


def write_json(path: Path, count: int) -> None:
    write_text(path, count, lambda index: payload(f"{path.name}-{index}") + b"\n")


def write_csv(path: Path, count: int) -> None:
    write_text(path, count, lambda index: b"%d,0.5,up\r\n" % index, b"\xef\xbb\xbfa,b,label\r\n")


def write_parquet(path: Path, count: int) -> None:
    parquet.write_table(table(0, count), path, row_group_size=5)


def write_arrow(path: Path, count: int) -> None:
    found = table(0, count)
    with pa.ipc.new_file(str(path), found.schema) as writer:
        writer.write_table(found, max_chunksize=4)


def write_feather(path: Path, count: int) -> None:
    feather.write_feather(table(0, count), str(path), compression="lz4")


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "one.ndjson": write_json,
    "one.jsonl": write_json,
    "one.json.gz": write_json,
    "one.csv": write_csv,
    "one.CSV.GZ": write_csv,
    "one.parquet": write_parquet,
    "one.arrow": write_arrow,
    "one.feather": write_feather,
}
every_form = pytest.mark.parametrize("name", list(WRITERS))


@every_form
def test_every_form_is_read_whole_and_goes_on_at_every_place(name: str, tmp_path: Path) -> None:
    count = 11
    WRITERS[name](tmp_path / name, count)
    whole = read(source_of(tmp_path))
    assert len(set(said(whole))) == len({position for _, position, _ in whole}) == count
    for most in (1, 3, 7):
        assert read(source_of(tmp_path), most=most) == whole
    for index in range(count):
        resumed = source_of(tmp_path, {name: whole[index][1]})
        assert read(resumed, most=4) == whole[index + 1 :]


@every_form
def test_a_file_read_to_its_end_may_go_and_one_that_was_not_may_not(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, 6)
    positions = [position for _, position, _ in read(source_of(tmp_path))]
    running = source_of(tmp_path)
    running.poll(2, 0.0)
    (tmp_path / name).unlink()
    assert read(source_of(tmp_path, {name: positions[-1]})) == []
    with pytest.raises(DataLostError, match=rf"{name}.*gone"):
        source_of(tmp_path, {name: positions[-2]})
    time.sleep(WAIT)
    for _ in range(2):
        with pytest.raises(DataLostError, match=rf"{name}.*gone"):
            read(running)


@every_form
def test_a_file_that_was_replaced_stops_the_source(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, 6)
    cursor = read(source_of(tmp_path))[3][1]
    running = source_of(tmp_path)
    running.poll(2, 0.0)
    form = name.partition(".")[2]
    WRITERS[name](tmp_path / f"other-than-before.{form}", 9)
    (tmp_path / f"other-than-before.{form}").rename(tmp_path / name)
    if "csv" in name.lower():  # other rows, of the same length
        write_text(tmp_path / name, 9, lambda index: b"%d,0.7,up\r\n" % index, b"\xef\xbb\xbfa,b,label\r\n")
    time.sleep(WAIT)
    for attempt in (lambda: source_of(tmp_path, {name: cursor}), lambda: read(running)):
        with pytest.raises(DataLostError, match=rf"{name}"):
            attempt()


@every_form
def test_a_half_written_file_waits_and_is_an_error_once_nothing_comes(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, 200)
    expected = said(read(source_of(tmp_path)))
    content = (tmp_path / name).read_bytes()
    plain = name in ("one.ndjson", "one.jsonl", "one.csv")
    half = content[: len(content) // 2 - 1]
    assert not half.endswith(b"\n")
    (tmp_path / name).write_bytes(half)
    source = source_of(tmp_path, settle_seconds=0.8)
    early = said(read(source))
    assert early == expected[: len(early)]
    assert early or not plain
    (tmp_path / name).write_bytes(content)
    assert early + said(read(source, wait=2.0)) == expected

    (tmp_path / name).write_bytes(half)
    broken = source_of(tmp_path, settle_seconds=0.5)
    if plain:
        found = read(broken)
        assert len(found + read(broken, wait=2.0)) == len(early) + 1, "the last line is taken as it is"
        return
    read(broken)
    for _ in range(2):
        with pytest.raises(SourceError, match=rf"{name}.*(not a whole|cannot be read)"):
            read(broken, wait=2.0)


def test_files_are_read_by_name_and_each_is_a_partition(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    for name in ("b.ndjson", "day/a.ndjson", "a.ndjson", "c.csv.txt", "d.parquet.gz"):
        (tmp_path / name).write_bytes(lines(name))
    source = source_of(tmp_path)
    assert source.partitions() == ["a.ndjson", "b.ndjson", "day/a.ndjson"]
    assert [name for name, _, _ in read(source)] == ["a.ndjson", "b.ndjson", "day/a.ndjson"]
    (tmp_path / "0.ndjson").write_bytes(lines("later"))
    assert [name for name, _, _ in read(source, wait=WAIT)] == ["0.ndjson"], "a late arrival is not skipped"


def test_a_pattern_chooses_among_the_files(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    for name in ("a.ndjson", "b.jsonl", "day/c.ndjson"):
        (tmp_path / name).write_bytes(lines(name))
    assert source_of(tmp_path, pattern="*.ndjson").partitions() == ["a.ndjson", "day/c.ndjson"]
    assert source_of(tmp_path, pattern="day/*").partitions() == ["day/c.ndjson"]


@pytest.mark.parametrize(
    "name", [".a.ndjson", "_a.ndjson", "a.ndjson.tmp", "a.ndjson.part", "a.ndjson.crswap", "_tmp/a.ndjson"]
)
def test_a_file_under_a_name_for_unfinished_ones_waits_for_its_real_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(lines("a"))
    source = source_of(tmp_path)
    assert read(source) == []
    (tmp_path / name).rename(tmp_path / "a.ndjson")
    assert len(read(source, wait=WAIT)) == 1


def test_what_is_appended_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "log.ndjson"
    path.write_bytes(lines("0"))
    source = source_of(tmp_path)
    found = read(source)
    for turn in range(1, 4):
        with path.open("ab") as file:
            file.write(lines(f"{turn}a") + payload(f"{turn}b")[:20])
            file.flush()
            found += read(source, wait=WAIT)
            file.write(payload(f"{turn}b")[20:] + b"\n")
        found += read(source, wait=WAIT)
    assert b"".join(text.encode() + b"\n" for text in said(found)) == path.read_bytes()
    assert read(source_of(tmp_path, {"log.ndjson": found[2][1]}))[-1][2] == found[-1][2]


def test_a_gz_may_grow_by_whole_members(tmp_path: Path) -> None:
    path = tmp_path / "log.ndjson.gz"
    path.write_bytes(gzip.compress(lines("0", "1")))
    source = source_of(tmp_path)
    found = read(source)
    with path.open("ab") as file:
        file.write(gzip.compress(lines("2", "3")))
    found += read(source, wait=WAIT)
    assert "".join(f"{text}\n" for text in said(found)).encode() == lines("0", "1", "2", "3")
    assert len(read(source_of(tmp_path, {"log.ndjson.gz": found[1][1]}))) == 2


def test_the_last_line_needs_no_line_break_once_the_file_rests(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(lines("0") + payload("1"))
    source = source_of(tmp_path, settle_seconds=0.8)
    first = read(source)
    assert len(first) == 1
    (rest,) = read(source, wait=2.0)
    assert rest[2].encode() == payload("1")
    with path.open("ab") as file:
        file.write(b"\n" + lines("2"))
    assert len(read(source_of(tmp_path, {"a.ndjson": rest[1]}))) == 1
    path.write_bytes(lines("0") + payload("1") + b"more\n")
    with pytest.raises(DataLostError, match="has gone on since"):
        source_of(tmp_path, {"a.ndjson": rest[1]})


def test_a_file_replaced_between_two_blocks_stops_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(lines("0") * 60_000)
    assert path.stat().st_size > 3_000_000
    source = source_of(tmp_path)
    assert len(source.poll(10, 0.0)[0].positions) == 10
    path.write_bytes(lines("1") * 60_000)
    with pytest.raises(DataLostError, match=r"a\.ndjson.*(replaced while it was read|not the one)"):
        read(source)


def test_a_shorter_file_stops_the_source_also_behind_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(lines("0", "1", "2"))
    cursor = read(source_of(tmp_path))[0][1]
    running = source_of(tmp_path)
    running.poll(1, 0.0)
    path.write_bytes(lines("0", "1"))
    with pytest.raises(DataLostError, match=r"a\.ndjson.*bytes and had"):
        source_of(tmp_path, {"a.ndjson": cursor})
    time.sleep(WAIT)
    with pytest.raises(DataLostError, match=r"a\.ndjson"):
        read(running)


def test_touching_or_copying_a_file_changes_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.ndjson", 5)
    source = source_of(tmp_path)
    cursor = read(source)[-1][1]
    (tmp_path / "b.tmp").write_bytes((tmp_path / "a.ndjson").read_bytes())
    (tmp_path / "b.tmp").rename(tmp_path / "a.ndjson")
    os.utime(tmp_path / "a.ndjson", (1, 1))
    assert read(source, wait=WAIT) == []
    assert read(source_of(tmp_path, {"a.ndjson": cursor})) == []


def test_blank_lines_are_passed_over_and_lines_may_end_as_windows_ends_them(tmp_path: Path) -> None:
    first, second, third = (payload(name) for name in "012")
    content = b"\xef\xbb\xbf" + first + b"\r\n\r\n \t\n\n" + second + b"\n" + third + b"\r\n\n\n"
    (tmp_path / "a.ndjson").write_bytes(content)
    found = read(source_of(tmp_path))
    assert [text.encode() for text in said(found)] == [first, second, third]
    assert all(read(source_of(tmp_path, {"a.ndjson": found[at][1]})) == found[at + 1 :] for at in range(3))
    (tmp_path / "a.ndjson").unlink()
    assert read(source_of(tmp_path, {"a.ndjson": found[-1][1]})) == [], "nothing but blank lines came after"


def test_an_empty_file_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").touch()
    (tmp_path / "b.csv").write_bytes(b"a,b,label\n")
    (tmp_path / "c.csv").write_bytes(b"\n\n")
    parquet.write_table(table(0, 0), tmp_path / "d.parquet")
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(b"", mtime=0))
    source = source_of(tmp_path, settle_seconds=0)
    assert read(source) == []
    (tmp_path / "a.ndjson").unlink()
    assert read(source, wait=WAIT) == []


def test_whatever_the_bytes_are_every_line_is_one_payload(tmp_path: Path) -> None:
    garbage = bytes(range(256)) * 20
    (tmp_path / "a.ndjson").write_bytes(garbage + b"\n" + "é".encode("latin-1") + b"\n" + b"\0\0\n")
    found = read(source_of(tmp_path, settle_seconds=0))
    expected = [line.removesuffix(b"\r") for line in garbage.split(b"\n") if line.strip()]
    assert [text.encode("latin-1") for text in said(found)][: len(expected)] == expected
    assert said(found)[-2:] == ["é", "\0\0"]


def test_a_line_without_end_stops_the_source(tmp_path: Path) -> None:
    with (tmp_path / "a.ndjson").open("wb") as file:
        file.write(lines("0"))
        file.truncate(80 * 1024 * 1024)
    source = source_of(tmp_path)
    assert len(source.poll(10, 0.0)[0].payloads) == 1
    for _ in range(2):
        with pytest.raises(SourceStoppedError, match=r"a\.ndjson.*byte \d+ is longer than 64 MB"):
            source.poll(10, 0.0)


def test_a_line_longer_than_a_block_is_one_payload(tmp_path: Path) -> None:
    long = b'"' + b"x" * 5_000_000 + b'"'
    (tmp_path / "a.ndjson").write_bytes(lines("0") + long + b"\n" + lines("1"))
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(lines("0") + long + b"\n" + lines("1"), 1))
    found = read(source_of(tmp_path))
    assert [len(text) for text in said(found)] == [len(payload("0")), len(long), len(payload("1"))] * 2
    cursors = {name: position for name, position, _ in (found[1], found[4])}
    assert read(source_of(tmp_path, cursors)) == [found[2], found[5]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,c,label\n1,2,up\n", "missing: b; unknown: c"),
        ("a.csv", b"1,2,up\n3,4,up\n", "missing: a, b, label"),
        ("a.csv", "größe,b\n".encode("latin-1"), "no header of a CSV file in UTF-8"),
        ("a.csv", b'"a,b\n1,2\n', "no header of a CSV file"),
        ("a.csv.gz", gzip.compress(b"a,c,label\n1,2,up\n", mtime=0), "missing: b; unknown: c"),
    ],
)
def test_a_wrong_header_stops_the_source_and_is_spelled_out(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    write_csv(tmp_path / "0.csv", 2)
    (tmp_path / name).write_bytes(content)
    source = source_of(tmp_path)
    assert len(source.poll(10, 0.0)) == 1, "what comes before is read first"
    for _ in range(2):
        with pytest.raises(SchemaChangedError, match=rf"{name}.*{message}"):
            source.poll(10, 0.0)


def test_a_table_of_other_columns_stops_the_source(tmp_path: Path) -> None:
    parquet.write_table(table(0, 3).rename_columns(["a", "c", "label"]), tmp_path / "a.parquet")
    with pytest.raises(SchemaChangedError, match=r"a\.parquet.*missing: b; unknown: c"):
        read(source_of(tmp_path))
    (tmp_path / "a.parquet").unlink()
    write_own(tmp_path / "b.arrow")
    with pytest.raises(SchemaChangedError, match=r"b\.arrow.*written for schema"):
        read(source_of(tmp_path))
    assert len(read(source_of(tmp_path, schema=SCHEMA))) == 3, "what we wrote ourselves needs no columns"


def write_own(path: Path) -> None:
    """Records as the service encodes them itself, in a file."""
    found = pa.ipc.open_stream(encode_batch(records(["0", "1", "2"]), SCHEMA)).read_all()
    with pa.ipc.new_file(str(path), found.schema) as writer:
        writer.write_table(found)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_garbage_between_the_right_marks_is_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    mark = b"PAR1" if name.endswith("parquet") else b"ARROW1"
    for middle in (b"", bytes(range(256)) * 9, b"\xff" * 40):
        (tmp_path / name).write_bytes(mark + middle + mark)
        with pytest.raises(SourceError, match=rf"{name}.*under a new name"):
            read(source_of(tmp_path, settle_seconds=0))


def test_a_batch_says_how_it_is_to_be_read(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", 2)
    write_parquet(tmp_path / "b.parquet", 2)
    os.utime(tmp_path / "a.csv", (1_700_000_000, 1_700_000_000))
    csv_batch, table_batch = source_of(tmp_path, label="label").poll(10, 0.0)
    assert (csv_batch.wire, list(csv_batch.header)) == ("csv", ["a", "b", "label"])
    assert csv_batch.arrived_at == 1_700_000_000
    assert csv_batch.table == table_batch.table == FilesConfig(location="/x").table
    assert list(csv_batch.payloads) == [b"0,0.5,up", b"1,0.5,up"]
    assert list(csv_batch.ids) == ["a.csv#14", "a.csv#24"]
    assert (table_batch.wire, list(table_batch.ids)) == ("arrow", ["b.parquet#0", "b.parquet#1"])
    (named,) = source_of(tmp_path, pattern="*.parquet", id="label").poll(10, 0.0)
    assert list(named.ids) == []


def test_a_name_that_cannot_be_a_partition_stops_the_source(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 200) / ("e" * 200)
    folder.mkdir(parents=True)
    (folder / "a.ndjson").write_bytes(lines("0"))
    with pytest.raises(SourceStoppedError, match=r"characters.*rename"):
        source_of(tmp_path)
    (folder / "a.ndjson").unlink()
    (tmp_path / os.fsdecode(b"\xff.ndjson")).write_bytes(lines("0"))
    with pytest.raises(SourceStoppedError, match=r"not UTF-8.*rename"):
        source_of(tmp_path)


def test_ids_stay_short_enough_under_long_names(tmp_path: Path) -> None:
    name = "x" * 230 + ".csv"
    write_csv(tmp_path / name, 2)
    write_csv(tmp_path / f"{'x' * 229}y.csv", 2)
    found = [text for batch in source_of(tmp_path).poll(10, 0.0) for text in batch.ids]
    assert len(set(found)) == 4
    assert max(map(len, found)) <= 150


def test_a_cursor_of_another_source_is_refused(tmp_path: Path) -> None:
    for cursor in ("12", "a:b", "1-2/3", "0-1/1:zzzzzzzz"):
        with pytest.raises(SourceError, match="not a cursor of a file"):
            source_of(tmp_path, {"a.ndjson": cursor})


def test_a_missing_folder_is_an_error_that_passes(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    with pytest.raises(SourceError, match="make it, or mount it"):
        source_of(folder)
    folder.mkdir()
    source = source_of(folder)
    assert source.poll(5, 0.0) == []
    with pytest.raises(SourceError, match="before it was opened"):
        FilesSource(FilesConfig(location=str(folder)), TABLE).poll(5, 0.0)


def test_partitions_of_files_that_went_can_be_forgotten(tmp_path: Path) -> None:
    for name in ("a.ndjson", "b.ndjson", "c.ndjson"):
        (tmp_path / name).write_bytes(lines("0", "1"))
    source = source_of(tmp_path)
    assert isinstance(source, ForgettingSource)
    cursors = {name: position for name, position, _ in read(source)}
    (tmp_path / "a.ndjson").unlink()
    (tmp_path / "b.ndjson").unlink()
    assert source.forget(cursors) == [], "before the source has looked, nothing is known"
    assert read(source, wait=WAIT) == []
    behind = cursors | {"b.ndjson": ""}
    assert source.forget(behind) == ["a.ndjson"], "what is not committed yet is not forgotten"
    assert source.forget(cursors) == ["b.ndjson"]
    (tmp_path / "a.ndjson").write_bytes(lines("new", "file"))
    assert len(read(source, wait=WAIT)) == 2


@every_form
def test_a_file_that_goes_before_its_records_are_committed_is_missed_after_a_restart(
    name: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, 6)
    source = source_of(tmp_path)
    found = read(source)
    committed = source.arrived({})
    assert list(committed) == [name]
    assert source.arrived(committed) == source.arrived({name: found[0][1]}) == {}
    assert read(source_of(tmp_path, committed)) == found
    (tmp_path / name).unlink()
    assert read(source, wait=WAIT) == [], "as long as this process lives, it holds them"
    with pytest.raises(DataLostError, match=rf"{name}.*gone and nothing of it was read"):
        source_of(tmp_path, committed)


def test_a_file_that_rests_is_owed_before_it_is_read(tmp_path: Path) -> None:
    for name in ("a.ndjson", "b.ndjson", "c.parquet"):
        write_parquet(tmp_path / name, 2) if name.endswith("t") else write_json(tmp_path / name, 2)
    source = source_of(tmp_path, settle_seconds=0)
    source.poll(1, 0.0)
    assert set(source.arrived({})) == {"a.ndjson", "b.ndjson", "c.parquet"}
    (tmp_path / "c.parquet").unlink()
    time.sleep(WAIT)
    with pytest.raises(DataLostError, match=r"c\.parquet.*gone and nothing of it was read"):
        source.poll(1, 0.0)


def test_a_file_that_its_writer_gave_up_may_go(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 half of it")
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(lines("0"))[:12])
    source = source_of(tmp_path, settle_seconds=60)
    assert read(source) == []
    assert source.arrived({}) == {}
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "b.ndjson.gz").unlink()
    assert read(source, wait=WAIT) == []


def test_a_file_without_a_record_may_go_and_may_still_grow(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(b"a,b,label\n")
    source = source_of(tmp_path, settle_seconds=0)
    assert read(source) == []
    committed = source.arrived({})
    assert source.arrived(committed) == {}
    (tmp_path / "a.csv").unlink()
    with (tmp_path / "b.csv").open("ab") as file:
        file.write(b"1,2,up\n")
    for other in (source, source_of(tmp_path, committed, settle_seconds=0)):
        assert said(read(other, wait=WAIT)) == ["1,2,up"]
        assert other.forget(committed) == ["a.csv"]


def test_what_was_appended_and_not_read_is_missed(tmp_path: Path) -> None:
    for name in ("a.ndjson", "b.ndjson"):
        (tmp_path / name).write_bytes(lines("0"))
    source = source_of(tmp_path)
    assert len(read(source)) == 2
    for name in ("a.ndjson", "b.ndjson"):
        with (tmp_path / name).open("ab") as file:
            file.write(lines("1", "2"))
    time.sleep(WAIT)
    assert len(source.poll(1, 0.0)) == 1
    (tmp_path / "b.ndjson").unlink()
    time.sleep(WAIT)
    with pytest.raises(DataLostError, match=r"b\.ndjson.*gone and was read up to"):
        source.poll(1, 0.0)


@pytest.mark.parametrize("name", ["a.ndjson", "a.csv", "a.ndjson.gz"])
def test_a_replaced_file_that_ends_alike_is_noticed(name: str, tmp_path: Path) -> None:
    def content(first: str) -> bytes:
        tail = lines(*("same" for _ in range(100)))
        whole = b"a,b,label\n" + first.encode() + tail if name == "a.csv" else lines(first) + tail
        return gzip.compress(whole, mtime=0) if name.endswith(".gz") else whole

    file = tmp_path / name
    file.write_bytes(content("0"))
    running = source_of(tmp_path, settle_seconds=0)
    positions = [position for _, position, _ in read(running)]
    file.write_bytes(content("1"))
    with file.open("ab") as grown:
        grown.write(gzip.compress(lines("2")) if name.endswith(".gz") else lines("2"))
    for position in (positions[-1], positions[0]):
        with pytest.raises(DataLostError, match="not the one that was read before"):
            source_of(tmp_path, {name: position})
    with pytest.raises(DataLostError, match=r"not the one that was read before|was replaced"):
        read(running, wait=WAIT)


def test_a_cursor_without_a_head_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(lines("0", "1"))
    found = read(source_of(tmp_path))
    headless = re.sub(r"-[0-9a-f]{8}(\.?)$", r"\1", found[0][1])
    assert headless != found[0][1]
    assert read(source_of(tmp_path, {"a.ndjson": headless})) == found[1:]


def test_empty_batches_at_the_end_of_an_arrow_file_hide_nothing(tmp_path: Path) -> None:
    whole = table(0, 5)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), whole.schema) as writer:
        for batch in (whole.slice(0, 2), whole.slice(0, 0), whole.slice(2), whole.slice(0, 0)):
            for part in batch.to_batches() or [pa.RecordBatch.from_pylist([], schema=whole.schema)]:
                writer.write_batch(part)
    found = read(source_of(tmp_path))
    assert len(found) == 5
    (tmp_path / "a.arrow").unlink()
    assert read(source_of(tmp_path, {"a.arrow": found[-1][1]})) == [], "it was read to its end"


def test_a_column_whose_name_is_no_text_is_told(tmp_path: Path) -> None:
    feather.write_feather(table(0, 2), tmp_path / "a.arrow", compression="uncompressed")
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole.replace(b"label", b"lab\xffl"))
    with pytest.raises(SchemaChangedError, match=r"a\.arrow.*not UTF-8"):
        source_of(tmp_path).poll(5, 0.0)


def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    line = payload("x", features=[0.1] * 60) + b"\n"
    for name, opened in (("a.ndjson", open), ("b.ndjson.gz", gzip.open)):
        with opened(tmp_path / name, "wb") as file:
            for _ in range(100):
                file.write(line * 1000)
    source = source_of(tmp_path)
    tracemalloc.start()
    count = 0
    while batches := source.poll(5000, 0.0):
        count += sum(len(batch.positions) for batch in batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200_000
    assert len(line) * 100_000 > 30_000_000
    assert peak < 16_000_000


def test_objects_of_a_bucket_are_read_like_files(s3: str, tmp_path: Path) -> None:
    objects = open_objects(s3)
    for name, write in WRITERS.items():
        write(tmp_path / name, 7)
        objects.create(f"day/{name}", (tmp_path / name).read_bytes())
    source = source_of(s3, look_seconds=0.05)
    found = read(source, most=5)
    assert len(found) == 7 * len(WRITERS)
    assert source.partitions() == sorted(f"day/{name}" for name in WRITERS)
    cursors = {name: position for name, position, _ in found}
    half = cursors | {found[3][0]: found[3][1]}
    assert read(source_of(s3, half)) == found[4:7]
    objects.replace("day/one.ndjson", (tmp_path / "one.ndjson").read_bytes() + lines("more"))
    assert len(read(source, wait=0.3)) == 1
    objects.delete("day/one.csv")
    assert read(source_of(s3, cursors)) == [next(iter(read(source_of(s3, cursors))))]
    objects.replace("day/one.parquet", (tmp_path / "one.arrow").read_bytes())
    with pytest.raises(DataLostError, match=r"day/one\.parquet"):
        source_of(s3, cursors)


def test_a_bucket_that_is_away_is_a_source_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_objects(s3).create("a.ndjson", lines("0"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    source = FilesSource(FilesConfig(location=s3), TABLE, allowed=Allowed(roots=(s3,)))
    for attempt in (lambda: source.open({}), source.partitions):
        with pytest.raises(SourceError, match="endpoint answers"):
            attempt()


def test_a_poll_waits_for_what_arrives_and_no_longer(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    started = time.monotonic()
    assert source.poll(5, 0.3) == []
    assert 0.3 <= time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"location": "relative/folder"}, "absolute"),
        ({"location": "s3://b"}, "not a location"),
        ({"location": "/x", "pattern": "*.xlsx"}, "must end with"),
        ({"location": "/x", "pattern": "*.parquet.gz"}, "must end with"),
        ({"location": "/x", "settle_seconds": -1}, "greater than or equal"),
    ],
)
def test_a_config_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FilesConfig(**settings)


def test_a_location_outside_the_allowed_roots_is_told(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
    (inside / "link").symlink_to(outside)
    allowed = Allowed(roots=(str(inside), "s3://bucket/prefix"))
    for good in (inside, inside / "day", "s3://bucket/prefix", "s3://bucket/prefix/day/"):
        assert FilesConfig(location=str(good)).refusal(allowed) is None
    folders = (outside, inside / "link", inside / ".." / "out", "/", f"{inside}2")
    for location in (*folders, "s3://bucket", "s3://bucket/prefix2"):
        message = FilesConfig(location=str(location)).refusal(allowed)
        assert message is not None
        assert "not within" in message
    assert FilesConfig(location="s3://bucket").refusal(Allowed(roots=(str(inside),))) is not None
    assert FilesConfig(location=str(inside)).refusal(Allowed()) is not None


def test_the_catalog_builds_it(tmp_path: Path) -> None:
    context = SourceContext(
        pipeline="files",
        schema=TABLE,
        engine=sqlite_engine(tmp_path / "a.db"),
        allowed=Allowed(roots=(str(tmp_path),)),
    )
    assert build(FilesConfig(location=str(tmp_path)), context).partitions() == []


def test_files_of_other_endings_are_named_and_those_meant_to_be_passed_over_are_not(tmp_path: Path) -> None:
    for name in ("a.txt", "b.data", "c.TSV", ".hidden", "_aside", "d.csv.tmp", "photo/e.jpg", "f.ndjson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n")
    allowed = Allowed(roots=(str(tmp_path),))
    found = FilesSource(FilesConfig(location=str(tmp_path)), SCHEMA, allowed=allowed)
    found.open({})
    (note,) = found.notes()
    assert note.startswith("4 files are passed over")
    for name in ("'a.txt'", "'b.data'", "'c.TSV'", "'photo/e.jpg'", ".csv", ".gz"):
        assert name in note
    assert "hidden" not in note
    assert list(found.partitions()) == ["f.ndjson"]
    for name in ("a.txt", "b.data", "c.TSV", "photo/e.jpg"):
        (tmp_path / name).unlink()
    found.partitions()
    assert found.notes() == []


def test_what_the_pattern_leaves_out_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    allowed = Allowed(roots=(str(tmp_path),))
    found = FilesSource(FilesConfig(location=str(tmp_path), pattern="*.csv"), SCHEMA, allowed=allowed)
    found.open({})
    assert found.notes() == []
