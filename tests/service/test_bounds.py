"""Small inputs that become large: each is refused, or read in bounded memory, within seconds."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.repository import ROOT

MOST_BYTES = 300 * 2**20
"""What one input of some megabytes may take; unbounded, each of these took from 400 MB to gigabytes."""
SECONDS = 60

MANY = 2_000_000
GOOD = {"features": [1.0, 2.0], "label": "up"}


def arrow(table: Any, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def shared_text(rows: int) -> Any:
    """Rows whose labels are one text of a megabyte."""
    labels = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 2**20])
    return pa.table({"0": np.ones(rows), "1": np.ones(rows), "label": labels})


BODIES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "JSON of 0": ("application/json", lambda: b'{"records":[' + b"0," * MANY + b"0]}", "At least 21 records"),
    "JSON of {}": ("application/json", lambda: b'{"records":[' + b"{}," * MANY + b"{}]}", "At least 21"),
    "JSON of []": ("application/json", lambda: b'{"records":[' + b"[]," * MANY + b"[]]}", "At least 21"),
    "JSON of 0 with escapes": (
        "application/json",
        lambda: b'{"\\u0072ecords":[' + b"0," * MANY + b"0]}",
        "with escapes",
    ),
    "JSON of 0 in a second list": (
        "application/json",
        lambda: b'{"records":[],"records":[' + b"0," * MANY + b"0]}",
        "more than once",
    ),
    "JSON of 0 after one that is deep": (
        "application/json",
        lambda: b'{"records":[' + b"[" * 9 + b"]" * 9 + b",0" * MANY + b"]}",
        "too deeply",
    ),
    "JSON of short objects": (
        "application/json",
        lambda: b'{"records":[' + b'{"id":"","x":0},' * 300_000 + b"{}]}",
        "At least 21",
    ),
    "JSON of records without features": (
        "application/json",
        lambda: b'{"records":[' + b'{"id":"a","label":"up"},' * 300_000 + b"{}]}",
        "of 300001 records do not fit",
    ),
    "one JSON record of numbers": (
        "application/json",
        lambda: b'{"records":[{"id":"a","label":"up","features":[' + b"0," * 3 * MANY + b"0]}]}",
        "one of this pipeline has",
    ),
    "JSON nested deeply": (
        "application/json",
        lambda: b'{"records":[{"id":"a","features":' + b"[" * MANY + b"]" * MANY + b"}]}",
        "recursion",
    ),
    "JSON objects nested deeply": (
        "application/json",
        lambda: b'{"records":[' + b'{"a":' * MANY + b"0" + b"}" * MANY + b"]}",
        "nested too deeply",
    ),
    "NDJSON of 0": ("application/x-ndjson", lambda: b"0\n" * MANY, "At least 21 records"),
    "NDJSON of {}": ("application/x-ndjson", lambda: b"{}\n" * MANY, "At least 21 records"),
    "msgpack of 0": (
        "application/msgpack",
        lambda: b"\xdd" + MANY.to_bytes(4, "big") + b"\x00" * MANY,
        "too few for so many",
    ),
    "msgpack that claims many": ("application/msgpack", lambda: b"\xdd\xff\xff\xff\xff", "too few"),
    "one msgpack record of numbers": (
        "application/msgpack",
        lambda: msgspec.msgpack.encode([{"id": "a", "label": "up", "features": [0] * 5 * MANY}]),
        "one of this pipeline has",
    ),
    "Arrow of zeros, compressed": (
        "application/vnd.apache.arrow.stream",
        lambda: arrow(pa.table({"0": np.zeros(2**28)}), "zstd"),
        "unpacks to",
    ),
    "Arrow rows that share a text": (
        "application/vnd.apache.arrow.stream",
        lambda: arrow(
            shared_text(10_000).append_column("id", pa.array(map(str, range(10_000)), pa.string()))
        ),
        "10000 of 10000 records do not fit",
    ),
}

FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "lines of a megabyte": (
        "a.ndjson.gz",
        lambda: gzip.compress((b'{"id":"a","label":"' + b"x" * 2**20 + b'"}\n') * 200),
        "0 records",
    ),
    "lines of numbers": (
        "a.ndjson.gz",
        lambda: gzip.compress((b'{"id":"a","features":[' + b"0," * 2**19 + b"0]}\n") * 120),
        "0 records",
    ),
    "lines of 0": ("a.ndjson.gz", lambda: gzip.compress(b"0\n" * 5 * MANY), "0 records, 262144 refused"),
    "one line without an end": ("a.ndjson.gz", lambda: gzip.compress(b"0" * 2**27), "longer than 64 MB"),
    "blank lines": ("a.ndjson.gz", lambda: gzip.compress(b"\n" * 2**28), "0 records, 0 refused"),
    "CSV lines of a megabyte": (
        "a.csv.gz",
        lambda: gzip.compress(b"0,1,label\n" + (b"1,2," + b"x" * 2**20 + b"\n") * 200),
        "0 records",
    ),
    "a CSV header without an end": ("a.csv.gz", lambda: gzip.compress(b"0," * 2**26), "longer than 64 MB"),
    "Parquet rows that share a text": ("a.parquet", lambda: in_parquet(shared_text(400)), "0 records, 400 "),
    "more Parquet rows that share a text": (
        "a.parquet",
        lambda: in_parquet(shared_text(40_000)),
        "0 records",
    ),
}


def in_parquet(table: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def measured(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.bounded", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("what", BODIES)
def test_a_small_body_takes_little_memory(what: str, tmp_path: Path) -> None:
    media_type, body, said = BODIES[what]
    (tmp_path / "body").write_bytes(body())
    found = measured("push", media_type, str(tmp_path / "body"))
    assert said in found["said"]
    assert found["bytes"] < MOST_BYTES


@pytest.mark.parametrize("what", FILES)
def test_a_small_file_takes_little_memory(what: str, tmp_path: Path) -> None:
    name, content, said = FILES[what]
    (tmp_path / name).write_bytes(content())
    found = measured("files", str(tmp_path))
    assert said in found["said"]
    assert found["bytes"] < MOST_BYTES
