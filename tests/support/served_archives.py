"""Exported networks as somebody could change them: members replaced, pickles that run a command."""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class Creates:
    """Unpickled, it creates a folder."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._path,)


def torch_file(content: object) -> bytes:
    """What `torch.save` writes."""
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()


def rewrite(served: Path, members: Mapping[str, bytes]) -> bytes:
    """The archive with members replaced, by the end of their names, or added."""
    written = io.BytesIO()
    left = dict(members)
    with zipfile.ZipFile(served) as archive, zipfile.ZipFile(written, "w") as copy:
        folder = archive.namelist()[0].partition("/")[0]
        for name in archive.namelist():
            ending = next((each for each in members if name.endswith(each)), "")
            copy.writestr(name, left.pop(ending) if ending else archive.read(name))
        for name, content in left.items():
            copy.writestr(f"{folder}/{name}", content)
    return written.getvalue()


def tamper(served: Path, made: Path) -> None:
    """Make `torch.export.load` of this file create `made`."""
    served.write_bytes(rewrite(served, {"sample_inputs/model.pt": torch_file(Creates(made))}))
