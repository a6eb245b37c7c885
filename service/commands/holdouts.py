"""Commands on past holdouts, and the command that lifts a freeze."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from service.commands.pipelines import By, Json, Reason, Url, open_client, path_of, print_json
from service.gate.sentences import held_to, percent_of, with_unit

holdout_app = typer.Typer(
    help="List holdouts; add a golden set; correct, retire, pin or keep a holdout, or set its margin.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Experience = Annotated[int, typer.Argument(min=0, help="Index of the experience.")]
Holdout = Annotated[str, typer.Argument(help="Index of the experience, or name of the golden set.")]

MEDIA_TYPES = {
    ".ndjson": "application/x-ndjson",
    ".jsonl": "application/x-ndjson",
    ".json": "application/json",
    ".msgpack": "application/msgpack",
    ".arrow": "application/vnd.apache.arrow.stream",
    ".arrows": "application/vnd.apache.arrow.stream",
}
"""Endings of files that records are sent from, each with its media type."""
RecordsFile = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help=f"Records: {', '.join(MEDIA_TYPES)}.")
]


@holdout_app.command("list")
def holdout_list(pipeline: str, json_output: Json = False, url: Url = None) -> None:
    """List the past holdouts of a pipeline, with the looks left for each, and its golden sets."""
    with open_client(url) as client:
        view = client.get(path_of(pipeline, "holdouts"))
    if json_output:
        return print_json(view)
    for each in view["holdouts"]:
        marks = "".join(f", {mark}" for mark in ("retired", "pinned", "kept") if each[mark])
        if each["traffic"] is not None:
            marks = f", {percent_of(each['traffic'])} of the traffic{marks}"
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
    for each in view["golden"]:
        typer.echo(_golden_line(each))
    if view["freeze"]:
        last = view["freeze"]["last_audited"]
        passed = f"; the last that passed is v{last}" if last else "; none has passed yet"
        typer.echo(
            f"Promotion is frozen: the audit of update {view['freeze']['update']} did not pass{passed}."
        )


@holdout_app.command("add")
def holdout_add(
    pipeline: str,
    file: RecordsFile,
    name: Annotated[str, typer.Option("--name", help="Name of the golden set: a-z, 0-9 and -.")],
    reason: Reason,
    margin: Annotated[
        float | None, typer.Option("--margin", help="An update may lose less than this share on it.")
    ] = None,
    none_lost: Annotated[
        bool, typer.Option("--none-lost", help="Instead of a margin: no right answer may be lost.")
    ] = False,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Add a golden set: records that are never trained on, and that every update is compared on."""
    if (margin is None) != none_lost:
        raise typer.BadParameter("give either --margin or --none-lost")
    asked = {"name": name, "reason": reason, "by": by}
    asked |= {"none_lost": "true"} if margin is None else {"margin": str(margin)}
    added = _send(pipeline, ("holdouts",), asked, file, url)
    golden = added["golden"]
    held = held_to(margin)
    typer.echo(f"Golden set {name} has {golden['records']} records, {held}; they are never trained on.")
    _say_what_it_takes(added)


