"""Commands on pipelines, updates, champions and ledgers, by calling the API."""

import json
import sys
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from service.commands.outcomes import outcome_lines
from service.errors import HoldfastError, SettingsError
from service.settings import Settings, url_of

if TYPE_CHECKING:
    from service.client import Client

pipeline_app = typer.Typer(help="Declare and read pipelines.", no_args_is_help=True, rich_markup_mode=None)
update_app = typer.Typer(
    help="Start, follow, cancel and decide updates.", no_args_is_help=True, rich_markup_mode=None
)

WIDTH = 100
"""Columns that sentences are wrapped to."""

Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="HOLDFAST_URL", help="URL of the API; default: HOLDFAST_HOST and HOLDFAST_PORT."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why; recorded with the decision.")]
By = Annotated[str, typer.Option("--by", envvar="USER", help="Who decides.")]


@pipeline_app.command("create")
def pipeline_create(
    file: Annotated[Path, typer.Argument(help="YAML file.")], json_output: Json = False, url: Url = None
) -> None:
    """Declare a pipeline from a YAML file, and say what its gate means for it."""
    with open_client(url) as client:
        # The API checks the document: the command line needs no part of the service for it.
        view = client.post("/v1/pipelines", read_document(file))
    if json_output:
        return print_json(view)
    plan = view["gate_plan"]
    typer.echo(f"Pipeline {view['spec']['name']} is declared.")
    accepted = [f"Accepted as it is: {plan['hopeless']}."] if plan["hopeless"] else []
    for line in (plan["sentence"], *accepted, *plan["notes"]):
        typer.echo(fill(line, WIDTH))


@pipeline_app.command("list")
def pipeline_list(json_output: Json = False, url: Url = None) -> None:
    """List pipelines with their champion and number of experiences."""
    with open_client(url) as client:
        views = client.get("/v1/pipelines")
    if json_output:
        return print_json(views)
    for view in views:
        typer.echo(_state_of(view))


def _state_of(view: Any) -> str:
    champion = f"champion v{view['champion_version']}" if view["champion_version"] else "no champion"
    waiting = f", {view['pending_records']} records wait to be cut" if view["pending_records"] else ""
    count = view["experiences"]
    return f"{view['spec']['name']}: {champion}, {count} experience{'' if count == 1 else 's'}{waiting}"


@pipeline_app.command("status")
def pipeline_status(pipeline: str, json_output: Json = False, url: Url = None) -> None:
    """Show a pipeline's state, and how many of its updates were promoted, asked about and rejected."""
    with open_client(url) as client:
        view = client.get(path_of(pipeline))
    if json_output:
        return print_json(view)
    typer.echo(_state_of(view))
    for line in outcome_lines(view["outcomes"]):
        typer.echo(line)


@pipeline_app.command("show")
def pipeline_show(pipeline: str, url: Url = None) -> None:
    """Show one pipeline, as JSON."""
    with open_client(url) as client:
        print_json(client.get(path_of(pipeline)))


@pipeline_app.command("experiences")
def pipeline_experiences(pipeline: str, json_output: Json = False, url: Url = None) -> None:
    """List experiences with their state and record counts."""
    with open_client(url) as client:
        views = client.get(path_of(pipeline, "experiences"))
    if json_output:
        return print_json(views)
    for view in views:
        note = f": {view['note']}" if view["note"] else ""
        kept = view["gate_records"] + view["audit_records"]
        counts = f"{view['train_records'] + kept} records, {kept} of them to judge by"
        typer.echo(f"{view['index']:>4}  {view['state']:<8}  {counts}{note}")


