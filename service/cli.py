"""The command `holdfast`. Heavy imports wait until the command that needs them runs."""

import json
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from service.errors import HoldfastError, SettingsError
from service.settings import Settings

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer(
    name="holdfast",
    help="Continual-learning training service with forgetting guards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serve_app = typer.Typer(help="Run one role of the service, as production does.", no_args_is_help=True)
pipeline_app = typer.Typer(help="Declare and read pipelines.", no_args_is_help=True)
update_app = typer.Typer(help="Start, follow and decide updates.", no_args_is_help=True)
app.add_typer(serve_app, name="serve")
app.add_typer(pipeline_app, name="pipeline")
app.add_typer(update_app, name="update")

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="HOLDFAST_URL", help="The API; default: the one of the settings."),
]
Lifeline = Annotated[int | None, typer.Option(hidden=True)]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why; it goes to the ledger.")]
By = Annotated[str, typer.Option("--by", envvar="USER", help="Who decides.")]


def main() -> None:
    """Run the command; a failure that we name is one sentence and exit status 1."""
    try:
        app()
    except HoldfastError as error:
        typer.echo(f"holdfast: {error.detail} {error.fix}", err=True)
        sys.exit(1)
    except ValidationError as error:
        from service.pipelines import describe

        first = describe(error)[0]
        typer.echo(f"holdfast: setting {first['where']}: {first['problem']}.", err=True)
        sys.exit(2)


@app.command()
def up() -> None:
    """Start everything on this machine, and stop it again on Ctrl-C."""
    from service import up as supervisor
    from service.logs import configure

    settings = Settings()
    configure(settings)
    supervisor.run(settings, announce=typer.echo)


@app.command()
def demo(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
    home: Annotated[Path | None, typer.Option(help="Folder of the demo; default: a fresh one.")] = None,
) -> None:
    """See the whole loop in two minutes: forgetting caught, bad data stopped, a decision, a rollback."""
    from service.demo import run

    run(home=home, json_output=json_output)


@serve_app.command("api")
def serve_api(lifeline: Lifeline = None) -> None:
    """Serve the HTTP API."""
    import uvicorn

    from service.api.app import create_app

    settings, stop = _start_role(lifeline)
    config = uvicorn.Config(
        create_app(settings), host=settings.host, port=settings.port, log_config=None, access_log=False
    )
    server = uvicorn.Server(config)

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, name="stop", daemon=True).start()
    server.run()


@serve_app.command("ingest")
def serve_ingest(lifeline: Lifeline = None) -> None:
    """Cut streams into experiences."""
    from service.ingester import serve

    settings, stop = _start_role(lifeline)
    _stop_on_signals(stop)
    serve(settings, stop)


@serve_app.command("dispatch")
def serve_dispatch(lifeline: Lifeline = None) -> None:
    """Run updates on Ray trainers."""
    from service.dispatcher import serve

    settings, stop = _start_role(lifeline)
    _stop_on_signals(stop)
    serve(settings, stop)


@serve_app.command("mlflow")
def serve_mlflow(lifeline: Lifeline = None) -> None:
    """Serve MLflow's pages on the embedded store."""
    from service.pages import serve

    settings, stop = _start_role(lifeline)
    _stop_on_signals(stop)
    serve(settings, stop)


@app.command()
def migrate() -> None:
    """Bring the database to this release."""
    from service import database

    settings = Settings()
    settings.root.mkdir(parents=True, exist_ok=True)
    database.migrate(database.connect(settings.database))
    typer.echo("The database is at this release.")


@pipeline_app.command("create")
def pipeline_create(file: Annotated[Path, typer.Argument(help="YAML file.")], url: Url = None) -> None:
    """Declare a pipeline from a YAML file."""
    from service.pipelines import parse

    spec = parse(_read(file))
    with _client(url) as client:
        client.post("/v1/pipelines", spec.model_dump(mode="json", by_alias=True))
    typer.echo(f"Pipeline {spec.name} is declared. Send records with `holdfast push {spec.name} FILE`.")


@pipeline_app.command("list")
def pipeline_list(url: Url = None) -> None:
    """List pipelines and how each stands."""
    with _client(url) as client:
        for view in client.get("/v1/pipelines"):
            champion = f"champion v{view['champion_version']}" if view["champion_version"] else "no champion"
            typer.echo(f"{view['spec']['name']}: {champion}, {view['experiences']} experiences")


@pipeline_app.command("show")
def pipeline_show(pipeline: str, url: Url = None) -> None:
    """One pipeline, as JSON."""
    with _client(url) as client:
        _print(client.get(f"/v1/pipelines/{pipeline}"))


