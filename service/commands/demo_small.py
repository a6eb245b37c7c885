"""The demo of small experiences: how often the gate asks a person where each brings only 200 records.

Digits that turn by two degrees an experience, learnt with replay. Every question is counted, then answered
with yes, so that the stream goes on by itself.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from service.client import Client
from service.commands import up
from service.commands.demo import fresh_settings, push, running_service, say_outcome, update_that_learns
from streams.records import Records, text_column
from streams.sources.datasets import DIGITS_SCHEMA, DatasetsConfig, digits_step
from streams.wire.decode import encode_json

NAME = "digits-small"
EXPERIENCES, RECORDS, DEGREES = 40, 200, 2.0
"""Experiences, records of each, and how far the digits turn from one to the next."""
ANSWER = "the demo answers every question with yes"


def run(*, home: Path | None, json_output: bool) -> None:
    """Play the stream and count the questions.

    Raises:
        HoldfastError: the service did not start, or an update did not end.
    """
    started = time.monotonic()
    console = Console(stderr=json_output)
    settings = fresh_settings(home)
    console.print(f"[bold]Holdfast[/bold] starts in {settings.root}: API, ingest, Ray trainer, MLflow store.")
    with running_service(settings, console), Client(up.api_url(settings)) as client:
        client.post("/v1/pipelines", spec())
        updates = [_learn(client, console, index) for index in range(EXPERIENCES)]
    document = _document(updates, time.monotonic() - started)
    _print_counts(console, document)
    if json_output:
        sys.stdout.write(json.dumps(document) + "\n")


def spec() -> dict[str, Any]:
    """The pipeline, with the gate as it is unless somebody says otherwise."""
    return {
        "name": NAME,
        "schema": DIGITS_SCHEMA.model_dump(mode="json"),
        "trigger": {"kind": "records", "records": RECORDS},
        "strategy": {"name": "replay", "capacity": 4000, "hidden": [128], "epochs": 10},
    }


def records(index: int) -> Records:
    """The records of one experience; an image keeps its split key, so that none crosses into another part."""
    turned = digits_step(DatasetsConfig(angles=(DEGREES * index,)), 0)
    chosen = turned.take((RECORDS * index + np.arange(RECORDS)) % len(turned))
    return replace(chosen, ids=text_column([f"{index}-{row}" for row in range(RECORDS)]))


def _learn(client: Client, console: Console, index: int) -> Mapping[str, Any]:
    push(client, NAME, encode_json(records(index), DIGITS_SCHEMA))
    update = update_that_learns(client, NAME, experience=index)
    say_outcome(console, f"experience {index}", update)
    if update["state"] == "review":
        body = {"decision": "approve", "reason": ANSWER, "by": "demo"}
        client.post(f"/v1/updates/{update['id']}/decision", body)
    if client.get(f"/v1/pipelines/{NAME}/holdouts")["freeze"]:
        client.post(f"/v1/pipelines/{NAME}/unfreeze", {"reason": ANSWER, "by": "demo"})
    return update


def _document(updates: list[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    outcomes = Counter(each["outcome"] for each in updates)
    return {
        "experiences": len(updates),
        "records": RECORDS,
        "outcomes": {kind: outcomes[kind] for kind in ("promote", "review", "reject")},
        "reasons": [
            {"experience": index, "outcome": each["outcome"], "reason": each["reason"]}
            for index, each in enumerate(updates)
            if each["outcome"] != "promote"
        ],
        "seconds": round(seconds, 1),
    }


def _print_counts(console: Console, document: Mapping[str, Any]) -> None:
    outcomes = document["outcomes"]
    console.print(
        f"\nOf {document['experiences']} experiences with {RECORDS} records each {outcomes['promote']} were "
        f"promoted, a person was asked about {outcomes['review']}, and {outcomes['reject']} were rejected."
    )
    console.print(f"Done in {document['seconds']:.0f} seconds.")
