"""The demo: the whole loop over HTTP on real digits, with a service that is started for real.

Two pipelines learn the same stream, digits that turn from 0 to 100 degrees. One fine-tunes and forgets; the
gate stops it. The other replays old records and is promoted. Then bad data arrives, a person decides on too
small a batch, and a champion is rolled back.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.client import Client
from service.commands import mlflow_pages, up
from service.errors import HoldfastError
from service.home import take_home
from service.settings import Settings
from streams.records import Records, text_column
from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig, digits_step
from streams.wire.decode import encode_json

STREAM = DatasetsConfig(protocol="rotated-digits")
NAIVE, REPLAY = "digits-naive", "digits-replay"
BATCH = 1000
START_SECONDS = 180.0
UPDATE_SECONDS = 120.0
SMALL_BATCH = 150
"""Records of the small batch: a third of them, the holdout, is too few to show a gain of a point."""


@dataclass
class Story:
    """What happened, for the table and for `--json`."""

    updates: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {NAIVE: [], REPLAY: []})
    stopped: list[dict[str, Any]] = field(default_factory=list)
    decision: dict[str, Any] = field(default_factory=dict)
    rollback: dict[str, Any] = field(default_factory=dict)
    champions: dict[str, int | None] = field(default_factory=dict)
    report: Path | None = None


def run(*, home: Path | None, json_output: bool) -> None:
    """Play the demo and print what it shows.

    Raises:
        HoldfastError: the service did not start, or an update did not end.
    """
    started = time.monotonic()
    console = Console(stderr=json_output)
    settings = fresh_settings(home)
    story = Story()
    console.print(f"[bold]Holdfast[/bold] starts in {settings.root}: API, ingest, Ray trainer, MLflow store.")
    with running_service(settings, console), Client(up.api_url(settings)) as client:
        _learn_the_stream(client, story, console)
        _send_bad_data(client, story, console)
        _ask_a_person(client, story, console)
        _roll_back(client, story, console)
        for pipeline in (NAIVE, REPLAY):
            story.champions[pipeline] = client.get(f"/v1/pipelines/{pipeline}")["champion_version"]
        _print_ledger(client, console)
        story.report = _report_of(settings, client)
    seconds = time.monotonic() - started
    _print_table(story, console)
    _print_where_to_look(settings, story, console, seconds)
    if json_output:
        sys.stdout.write(json.dumps(_document(story, seconds)) + "\n")


def fresh_settings(home: Path | None) -> Settings:
    """Settings of a service in an empty folder, this one or a temporary one.

    Raises:
        HoldfastError: the folder holds something.
    """
    root = home or Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    if root.exists() and any(root.iterdir()):
        raise HoldfastError(
            f"{root} holds something already; the demo wants a fresh folder.",
            fix="Name an empty one with --home, or leave --home out.",
        )
    return Settings(home=root, port=_free_port(), mlflow_port=_free_port(), mlflow_ui=False)


def spec(name: str, strategy: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline of the demo, as its owner would declare it."""
    return {
        "name": name,
        "schema": DIGITS_SCHEMA.model_dump(mode="json"),
        "source": {"kind": "pushed"},
        "trigger": {"kind": "records", "records": len(digits_step(STREAM, 0))},
        "split": {"gate": 0.334, "audit": 0.05},
        "strategy": {"hidden": [128, 128], "learning_rate": 1e-3, "epochs": 10, **strategy},
        # A rejected experience goes with every later update, so that each row of the table is whole.
        "max_carries": STREAM.steps,
        "gate": {"margin": 0.05, "alpha": 0.05, "learning_margin": 0.05, "learning_gain": 0.01},
    }