@app.command()
def push(
    pipeline: str,
    file: Annotated[Path, typer.Argument(help="NDJSON file: one record a line.")],
    batch: Annotated[int, typer.Option(min=1, help="Records a request.")] = 1000,
    url: Url = None,
) -> None:
    """Send the records of a file."""
    lines = [line for line in _read(file).encode().splitlines() if line.strip()]
    with _client(url) as client:
        for start in range(0, len(lines), batch):
            client.push(pipeline, lines[start : start + batch])
            _note(f"{min(start + batch, len(lines))} of {len(lines)} records sent")
    typer.echo(f"{len(lines)} records are stored and will be learnt once.")


@update_app.command("start")
def update_start(
    pipeline: str,
    key: Annotated[str | None, typer.Option(help="Idempotency-Key: makes a retry safe.")] = None,
    experience: Annotated[
        list[int] | None, typer.Option(help="Learn this waiting, carried or parked experience again.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the decision.")] = True,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Learn now what has arrived."""
    with _client(url) as client:
        body = {"by": by, "experiences": experience or None}
        update = client.post(f"/v1/pipelines/{pipeline}/updates", body, key=key)["update"]
        if not wait:
            typer.echo(update)
            return
        last: Any = None
        for last in client.follow(update):
            _note(f"{update}: {last['state']} {(last['progress'] or {}).get('stage', '')}")
        typer.echo(f"{update}: {last['outcome'] or last['state']}. {last['reason'] or last['error'] or ''}")


@update_app.command("show")
def update_show(update: str, url: Url = None) -> None:
    """One update, as JSON."""
    with _client(url) as client:
        _print(client.get(f"/v1/updates/{update}"))


@update_app.command("approve")
def update_approve(update: str, reason: Reason, by: By = "anonymous", url: Url = None) -> None:
    """Promote an update that awaits a decision."""
    _decide(update, "approve", reason=reason, by=by, url=url)


@update_app.command("reject")
def update_reject(update: str, reason: Reason, by: By = "anonymous", url: Url = None) -> None:
    """Turn an update down that awaits a decision."""
    _decide(update, "reject", reason=reason, by=by, url=url)


@app.command()
def champion(pipeline: str, url: Url = None) -> None:
    """The version in use, as JSON."""
    with _client(url) as client:
        _print(client.get(f"/v1/pipelines/{pipeline}/champion"))


@app.command()
def rollback(
    pipeline: str,
    reason: Reason,
    version: Annotated[int | None, typer.Option(min=1, help="Default: the one before this.")] = None,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Bring a former champion back."""
    with _client(url) as client:
        body = {"version": version, "reason": reason, "by": by}
        view = client.post(f"/v1/pipelines/{pipeline}/rollback", body)
    typer.echo(f"Version {view['version']} is the champion of {pipeline} again.")


@app.command()
def ledger(pipeline: str, url: Url = None) -> None:
    """Every decision, in order."""
    with _client(url) as client:
        view = client.get(f"/v1/pipelines/{pipeline}/ledger")
    for entry in view["entries"]:
        version = f"v{entry['version']}" if entry["version"] else "no version"
        typer.echo(
            f"{entry['sequence']:>4}  {entry['at'][:19]}  {entry['action']:<8}  {version:<10}  "
            f"{entry['actor']}: {entry['reason']}"
        )
    typer.echo("The chain of hashes holds." if view["intact"] else "THE CHAIN OF HASHES IS BROKEN.")
    if not view["intact"]:
        raise typer.Exit(1)


def _decide(update: str, decision: str, *, reason: str, by: str, url: str | None) -> None:
    with _client(url) as client:
        body = {"decision": decision, "reason": reason, "by": by}
        view = client.post(f"/v1/updates/{update}/decision", body)
    typer.echo(
        f"{update}: {decision}d by {view['decision']['by']}."
        if decision == "approve"
        else f"{update}: rejected by {view['decision']['by']}."
    )


def _client(url: str | None) -> "Client":
    from service.client import Client

    if url is None:
        settings = Settings()
        url = f"http://{settings.host}:{settings.port}"
    return Client(url)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {error}.", fix="Name a readable UTF-8 file.") from error


def _print(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def _note(text: str) -> None:
    """Progress for a person at a terminal; silent where nobody watches."""
    if sys.stderr.isatty():
        typer.echo(f"\r\033[K{text}", nl=False, err=True)


def _start_role(lifeline: int | None) -> tuple[Settings, threading.Event]:
    from service.logs import configure
    from service.up import follow_lifeline

    settings = Settings()
    configure(settings)
    settings.root.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    if lifeline is not None:
        follow_lifeline(lifeline, stop)
    return settings, stop


def _stop_on_signals(stop: threading.Event) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


if __name__ == "__main__":
    main()
