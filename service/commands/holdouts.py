"""Commands on past holdouts, and the command that lifts a freeze."""

from typing import Annotated

import typer

from service.commands.pipelines import By, Json, Reason, Url, open_client, path_of, print_json
from service.gate.sentences import with_unit

holdout_app = typer.Typer(
    help="List past holdouts; retire or pin one, or set its margin.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Experience = Annotated[int, typer.Argument(min=0, help="Index of the experience.")]


@holdout_app.command("list")
def holdout_list(pipeline: str, json_output: Json = False, url: Url = None) -> None:
    """List the past holdouts of a pipeline, with the looks left for each."""
    with open_client(url) as client:
        view = client.get(path_of(pipeline, "holdouts"))
    if json_output:
        return print_json(view)
    for each in view["holdouts"]:
        marks = "".join(f", {mark}" for mark in ("retired", "pinned") if each[mark])
        audits = f"{each['audits']} audits"
        if each["failed_audits"]:
            audits += f" of which {each['failed_audits']} did not pass"
        typer.echo(
            f"experience {each['experience']}: {each['judged_records']} of {each['records']} records judged, "
            f"{each['sealed_records']} sealed, {each['looks_left']} looks left, {audits}, "
            f"margin {with_unit(each['margin'], digits=2)}, anchor v{each['anchor_version']}{marks}"
        )
    if not view["holdouts"]:
        typer.echo("No past holdout yet: nothing was promoted.")
    if view["freeze"]:
        last = view["freeze"]["last_audited"]
        passed = f"; the last that passed is v{last}" if last else "; none has passed yet"
        typer.echo(
            f"Promotion is frozen: the audit of update {view['freeze']['update']} did not pass{passed}."
        )


@holdout_app.command("retire")
def holdout_retire(
    pipeline: str, experience: Experience, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Stop judging updates on a holdout whose labels are no longer true, or that is exhausted."""
    _mark(pipeline, experience, "retire", reason=reason, by=by, url=url)
    typer.echo(f"The holdout of experience {experience} is retired.")


@holdout_app.command("restore")
def holdout_restore(
    pipeline: str, experience: Experience, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Judge updates on a retired holdout again."""
    _mark(pipeline, experience, "restore", reason=reason, by=by, url=url)
    typer.echo(f"The holdout of experience {experience} is evidence again.")


@holdout_app.command("pin")
def holdout_pin(
    pipeline: str, experience: Experience, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Always judge a holdout whole, however many come after it."""
    _mark(pipeline, experience, "pin", reason=reason, by=by, url=url)
    typer.echo(f"The holdout of experience {experience} is pinned.")


@holdout_app.command("unpin")
def holdout_unpin(
    pipeline: str, experience: Experience, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Let a pinned holdout be archived when newer ones arrive."""
    _mark(pipeline, experience, "unpin", reason=reason, by=by, url=url)
    typer.echo(f"The holdout of experience {experience} is no longer pinned.")


@holdout_app.command("margin")
def holdout_margin(
    pipeline: str,
    experience: Experience,
    margin: Annotated[str, typer.Argument(help="A share (0.05 is 5 points), or `default`: the pipeline's.")],
    reason: Reason,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Set the margin of one holdout: what an update may lose on it."""
    try:
        own = None if margin == "default" else float(margin)
    except ValueError:
        own = 0.0
    if own is not None and not 0 < own < 1:
        raise typer.BadParameter("write a share such as 0.05 (5 points), or default", param_hint="MARGIN")
    with open_client(url) as client:
        body = {"reason": reason, "by": by, "margin": own}
        client.post(path_of(pipeline, "holdouts", str(experience), "margin"), body)
    now = "the pipeline's" if own is None else with_unit(own, digits=2)
    typer.echo(f"The margin of the holdout of experience {experience} is {now} from now on.")


def unfreeze(pipeline: str, reason: Reason, by: By = "anonymous", url: Url = None) -> None:
    """Allow promotion again, after an audit that did not pass."""
    with open_client(url) as client:
        client.post(path_of(pipeline, "unfreeze"), {"reason": reason, "by": by})
    typer.echo(f"Promotion of {pipeline} is free again.")


def _mark(pipeline: str, experience: int, marking: str, *, reason: str, by: str, url: str | None) -> None:
    with open_client(url) as client:
        client.post(path_of(pipeline, "holdouts", str(experience), marking), {"reason": reason, "by": by})
