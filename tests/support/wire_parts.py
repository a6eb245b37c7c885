"""Batches of every wire format, for the tests of its decoders."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from streams.base import RawBatch, RecordSchema, TableColumns, WireName
from streams.records import Records
from streams.wire.decode import Decoded

TABLE = RecordSchema(columns=("a", "b", "c"), classes=("no", "yes", "3"), minimum=-100.0, maximum=100.0)
TIMED = TableColumns(time="time")

Row = Mapping[str, Any]


def row(name: str, **changes: Any) -> dict[str, Any]:
    """One good record of `TABLE`, in the form that callers send."""
    return {"id": name, "features": [1.5, -2.0, 0.1], "label": "yes", "time": 12.5} | changes


def batch(payloads: Sequence[bytes], wire: WireName, **more: Any) -> RawBatch:
    """A batch of these payloads, one record each, at positions p0, p1, ..."""
    return RawBatch("p", "", payloads, [f"p{index}" for index in range(len(payloads))], wire, **more)


def csv_line(cells: Sequence[Any]) -> bytes:
    """One line of CSV, without its end."""
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow(["" if cell is None else cell for cell in cells])
    return file.getvalue().encode()


def sent(wire: WireName, rows: Sequence[Row], schema: RecordSchema = TABLE) -> RawBatch:
    """The same records in a wire format; "arrow" as others write it."""
    if wire == "json":
        return batch([json.dumps(one).encode() for one in rows], wire)
    if wire == "msgpack":
        dtype = np.dtype(schema.dtype)
        return batch(
            [
                msgspec.msgpack.encode(
                    {**one, "features": np.array(one["features"], dtype).tobytes()}
                    if one.get("features") is not None
                    else one
                )
                for one in rows
            ],
            wire,
        )
    names = [*schema.columns, *schema.groups]
    header = ["id", "label", "time", *names]
    cells = [
        [
            one["id"],
            one.get("label"),
            one.get("time"),
            *(one.get("features") or [None] * schema.size),
            *(one.get("groups", {}).get(name) for name in schema.groups),
        ]
        for one in rows
    ]
    if wire == "csv":
        return batch([csv_line(line) for line in cells], wire, header=header, table=TIMED)
    kinds = [pa.string(), pa.string(), pa.float64(), *[pa.float64()] * schema.size]
    kinds += [pa.string()] * len(schema.groups)
    columns = {
        name: pa.array([line[index] for line in cells], kinds[index]) for index, name in enumerate(header)
    }
    return arrow(pa.table(columns), table=TIMED)


def ipc(found: pa.Table, *, file: bool = False, compression: str | None = None) -> bytes:
    """A table as an Arrow stream, or as an Arrow file."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, found.schema, options=options) as writer:
        writer.write_table(found)
    return bytes(sink.getvalue())


def arrow(found: pa.Table, *, file: bool = False, **more: Any) -> RawBatch:
    """A batch of all the rows of a table, at positions p0, p1, ..."""
    positions = [f"p{index}" for index in range(found.num_rows)]
    return RawBatch("p", "", [ipc(found, file=file)], positions, "arrow", **more)


def equal(one: Records, other: Records) -> bool:
    """Whether all columns are the same, bit for bit."""
    carries = (one.carries is None) == (other.carries is None)
    if carries and one.carries is not None and other.carries is not None:
        carries = bool(np.array_equal(one.carries, other.carries))
    return (
        carries
        and one.ids.equals(other.ids)
        and one.split_keys.equals(other.split_keys)
        and one.features.dtype == other.features.dtype
        and one.features.shape == other.features.shape
        and one.features.tobytes() == other.features.tobytes()
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.times, other.times, equal_nan=True)
        and {name: column.to_pylist() for name, column in one.groups.items()}
        == {name: column.to_pylist() for name, column in other.groups.items()}
    )


def check_partition(found: Decoded, given: RawBatch) -> None:
    """Every position is accepted or refused, in order, and nothing else is."""
    accepted, refused = found.indices.tolist(), [bad.index for bad in found.rejected]
    assert accepted == sorted(accepted)
    assert refused == sorted(refused)
    assert sorted([*accepted, *refused]) == list(range(len(given.positions)))
    assert len(found.records) == len(found.positions) == len(accepted)
    assert list(found.positions) == [given.positions[index] for index in accepted]
    assert [bad.position for bad in found.rejected] == [given.positions[index] for index in refused]
