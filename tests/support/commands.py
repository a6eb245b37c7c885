"""The command `holdfast` in a process of its own, forked from one that has paid for the imports.

Such a process shares no state with the test, nor with an earlier command, but begins with the modules loaded,
and handlers of `atexit` do not run. What a start itself costs or imports is tested elsewhere, with processes
that a shell would start (`tests/service/test_packaging.py`).
"""

import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_MODULES = ["service.cli", "service.client", "rich.console", "yaml", __name__]


def preload(*modules: str) -> None:
    """More modules for the process that is forked; without effect once a command of this process has run."""
    _MODULES.extend(modules)
    _CONTEXT.set_forkserver_preload(_MODULES)


preload()


def holdfast(
    *arguments: str | Path, env: Mapping[str, str] | None = None, text: str = "", timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; of this process's environment it sees all but Holdfast's own variables.

    `text` is its standard input; after `timeout` seconds it is killed, and the test fails.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    words = list(map(str, arguments))
    with tempfile.TemporaryDirectory(prefix="holdfast-command-") as folder:
        streams = [Path(folder) / name for name in ("in", "out", "err")]
        for each in streams:
            each.write_text(text if each.name == "in" else "")
        process = _CONTEXT.Process(target=_run, args=(words, {**clean, **(env or {})}, os.getcwd(), streams))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout, *(each.read_bytes() for each in streams[1:]))
        out, err = (each.read_text() for each in streams[1:])
        status = process.exitcode
        process.close()
    return subprocess.CompletedProcess(words, status, out, err)


def _run(arguments: list[str], env: Mapping[str, str], folder: str, streams: list[Path]) -> None:
    """In the new process: take its streams, its environment and its folder, and be the command."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (path, flag) in enumerate(zip(streams, flags, strict=True)):
        opened = os.open(path, flag)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (_standard(name) for name in ("<stdin>", "<stdout>", "<stderr>"))
    sys.argv = ["holdfast", *arguments]
    from service.cli import main

    main()


def _standard(name: str) -> io.TextIOWrapper:
    """Standard input, output or error as Python opens it at its start."""
    number = ("<stdin>", "<stdout>", "<stderr>").index(name)
    raw = io.FileIO(number, "w" if number else "r", closefd=False)
    raw.name = name
    buffered = io.BufferedWriter(raw) if number else io.BufferedReader(raw)
    return io.TextIOWrapper(buffered, encoding="utf-8", line_buffering=number == 2)
