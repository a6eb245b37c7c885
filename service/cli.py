"""The command `holdfast`. Heavy imports wait until the command that needs them runs.

Exit status: 0 done; 1 refused or failed, one line on standard error says why; 2 wrong usage or settings.
`update reproduce` has two more: 3 something differs; 4 another gate version judged.
"""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

import holdfast_cl
from service.commands import gate, holdouts, pipelines, reproduction, streams
from service.commands.pipelines import Json, note, print_json, read_settings
from service.errors import HoldfastError, SettingsError
from service.settings import Settings

app = typer.Typer(
    name="holdfast",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
serve_app = typer.Typer(
    help="Run one role of the service, as production does.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(serve_app, name="serve")
app.add_typer(pipelines.pipeline_app, name="pipeline")
app.add_typer(pipelines.update_app, name="update")
app.add_typer(streams.stream_app, name="stream")
app.add_typer(holdouts.holdout_app, name="holdout")
app.add_typer(gate.gate_app, name="gate")
for command in (
    streams.push,
    pipelines.champion,
    pipelines.rollback,
    holdouts.unfreeze,
    pipelines.ledger,
):
    app.command()(command)

Lifeline = Annotated[int | None, typer.Option(hidden=True)]


def main() -> None:
    """Run the command; print a named failure as one line on standard error."""
    try:
        app()
    except HoldfastError as error:
        typer.echo(f"holdfast: {error.detail} {error.fix}".replace("\n", " "), err=True)
        sys.exit(2 if isinstance(error, SettingsError) else 1)


def _tell_version(asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        typer.echo(f"holdfast {version(holdfast_cl.DISTRIBUTION)}")
    except PackageNotFoundError as error:
        raise HoldfastError(
            "Holdfast runs from a folder and is not installed, so its version is not known.",
            fix="Install it with make install, or as an ordinary wheel.",
        ) from error
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Continual-learning training service with forgetting guards."""


@app.command()
def up() -> None:
    """Start every role on this machine; Ctrl-C stops them."""
    from service.commands import up as supervisor
    from service.logs import configure

    _refuse_other_packages(current_folder=True)
    settings = read_settings()
    configure(settings)
    supervisor.run(settings, prepare=lambda: _migrate(settings), announce=typer.echo)


@app.command()
def demo(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
    home: Annotated[Path | None, typer.Option(help="Folder of the demo; default: a fresh one.")] = None,
    small: Annotated[
        bool,
        typer.Option(
            "--small", help="Instead: 40 experiences of 200 records, and how often the gate asks. Minutes."
        ),
    ] = False,
) -> None:
    """Show the whole loop in two minutes: forgetting caught, bad data stopped, a decision, a rollback."""
    _refuse_other_packages(current_folder=True)
    from service.commands import demo as whole_loop
    from service.commands import demo_small

    (demo_small if small else whole_loop).run(home=home, json_output=json_output)


@pipelines.update_app.command("reproduce")
def update_reproduce(update: str, json_output: Json = False) -> None:
    """Make an update's challenger and verdict again from stored bytes, and compare them.

    Runs where the checkpoints are, calls no API and changes nothing. Exit status: 0 both are the same; 3
    something differs; 4 the challenger is the same, but another gate version judged; 1 it cannot be done.
    """
    from service.logs import configure
    from service.updates.reproduction import run

    settings = read_settings()
    configure(settings)
    done = run(settings, update, lambda progress: note(str(progress.get("stage", ""))))
    note("")
    if json_output:
        print_json(done.as_dict())
    else:
        for line in reproduction.lines(done.as_dict()):
            typer.echo(line)
    if status := reproduction.STATUS[done.outcome]:
        raise typer.Exit(status)


@serve_app.command("api")
def serve_api(lifeline: Lifeline = None) -> None:
    """Serve the HTTP API."""
    from service.api.server import make_server

    settings, stop = _start_role(lifeline, needs="unmigrated")
    server = make_server(settings)

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, name="stop", daemon=True).start()
    server.run()


@serve_app.command("ingest")
def serve_ingest(lifeline: Lifeline = None) -> None:
    """Read streams, cut them into experiences and queue updates."""
    settings, stop = _start_role(lifeline)
    from service.ingest.ingester import serve

    _stop_on_signals(stop)
    serve(settings, stop)


@serve_app.command("dispatch")
def serve_dispatch(lifeline: Lifeline = None) -> None:
    """Run updates on Ray trainers."""
    _refuse_other_packages(current_folder=True)
    settings, stop = _start_role(lifeline)
    # After the look at the database: these imports take seconds.
    from service.updates.dispatcher import serve

    _stop_on_signals(stop)
    serve(settings, stop)


@serve_app.command("mlflow")
def serve_mlflow(lifeline: Lifeline = None) -> None:
    """Serve MLflow's pages on the embedded store."""
    from service.commands.mlflow_pages import serve

    settings, stop = _start_role(lifeline, needs="none")
    _stop_on_signals(stop)
    serve(settings, stop)


@app.command()
def migrate() -> None:
    """Migrate the database to this release."""
    from service.logs import configure

    settings = read_settings()
    configure(settings)
    _migrate(settings)
    typer.echo("The database is at this release.")


def _migrate(settings: Settings) -> None:
    from service.home import take_home
    from service.state import database

    take_home(settings)
    engine = database.connect(settings.database)
    try:
        with database.answering(engine):
            database.migrate(engine)
    finally:
        engine.dispose()


def _start_role(
    lifeline: int | None, *, needs: Literal["migrated", "unmigrated", "none"] = "migrated"
) -> tuple[Settings, threading.Event]:
    """Settings and stop event of a role; first looks whether it can use the database that it needs."""
    from service.commands.up import follow_lifeline
    from service.home import take_home
    from service.logs import configure
    from service.state.database import require

    # `holdfast up` looked already, once for all its roles.
    alone = lifeline is None
    if alone:
        _refuse_other_packages()
    settings = read_settings()
    configure(settings)
    take_home(settings)
    if alone and needs != "none":
        require(settings.database, migrated=needs == "migrated")
    stop = threading.Event()
    if lifeline is not None:
        follow_lifeline(lifeline, stop)
    return settings, stop


def _refuse_other_packages(*, current_folder: bool = False) -> None:
    """End the process where `service`, `streams` or `strategies` is, or is mixed with, another's package.

    Args:
        current_folder: look there too. Ray puts the folder that dispatch was started in before all others
            on its workers' path.
    """
    refusal = holdfast_cl.shadowed() or holdfast_cl.overwritten()
    if refusal is None and current_folder:
        refusal = holdfast_cl.shadowed(Path.cwd())
    if refusal is not None:
        typer.echo(f"holdfast: {refusal}", err=True)
        raise typer.Exit(1)


def _stop_on_signals(stop: threading.Event) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


if __name__ == "__main__":
    main()
