"""Commands that send records, show a stream, pause and resume it, and replay its dead letters."""

import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

from service.commands.pipelines import By, Json, Reason, Url, open_client, path_of, print_json
from service.errors import HoldfastError

if TYPE_CHECKING:
    from rich.progress import Progress

    from service.client import Client

stream_app = typer.Typer(
    help="Show a stream, pause and resume it, list and replay its dead letters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

REPLAYED_AT_A_TIME = 100
TOO_MANY_WAIT = 429
DeadLetterId = Annotated[str, typer.Argument(help="The dead letter's id, 16 hex digits.")]
OfReason = Annotated[str | None, typer.Option("--only", help="Only with this reason, such as malformed.")]


def push(
    pipeline: str,
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="NDJSON: one record a line; - is stdin.")],
    batch: Annotated[int, typer.Option(min=1, help="Records a request.")] = 1000,
    key: Annotated[
        str | None,
        typer.Option(help="Idempotency key: the same file, --batch and key sent again store nothing twice."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to retry for while the backlog is full.")
    ] = 60.0,
    url: Url = None,
) -> None:
    """Send the records of a file."""
    lines = (line.strip() for line in file)
    records = (line for line in lines if line)
    sent = before = 0
    with open_client(url) as client, _progress() as progress:
        task = progress.add_task(f"sending to {pipeline}", total=_size(file.name), records=0)
        while chunk := list(islice(records, batch)):
            # The offset in the file is part of the key, so that an interrupted push can be repeated.
            keyed = f"{key}:{sent}" if key else None
            until = time.monotonic() + wait
            if _send(client, pipeline, chunk, first=sent + 1, key=keyed, until=until):
                before += len(chunk)
            sent += len(chunk)
            progress.update(task, advance=sum(map(len, chunk)) + len(chunk), records=sent)
    if not sent:
        raise HoldfastError(f"There is no record in {file.name}.", fix="Write one JSON record a line.")
    if stored := sent - before:
        typer.echo(f"{stored} record{' is' if stored == 1 else 's are'} stored and will be learnt once.")
    if before:
        typer.echo(f"{before} record{' was' if before == 1 else 's were'} stored before, and not again.")


@stream_app.command("status")
def stream_status(pipeline: str, json_output: Json = False, url: Url = None) -> None:
    """Show the state of a stream. Exit status 1 if it does not run."""
    with open_client(url) as client:
        view = client.get(path_of(pipeline, "stream"))
    if json_output:
        print_json(view)
    else:
        for line in _status(view):
            typer.echo(line)
    if view["status"] != "running":
        raise typer.Exit(1)


@stream_app.command("pause")
def stream_pause(pipeline: str, reason: Reason, by: By = "anonymous", url: Url = None) -> None:
    """Stop reading records until the stream is resumed; updates go on."""
    with open_client(url) as client:
        client.post(path_of(pipeline, "stream", "pause"), {"reason": reason, "by": by})
    typer.echo(f"The stream of {pipeline} is paused.")


@stream_app.command("resume")
def stream_resume(pipeline: str, reason: Reason, by: By = "anonymous", url: Url = None) -> None:
    """Read records again, after a pause or after the stream stopped by itself."""
    with open_client(url) as client:
        client.post(path_of(pipeline, "stream", "resume"), {"reason": reason, "by": by})
    typer.echo(f"The stream of {pipeline} runs again.")


@stream_app.command("dead-letters")
def stream_dead_letters(
    pipeline: str,
    only: OfReason = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 20,
    after: Annotated[str | None, typer.Option(help="Continue after this dead letter.")] = None,
    json_output: Json = False,
    url: Url = None,
) -> None:
    """List refused payloads, newest first."""
    with open_client(url) as client:
        views = _dead_letters(client, pipeline, limit=limit, reason=only, after=after)
    if json_output:
        return print_json(views)
    for view in views:
        mark = "replayed" if view["replayed_at"] else view["reason"]
        typer.echo(f"{view['id']}  {view['created_at'][:19]}  {mark:<15}  {view['detail']}")
    if not views:
        typer.echo("There is no dead letter." if after is None else "There are no more.")
    elif len(views) == limit:
        typer.echo(f"For more: --after {views[-1]['id']}")


@stream_app.command("show")
def stream_show(pipeline: str, dead_letter: DeadLetterId, url: Url = None) -> None:
    """Show one dead letter with its payload, as JSON."""
    with open_client(url) as client:
        print_json(client.get(path_of(pipeline, "dead-letters", quote(dead_letter, safe=""))))