@contextmanager
def running_service(settings: Settings, console: Console) -> Iterator[None]:
    """`holdfast up` in a process of its own, until the block ends."""
    take_home(settings)
    log_path = settings.root / "service.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up"],
            env={**os.environ, **up.environment(settings)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with console.status("Starting the service"):
                _wait_until_ready(settings, process, log_path)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_until_ready(settings: Settings, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(timeout=up.LOOK_SECONDS) as http:
        while time.monotonic() < deadline:
            heard = up.answer(settings, http)
            if heard and {"ingest", "dispatch"} <= {role["role"] for role in heard["roles"]}:
                return
            if process.poll() is not None:
                break
            time.sleep(0.2)
    raise HoldfastError(
        f"The service did not start in {settings.root}.", fix=f"See {log_path} for the reason."
    )


def _learn_the_stream(client: Client, story: Story, console: Console) -> None:
    naive = {"name": "naive"}
    replay = {"name": "replay", "capacity": 1200}
    for name, strategy in ((NAIVE, naive), (REPLAY, replay)):
        client.post("/v1/pipelines", spec(name, strategy))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=2 * STREAM.steps)
        for step in range(STREAM.steps):
            lines = encode_json(digits_step(STREAM, step), DIGITS_SCHEMA)
            for pipeline in (NAIVE, REPLAY):
                angle = STREAM.angles[step]
                progress.update(task, description=f"{pipeline}: digits at {angle:.0f} degrees")
                push(client, pipeline, lines)
                update = update_that_learns(client, pipeline, experience=step)
                story.updates[pipeline].append(_summary(update, step))
                say_outcome(console, f"{pipeline}, {angle:.0f} degrees", update)
                if pipeline == NAIVE and step == 1 and update["outcome"] == "reject":
                    _keep_the_first_holdout(client, console)
                progress.advance(task)


def _keep_the_first_holdout(client: Client, console: Console) -> None:
    """Answer what the gate would ask of the next rejection: whether the holdout's labels are still true."""
    reason = "I looked at upright digits: their labels are as true as they were."
    client.post(f"/v1/pipelines/{NAIVE}/holdouts/0/keep", {"reason": reason, "by": "Ada"})
    console.print(f"  [green]kept[/green] by Ada: the holdout of experience 0. {reason}", highlight=False)


def _send_bad_data(client: Client, story: Story, console: Console) -> None:
    console.print("\n[bold]Bad data[/bold] is sent to the pipeline that learns well.")
    rng = np.random.default_rng(7)
    clean = digits_step(STREAM, STREAM.steps - 1)
    broken = {
        "shuffled labels": replace(clean, labels=rng.permutation(clean.labels)),
        "corrupted pixels": replace(
            clean, features=rng.uniform(0, 16, clean.features.shape).astype(np.float32)
        ),
    }
    for offset, (what, records) in enumerate(broken.items()):
        push(client, REPLAY, encode_json(_renamed(records, what), DIGITS_SCHEMA))
        update = update_that_learns(client, REPLAY, experience=STREAM.steps + offset)
        story.stopped.append({"what": what, **_summary(update, STREAM.steps + offset)})
        say_outcome(console, what, update)


def _ask_a_person(client: Client, story: Story, console: Console) -> None:
    console.print(f"\n[bold]A person decides[/bold]: an update is asked for with only {SMALL_BATCH} records.")
    few = _renamed(digits_step(STREAM, STREAM.steps - 1).take(slice(SMALL_BATCH)), "few")
    push(client, REPLAY, encode_json(few, DIGITS_SCHEMA))
    accepted = client.post(f"/v1/pipelines/{REPLAY}/updates", {"by": "demo"}, key="demo-small-batch")
    update = _finished(client, accepted["update"])
    say_outcome(console, f"{SMALL_BATCH} records", update)
    story.decision = {"outcome": update["outcome"], "reason": update["reason"]}
    if update["state"] != "review":
        return
    reason = "Few records, but the camera stands where it stood, and nothing old was lost."
    body = {"decision": "approve", "reason": reason, "by": "Ada"}
    client.post(f"/v1/updates/{update['id']}/decision", body)
    story.decision |= {"decision": "approve", "by": "Ada", "why": reason, "version": update["version"]}
    console.print(f"  [green]approved[/green] by Ada: {reason}")


def _roll_back(client: Client, story: Story, console: Console) -> None:
    before = client.get(f"/v1/pipelines/{REPLAY}/champion")["version"]
    reason = "The camera was mounted straight again."
    after = client.post(f"/v1/pipelines/{REPLAY}/rollback", {"reason": reason, "by": "Ada"})["version"]
    story.rollback = {"from": before, "to": after, "by": "Ada", "why": reason}
    console.print(
        f"\n[bold]Rollback[/bold]: Ada brings version {after} back in place of version {before}: {reason}"
    )


def push(client: Client, pipeline: str, lines: Sequence[bytes]) -> None:
    """Send records in batches."""
    for start in range(0, len(lines), BATCH):
        client.push(pipeline, lines[start : start + BATCH])


def _renamed(records: Records, what: str) -> Records:
    """The same images as new records; they keep their split keys, so none crosses into another part."""
    return replace(
        records, ids=text_column([f"{record_id}, {what}" for record_id in records.ids.to_pylist()])
    )


def update_that_learns(client: Client, pipeline: str, *, experience: int) -> Mapping[str, Any]:
    """The update that learns an experience, once it has ended.

    Raises:
        HoldfastError: it failed, or there is none in time.
    """
    deadline = time.monotonic() + UPDATE_SECONDS
    while time.monotonic() < deadline:
        newest = client.get(f"/v1/pipelines/{pipeline}/updates?limit=1")
        if newest and experience in newest[0]["experiences"]:
            return _finished(client, newest[0]["id"])
        time.sleep(0.1)
    raise HoldfastError(
        f"No update of {pipeline} took experience {experience} within {UPDATE_SECONDS:.0f} seconds.",
        fix="See service.log in the demo's folder.",
    )


def _finished(client: Client, update: str) -> Mapping[str, Any]:
    *_, last = client.follow(update, timeout_seconds=UPDATE_SECONDS)
    if last["state"] == "failed":
        raise HoldfastError(
            f"Update {update} failed: {last['error']}.", fix="See service.log in the demo's folder."
        )
    return last


def _summary(update: Mapping[str, Any], experience: int) -> dict[str, Any]:
    accuracy = update["accuracy"] or {}
    return {
        "experience": experience,
        "outcome": update["outcome"],
        "reason": update["reason"],
        "accuracy": [
            round(accuracy[str(index)], 4) if str(index) in accuracy else None
            for index in range(experience + 1)
        ]
        if accuracy
        else [],
        "version": update["version"],
    }


COLOURS = {"promote": "green", "review": "yellow", "reject": "red"}


def say_outcome(console: Console, what: str, update: Mapping[str, Any]) -> None:
    """One line: what was learnt, and what the gate said."""
    colour = COLOURS[update["outcome"]]
    console.print(f"  {what}: [{colour}]{update['outcome']}[/{colour}]: {update['reason']}", highlight=False)


def _print_ledger(client: Client, console: Console) -> None:
    ledger = client.get(f"/v1/pipelines/{REPLAY}/ledger")
    state = "holds" if ledger["intact"] else "IS BROKEN"
    console.print(
        f"\nThe ledger of {REPLAY} has {len(ledger['entries'])} entries; its chain of hashes {state}."
    )


def _print_table(story: Story, console: Console) -> None:
    table = Table(title="Accuracy on each angle after each update, in percent, and what the gate said")
    table.add_column("pipeline")
    table.add_column("update")
    for angle in STREAM.angles:
        table.add_column(f"{angle:.0f}°", justify="right")
    table.add_column("gate")
    for pipeline, updates in story.updates.items():
        for update in updates:
            accuracy = [f"{100 * value:.1f}" if value is not None else "" for value in update["accuracy"]]
            cells = accuracy + [""] * (len(STREAM.angles) - len(accuracy))
            colour = COLOURS[update["outcome"]]
            table.add_row(
                pipeline,
                f"{STREAM.angles[update['experience']]:.0f}°",
                *cells,
                f"[{colour}]{update['outcome']}[/{colour}]",
            )
        table.add_section()
    console.print(table)


def _print_where_to_look(settings: Settings, story: Story, console: Console, seconds: float) -> None:
    bin_folder = Path(sys.executable).parent
    command = " ".join(mlflow_pages.command(_with_usual_port(settings)))
    lines = (
        f"\nDone in {seconds:.0f} seconds. Where to look:",
        f"  report of a rejected update:  {story.report}",
        f"  MLflow's pages:               {bin_folder}/{command}",
        f"  the service once more:        HOLDFAST_HOME={settings.root} {bin_folder}/holdfast up",
    )
    for line in lines:
        # Paths and commands must stay whole, to be copied.
        console.print(line, soft_wrap=True, highlight=False)


def _with_usual_port(settings: Settings) -> Settings:
    """The same settings with MLflow's usual port, which the demo itself did not occupy."""
    return settings.model_copy(update={"mlflow_port": Settings.model_fields["mlflow_port"].default})


def _report_of(settings: Settings, client: Client) -> Path | None:
    """The report of the last update that the gate stopped for forgetting."""
    for update in client.get(f"/v1/pipelines/{NAIVE}/updates"):
        if update["outcome"] == "reject":
            run_id: str = update["run_id"]
            return settings.artifacts / NAIVE / run_id / "artifacts" / "report.html"
    return None


def _document(story: Story, seconds: float) -> dict[str, Any]:
    pipelines = {
        name: {"updates": updates, "champion_version": story.champions[name]}
        for name, updates in story.updates.items()
    }
    return {
        "pipelines": pipelines,
        "stopped": story.stopped,
        "decision": story.decision,
        "rollback": story.rollback,
        "report": str(story.report) if story.report else None,
        "seconds": round(seconds, 1),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