@update_app.command("start")
def update_start(
    pipeline: str,
    key: Annotated[str | None, typer.Option(help="Idempotency-Key: makes a retry safe.")] = None,
    experience: Annotated[
        list[int] | None,
        typer.Option(help="Learn this waiting, carried or parked experience; may be repeated."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the verdict.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Most seconds to wait.")] = 600.0,
    json_output: Json = False,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Start an update from the records that have arrived. Exit status 1 if it fails; 0 if rejected."""
    with open_client(url) as client:
        body = {"by": by, "experiences": experience or None}
        accepted = client.post(path_of(pipeline, "updates"), body, key=key)
        last: Any = accepted
        if wait:
            for last in client.follow(accepted["update"], timeout_seconds=timeout):
                note(f"{last['id']}: {last['state']} {(last['progress'] or {}).get('stage', '')}")
            note("")
    if json_output:
        print_json(last)
    elif not wait:
        typer.echo(accepted["update"])
    else:
        typer.echo(
            f"{last['id']}: {last['outcome'] or last['state']}. {last['reason'] or last['error'] or ''}"
        )
        if last["state"] == "review":
            typer.echo(f"Decide with: holdfast update approve {last['id']} --reason ... (or reject)")
    if last["state"] == "failed":
        raise typer.Exit(1)


@update_app.command("list")
def update_list(
    pipeline: str,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 20,
    json_output: Json = False,
    url: Url = None,
) -> None:
    """List a pipeline's updates, newest first."""
    with open_client(url) as client:
        views = client.get(f"{path_of(pipeline, 'updates')}?limit={limit}")
    if json_output:
        return print_json(views)
    for view in views:
        typer.echo(
            f"{view['id']}  {view['created_at'][:19]}  {view['state']:<7}  {view['outcome'] or '':<7}  "
            f"{view['reason'] or view['error'] or ''}".rstrip()
        )


@update_app.command("show")
def update_show(update: str, url: Url = None) -> None:
    """Show one update, as JSON."""
    with open_client(url) as client:
        print_json(client.get(update_path(update)))


@update_app.command("cancel")
def update_cancel(
    update: str,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; recorded with the update.")],
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """End an update that is queued or learning, and park its experiences."""
    with open_client(url) as client:
        body = {"reason": reason, "by": by}
        view = client.post(update_path(update, "cancel"), body)
    typer.echo(f"{update}: cancelled by {view['decision']['by']}.")


@update_app.command("approve")
def update_approve(update: str, reason: Reason, by: By = "anonymous", url: Url = None) -> None:
    """Promote an update that awaits a decision."""
    _decide(update, "approve", reason=reason, by=by, url=url)


@update_app.command("reject")
def update_reject(update: str, reason: Reason, by: By = "anonymous", url: Url = None) -> None:
    """Reject an update that awaits a decision, and park its experiences."""
    _decide(update, "reject", reason=reason, by=by, url=url)


@update_app.command("explain")
def update_explain(update: str, json_output: Json = False, url: Url = None) -> None:
    """Show the gate's verdict in words: every finding, failed ones first, and the decision."""
    with open_client(url) as client:
        view = client.get(update_path(update, "decision"))
    if json_output:
        return print_json(view["verdict"])
    verdict = view["verdict"]
    if verdict is None:
        typer.echo(f"{update} has no verdict yet: it is {view['state']}.")
        return
    typer.echo(f"{update}: {verdict['outcome']}")
    _say("", verdict["reason"])
    for answer, title in (("fail", "Failed"), ("undecided", "Open"), ("pass", "Passed")):
        found = [each for each in verdict["findings"] if each["answer"] == answer]
        if found:
            typer.echo(f"\n{title}")
        for each in found:
            lead = f"{each['guard'].replace('_', ' ')}: "
            _say(lead, each["sentence"].removeprefix(lead))
    worst = [f"{each['record']} ({each['kind']}): {each['reason']}" for each in verdict.get("worst", [])]
    notes = [each["sentence"] for each in verdict.get("notes", [])]
    for title, lines in (("To know", notes), ("Records to look at", worst)):
        if lines:
            typer.echo(f"\n{title}")
        for line in lines:
            _say("", line)
    if view["decision"]:
        decision = view["decision"]
        typer.echo(f"\n{decision['by']}: {decision['choice']}, {decision['reason']}")


def champion(pipeline: str, url: Url = None) -> None:
    """Show the version in use, as JSON."""
    with open_client(url) as client:
        print_json(client.get(path_of(pipeline, "champion")))


def rollback(
    pipeline: str,
    reason: Reason,
    version: Annotated[
        int | None, typer.Option(min=1, help="Default: the one that the champion was made from.")
    ] = None,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Make a former champion the champion again."""
    with open_client(url) as client:
        body = {"version": version, "reason": reason, "by": by}
        view = client.post(path_of(pipeline, "rollback"), body)
    typer.echo(f"Version {view['version']} is the champion of {pipeline} again.")


def ledger(pipeline: str, json_output: Json = False, url: Url = None) -> None:
    """List every decision, in order. Exit status 1 if the chain of hashes is broken."""
    after: int | None = 0
    entries: list[Any] = []
    intact = True
    with open_client(url) as client:
        while after is not None:
            view = client.get(f"{path_of(pipeline, 'ledger')}?after={after}")
            entries += view["entries"]
            # Each page is checked by itself.
            intact &= view["intact"]
            after = view["next_after"]
    if json_output:
        print_json({"pipeline": pipeline, "entries": entries, "intact": intact})
    else:
        for entry in entries:
            version = f"v{entry['version']}" if entry["version"] else "no version"
            typer.echo(
                f"{entry['sequence']:>4}  {entry['at'][:19]}  {entry['action']:<8}  {version:<10}  "
                f"{entry['actor']}: {entry['reason']}"
            )
        typer.echo("The chain of hashes holds." if intact else "THE CHAIN OF HASHES IS BROKEN.")
    if not intact:
        raise typer.Exit(1)


def _decide(update: str, decision: str, *, reason: str, by: str, url: str | None) -> None:
    with open_client(url) as client:
        body = {"decision": decision, "reason": reason, "by": by}
        view = client.post(f"/v1/updates/{_segment(update)}/decision", body)
    done = "approved" if decision == "approve" else "rejected"
    typer.echo(f"{update}: {done} by {view['decision']['by']}.")


def _say(lead: str, sentence: str) -> None:
    typer.echo(fill(lead + sentence, WIDTH, initial_indent="  ", subsequent_indent="    "))


def read_settings() -> Settings:
    """The settings.

    Raises:
        SettingsError: it names the variables that are wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(
            f"HOLDFAST_{str(wrong['loc'][0]).upper()}: {wrong['msg']}" for wrong in error.errors()
        )
        raise SettingsError(
            f"{problems}.", fix="Correct the environment; docs/reference/operations.md lists each setting."
        ) from error


def open_client(url: str | None) -> "Client":
    from service.client import Client

    if url is None:
        settings = read_settings()
        url = url_of(settings.host, settings.port)
    return Client(url)


def path_of(pipeline: str, *rest: str) -> str:
    return "/".join(["/v1/pipelines", _segment(pipeline), *rest])


def update_path(update: str, *rest: str) -> str:
    return "/".join(["/v1/updates", _segment(update), *rest])


def _segment(name: str) -> str:
    from service.client import segment

    return segment(name)


def read_document(file: Path) -> Any:
    """The content of a YAML file, which must be what JSON can hold.

    Raises:
        HoldfastError: it cannot be read, is not YAML, or holds what a pipeline cannot.
    """
    import yaml

    from service.yaml_text import read_yaml

    try:
        document = read_yaml(file.read_text(encoding="utf-8"))
        json.dumps(document, allow_nan=False)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {error}.", fix="Name a readable UTF-8 file.") from error
    except yaml.YAMLError as error:
        raise HoldfastError(f"{file} is not YAML: {error}.", fix="Correct the file.") from error
    except (TypeError, ValueError) as error:
        raise HoldfastError(
            f"{file} holds what a pipeline cannot: {error}.",
            fix="Use texts, numbers, lists and mappings.",
        ) from error
    return document


def print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Show progress on a terminal; print nothing elsewhere."""
    if sys.stderr.isatty():
        typer.echo(f"\r\033[K{text}", nl=False, err=True)
