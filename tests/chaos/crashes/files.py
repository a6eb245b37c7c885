"""Files of a crash run, which grow by pieces, come whole, and go again."""

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from streams.sources.files.cursor import FileCursor
from tests.chaos.crashes.records import LANES, Item, Variant, chunk

CHUNKS_A_FILE = 4
_HEADER = b"id,x,y,label\n"


@dataclass(frozen=True)
class Partition:
    """What a partition holds in the end, in order."""

    items: list[Item]
    payloads: list[bytes]
    place_of: Callable[[str], int]
    """How many of the items a cursor has passed."""

    @property
    def poison(self) -> list[bytes]:
        pairs = zip(self.items, self.payloads, strict=True)
        return [payload for one, payload in pairs if not one.record]


@dataclass
class FilesStream:
    """Files of 80 records: some grow by pieces that end in the middle of a line, some are renamed into their
    place when they are whole."""

    folder: Path
    variant: Variant
    lanes: tuple[int, ...] = LANES
    killable: bool = True

    def declared(self) -> dict[str, Any]:
        return {"source": self.config()}

    def config(self) -> dict[str, Any]:
        # A line without its end is never taken, however long a killed producer is away.
        return {"kind": "files", "location": str(self.folder), "id": "id", "settle_seconds": 3600}

    def send(self, lane: int, number: int) -> None:
        file, part = divmod(number, CHUNKS_A_FILE)
        path, is_csv, grows = self._form(lane, file)
        whole = _text(self._items(lane, file, part + 1), is_csv=is_csv)
        if grows:
            _grow(path, whole)
        elif part == CHUNKS_A_FILE - 1 and not path.exists():
            unfinished = path.with_name(f"{path.name}.tmp")
            unfinished.unlink(missing_ok=True)
            _grow(unfinished, whole)
            unfinished.rename(path)

    def partitions(self, chunks: int) -> Mapping[str, Partition]:
        found = {}
        for lane in self.lanes:
            for file in range(chunks // CHUNKS_A_FILE):
                path, is_csv, _ = self._form(lane, file)
                items = self._items(lane, file, CHUNKS_A_FILE)
                lines = [one.csv if is_csv else one.json for one in items]
                first = len(_HEADER) if is_csv else 0
                ends = [first + end for end in accumulate(len(line) + 1 for line in lines)]
                found[path.name] = Partition(items, lines, partial(_lines, ends))
        return found

    def tidy(self, cursors: Mapping[str, str], sent: Set[tuple[int, int]]) -> bool:
        """Take away the files that are whole and committed to their end; whether some are gone whose cursors
        are not yet forgotten."""
        for lane, number in sent:
            file, part = divmod(number, CHUNKS_A_FILE)
            path = self._form(lane, file)[0]
            place = FileCursor.parse(cursors.get(path.name, ""))
            if part < CHUNKS_A_FILE - 1 or place is None or not path.exists():
                continue
            if place.last and place.end == path.stat().st_size:
                path.unlink()
        return any(not (self.folder / name).exists() for name in cursors)

    def _form(self, lane: int, file: int) -> tuple[Path, bool, bool]:
        """The path of a file, whether it is CSV, and whether it grows in its place."""
        turn = (file + lane) % 3
        is_csv = turn == 2 and self.variant != "late"
        path = self.folder / f"lane{lane}-{file:05d}.{'csv' if is_csv else 'ndjson'}"
        return path, is_csv, turn != 1

    def _items(self, lane: int, file: int, parts: int) -> list[Item]:
        first = file * CHUNKS_A_FILE
        return [one for part in range(parts) for one in chunk(self.variant, lane, first + part)]


def _text(items: list[Item], *, is_csv: bool) -> bytes:
    lines = [one.csv if is_csv else one.json for one in items]
    return (_HEADER if is_csv else b"") + b"".join(line + b"\n" for line in lines)


def _grow(path: Path, whole: bytes) -> None:
    """Write on from where the file ends, in two pieces."""
    with path.open("ab", buffering=0) as file:
        missing = whole[file.tell() :]
        middle = len(missing) // 2
        for piece in (missing[:middle], missing[middle:]):
            file.write(piece)
            time.sleep(0.001)


def _lines(ends: list[int], cursor: str) -> int:
    """How many lines stand before a cursor "start-end/size:fingerprint"."""
    return bisect_right(ends, int(cursor.partition("/")[0].partition("-")[2])) if cursor else 0