@holdout_app.command("relabel")
def holdout_relabel(
    pipeline: str,
    experience: Experience,
    file: RecordsFile,
    reason: Reason,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Correct labels of a past holdout: FILE gives ids and labels; a golden set replaces it."""
    path = ("holdouts", str(experience), "relabel")
    added = _send(pipeline, path, {"reason": reason, "by": by}, file, url)
    golden, before = added["golden"], added["replaces"]
    retired, them = (f" and golden set {before} are", "them") if before else (" is", "it")
    typer.echo(
        f"The holdout of experience {experience}{retired} retired; golden set {golden['name']} of "
        f"{golden['records']} records replaces {them}, {held_to(golden['margin'])}."
    )
    _say_what_it_takes(added)


@holdout_app.command("retire")
def holdout_retire(
    pipeline: str, experience: Holdout, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Stop judging updates on a holdout whose labels are no longer true, or that is exhausted."""
    _mark(pipeline, experience, "retire", reason=reason, by=by, url=url)
    typer.echo(f"{_named(experience)} is retired.")


@holdout_app.command("restore")
def holdout_restore(
    pipeline: str, experience: Holdout, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Judge updates on a retired holdout again."""
    _mark(pipeline, experience, "restore", reason=reason, by=by, url=url)
    typer.echo(f"{_named(experience)} is evidence again.")


@holdout_app.command("pin")
def holdout_pin(
    pipeline: str, experience: Experience, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Always judge a holdout whole, however many come after it."""
    _mark(pipeline, str(experience), "pin", reason=reason, by=by, url=url)
    typer.echo(f"The holdout of experience {experience} is pinned.")


@holdout_app.command("unpin")
def holdout_unpin(
    pipeline: str, experience: Experience, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Let a pinned holdout be archived when newer ones arrive."""
    _mark(pipeline, str(experience), "unpin", reason=reason, by=by, url=url)
    typer.echo(f"The holdout of experience {experience} is no longer pinned.")


@holdout_app.command("keep")
def holdout_keep(
    pipeline: str, experience: Experience, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Say that a holdout's labels are still true, so that its rejections are no question."""
    _mark(pipeline, str(experience), "keep", reason=reason, by=by, url=url)
    typer.echo(f"The holdout of experience {experience} is kept: its rejections stand, until it moves again.")


@holdout_app.command("unkeep")
def holdout_unkeep(
    pipeline: str, experience: Experience, reason: Reason, by: By = "anonymous", url: Url = None
) -> None:
    """Be asked about a holdout again that was kept."""
    _mark(pipeline, str(experience), "unkeep", reason=reason, by=by, url=url)
    typer.echo(f"The holdout of experience {experience} is no longer kept.")


@holdout_app.command("margin")
def holdout_margin(
    pipeline: str,
    experience: Holdout,
    margin: Annotated[
        str,
        typer.Argument(
            help="A share (0.05 is 5 points); `default`: the pipeline's; of a golden set, `none-lost`."
        ),
    ],
    reason: Reason,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Set the margin of one holdout: what an update may lose on it."""
    golden = not experience.isdecimal()
    unset = "none-lost" if golden else "default"
    try:
        own = None if margin == unset else float(margin)
    except ValueError:
        own = 0.0
    if own is not None and not 0 < own < 1:
        raise typer.BadParameter(f"write a share such as 0.05 (5 points), or {unset}", param_hint="MARGIN")
    with open_client(url) as client:
        body = {"reason": reason, "by": by, "margin": own}
        client.post(path_of(pipeline, "holdouts", *_segments(experience), "margin"), body)
    if own is None and golden:
        typer.echo(f"{_named(experience)} may lose no right answer from now on.")
        return
    now = "the pipeline's" if own is None else with_unit(own, digits=2)
    of = _named(experience)
    typer.echo(f"The margin of {of[0].lower()}{of[1:]} is {now} from now on.")


@holdout_app.command("traffic")
def holdout_traffic(
    pipeline: str,
    experience: Experience,
    share: Annotated[str, typer.Argument(help="A share (0.01 is 1 %) from 0 to 1, or `unknown`.")],
    reason: Reason,
    by: By = "anonymous",
    url: Url = None,
) -> None:
    """Say which share of today's traffic the records of one holdout stand for."""
    try:
        traffic = None if share == "unknown" else float(share)
    except ValueError:
        traffic = -1.0
    if traffic is not None and not 0 <= traffic <= 1:
        raise typer.BadParameter("write a share such as 0.01 (1 %), or unknown", param_hint="SHARE")
    with open_client(url) as client:
        body = {"reason": reason, "by": by, "traffic": traffic}
        client.post(path_of(pipeline, "holdouts", str(experience), "traffic"), body)
    now = "an unknown share" if traffic is None else percent_of(traffic)
    typer.echo(f"The holdout of experience {experience} stands for {now} of the traffic from now on.")


def unfreeze(pipeline: str, reason: Reason, by: By = "anonymous", url: Url = None) -> None:
    """Allow promotion again, after an audit that did not pass."""
    with open_client(url) as client:
        client.post(path_of(pipeline, "unfreeze"), {"reason": reason, "by": by})
    typer.echo(f"Promotion of {pipeline} is free again.")


def _mark(pipeline: str, holdout: str, marking: str, *, reason: str, by: str, url: str | None) -> None:
    with open_client(url) as client:
        path = path_of(pipeline, "holdouts", *_segments(holdout), marking)
        client.post(path, {"reason": reason, "by": by})


def _segments(holdout: str) -> tuple[str, ...]:
    """The path of a holdout: digits are an experience, anything else names a golden set."""
    return (holdout,) if holdout.isdecimal() else ("golden", quote(holdout, safe=""))


def _named(holdout: str) -> str:
    return f"The holdout of experience {holdout}" if holdout.isdecimal() else f"Golden set {holdout}"


def _golden_line(view: Any) -> str:
    held = "none lost" if view["margin"] is None else f"margin {with_unit(view['margin'], digits=2)}"
    since = f"since v{view['since_version']}" if view["since_version"] else "since before the first version"
    anchor = f"anchor v{view['anchor_version']}" if view["anchor_version"] else "no anchor yet"
    retired = ", retired" if view["retired"] else ""
    return (
        f"golden set {view['name']}: {view['records']} records, {held}, {since}, {anchor}, "
        f"{view['looks']} looks{retired}"
    )


def _send(pipeline: str, path: tuple[str, ...], asked: dict[str, str], file: Path, url: str | None) -> Any:
    media_type = MEDIA_TYPES.get(file.suffix.lower())
    if media_type is None:
        raise typer.BadParameter(
            f"{file.name} has none of the endings {', '.join(MEDIA_TYPES)}", param_hint="FILE"
        )
    with open_client(url) as client:
        target = f"{path_of(pipeline, *path)}?{urlencode(asked)}"
        return client.send(target, file.read_bytes(), media_type=media_type)


def _say_what_it_takes(added: Any) -> None:
    records, takes = added["golden"]["records"], added["takes"]
    if takes and records < takes["fewest"]:
        typer.echo(
            f"No update can pass with so few: the margin takes at least {takes['fewest']} records, and about "
            f"{takes['likely']} for most updates that lose nothing. Until then a person decides each update."
        )
    elif takes and records < takes["likely"]:
        typer.echo(
            f"It takes about {takes['likely']} records for most updates that lose nothing to pass; with "
            "fewer, a person is asked more often."
        )
    if added["unchecked_experiences"]:
        typer.echo(
            f"Not checked against {added['unchecked_experiences']} experiences whose train parts were "
            "removed: make sure that none of these records was in them."
        )