@stream_app.command("replay")
def stream_replay(
    pipeline: str,
    dead_letters: Annotated[
        list[str] | None, typer.Argument(help="Ids; none: all that were not replayed yet.")
    ] = None,
    only: OfReason = None,
    payload: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(help="For one dead letter: a file with the corrected record; - is stdin."),
    ] = None,
    json_output: Json = False,
    url: Url = None,
) -> None:
    """Decode dead letters again; valid ones go back into the stream. Exit status 1 if any is refused."""
    corrected = None if payload is None else payload.read().decode("utf-8", "surrogateescape").strip()
    results: list[Any] = []
    with open_client(url) as client, _progress() as progress:
        chosen = dead_letters or _not_replayed(client, pipeline, only)
        task = progress.add_task(f"replaying into {pipeline}", total=len(chosen), records=0)
        for start in range(0, len(chosen), REPLAYED_AT_A_TIME):
            some = chosen[start : start + REPLAYED_AT_A_TIME]
            body = {"dead_letters": some, "payload": corrected}
            results += client.post(path_of(pipeline, "dead-letters", "replay"), body)["dead_letters"]
            progress.update(task, advance=len(some), records=len(results))
    left = [each for each in results if not each["replayed"]]
    if json_output:
        print_json(results)
    else:
        done = len(results) - len(left)
        typer.echo(f"{done} dead letter{' is' if done == 1 else 's are'} in the stream again.")
        for each in left:
            typer.echo(f"{each['dead_letter']}  {each['reason']}")
    if left:
        raise typer.Exit(1)


def _dead_letters(client: "Client", pipeline: str, **asked: str | int | None) -> list[Any]:
    given = {name: value for name, value in asked.items() if value is not None}
    views: list[Any] = client.get(f"{path_of(pipeline, 'dead-letters')}?{urlencode(given)}")
    return views


def _not_replayed(client: "Client", pipeline: str, only: str | None) -> list[str]:
    """Ids of all that were not replayed, oldest first."""
    found: list[str] = []
    while page := _dead_letters(
        client, pipeline, limit=1000, replayed="false", reason=only, after=found[-1] if found else None
    ):
        found += [view["id"] for view in page]
    return found[::-1]


def _send(
    client: "Client", pipeline: str, chunk: list[bytes], *, first: int, key: str | None, until: float
) -> bool:
    """Push one request, retrying a full backlog until `until`; True: the key had stored it before."""
    while True:
        try:
            return bool(client.push(pipeline, chunk, key=key)["duplicate"])
        except HoldfastError as error:
            if error.members.get("status") != TOO_MANY_WAIT or time.monotonic() >= until:
                raise _numbered_in_file(error, first) from error
            time.sleep(1.0)


def _numbered_in_file(error: HoldfastError, first: int) -> HoldfastError:
    """The refusal of a request, with records numbered from the beginning of the file."""
    stored = f"The first {first - 1} records are stored, and none after them. " if first > 1 else ""
    wrong: Any = error.members.get("errors")
    if not wrong:
        return HoldfastError(f"{stored}{error.detail}", fix=error.fix)
    more = int(str(error.members.get("rejected", 1))) - 1
    return HoldfastError(
        f"{stored}Record {first + wrong[0]['record']} does not fit: {wrong[0]['detail']}"
        + (f" So do not {more} more of the same request." if more else ""),
        fix="Correct or remove the records that do not fit, and send the rest.",
    )


def _status(view: Any) -> Iterator[str]:
    yield f"{view['pipeline']}: {view['status']}" + (f" since {view['since'][:19]}" if view["since"] else "")
    if view["reason"]:
        yield f"  {view['reason']} ({view['actor']})"
    yield from (f"  warning: {each}" for each in view["warnings"])
    yield f"  source {view['source']}, trigger {view['trigger']}, {view['classes']} classes"
    many = "" if view["experiences"] == 1 else "s"
    learnt = f"{view['experiences']} experience{many} of {view['records']} records"
    yield f"  {learnt}; {view['pending_records']} wait to be cut"
    if view["last_cut"]:
        yield f"  last cut: {view['last_cut']}"
    if view["backlog_records"]:
        yield f"  {view['backlog_records']} pushed records are not in an experience yet"
    if view["unmatched_records"] or view["aged_out"]:
        yield (
            f"  {view['unmatched_records']} unmatched features or labels wait; "
            f"{view['aged_out']} were dropped without a match"
        )
    if view["duplicates"]:
        yield f"  {view['duplicates']} duplicates were dropped"
    if view["held_out"]:
        yield f"  {view['held_out']} records were dropped because a golden set holds their id"
    counts = ", ".join(f"{count} {reason}" for reason, count in view["dead_letters"].items())
    replayed = (
        f"; {view['replayed_dead_letters']} more were replayed" if view["replayed_dead_letters"] else ""
    )
    yield f"  dead letters: {counts or 'none'}{replayed}"
    for partition in view["partitions"][:20]:
        # Cursors of every source before its first record.
        begins = partition["cursor"].startswith("0-0") or partition["cursor"] in ("", "0")
        position = "at its beginning" if begins else f"done to {partition['cursor']}"
        yield f"  {partition['partition']} is {position}"
    if view["partition_count"] > 20:
        yield f"  and {view['partition_count'] - 20} more partitions"


def _progress() -> "Progress":
    """A progress bar on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[records]} records"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def _size(name: str) -> float | None:
    """Bytes of a file; None for standard input and other non-files."""
    path = Path(name)
    return float(path.stat().st_size) if path.is_file() else None
