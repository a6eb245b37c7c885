"""Reads one input in a process of its own, and prints the outcome and the memory that it took at most.

`python -m tests.support.bounded push MEDIA_TYPE FILE` or `... files FOLDER`.
"""

import json
import resource
import sys
from pathlib import Path

from service.errors import HoldfastError
from service.ingest import bodies
from service.ingest.push import decode_all
from streams.allowed import Allowed
from streams.base import RecordSchema, StreamError
from streams.records import LabelMap
from streams.sources.files.config import FilesConfig
from streams.sources.files.source import FilesSource
from streams.wire.decode import decode

SCHEMA = RecordSchema(shape=(2,), classes=("up", "down"))
_POLLS = 4


def push(media_type: str, path: Path) -> str:
    """Decode a request's body as the API does."""
    labels = LabelMap(SCHEMA)
    try:
        batch = bodies.batch(path.read_bytes(), media_type)
        return f"{len(decode_all(batch, SCHEMA, labels))} records"
    except (HoldfastError, RecursionError) as error:
        return str(error)[:200] or "nested too deeply"


def files(folder: Path) -> str:
    """Poll a folder, and decode what comes, as ingest does."""
    config = FilesConfig(location=str(folder), label="label", id=None, settle_seconds=0)
    source = FilesSource(config, SCHEMA, allowed=Allowed(roots=(str(folder),)))
    good = bad = 0
    try:
        source.open({})
        for _ in range(_POLLS):
            for batch in source.poll(65_536, 1.0):
                decoded = decode(batch, SCHEMA)
                good += len(decoded.records)
                bad += len([each.payload for each in decoded.rejected])
    except StreamError as error:
        return str(error)[:200]
    return f"{good} records, {bad} refused"


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(words: list[str]) -> None:
    """Run what the command line names."""
    before = peak_bytes()
    said = push(words[1], Path(words[2])) if words[0] == "push" else files(Path(words[1]))
    print(json.dumps({"said": said, "bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main(sys.argv[1:])
