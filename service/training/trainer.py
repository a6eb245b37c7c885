"""What runs inside a trainer: screen the data, learn, answer the holdouts, leave one complete folder behind.

The folder is named by the update and appears by one rename, so a second attempt at the same update finds
the first one's work whole, or nothing.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.gate.base import (
    Answer,
    Bits,
    DataEvidence,
    Details,
    Disturbed,
    GateConfig,
    Running,
)
from service.gate.guards import batch as batch_guards
from service.gate.obsolete import twins
from service.gate.screen import data_evidence, profile
from service.training.answers import Answers, answer, records_of
from service.training.checkpoint import digests
from service.training.inspection import Inspector, broken_records, pictures
from service.training.origin import origin_of
from service.training.tasks import (
    LEARNER_FOLDER,
    LEARNING,
    RESULT_FILE,
    SERVED_FILE,
    OnProgress,
    Repeated,
    Result,
    Stored,
    Task,
    is_done,
    publish,
    write_result,
)
from strategies.base import SEEDS, Learner, Progress, StrategyError, StreamInfo
from strategies.catalog import STRATEGIES
from strategies.network_choice import install
from streams.base import Experience
from streams.store.experiences import ExperienceStore

FAILED = 2
BADNESS: Mapping[Answer, int] = {"pass": 0, "undecided": 1, "fail": FAILED}

NEWEST_HOLDOUTS, OLDER_HOLDOUTS = 5, 5
"""Past holdouts that new data is compared with, at most."""


def run(task: Task, on_progress: OnProgress) -> None:
    """Do the task and leave the result in `task.folder`.

    Raises:
        StreamError: a stored experience is missing or damaged.
        StrategyError: the learner cannot learn this, or diverged.
    """
    if is_done(task.folder):
        return
    for leftover in task.folder.parent.glob(f"{task.folder.name}.*.tmp"):
        # Of a trainer that was killed. One that is only slow has lost its lease, and may fail.
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = task.folder.with_name(f"{task.folder.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
    scratch.mkdir(parents=True)
    try:
        made = _repeat(task, on_progress) if task.repeat else _make(task, scratch, on_progress)
        write_result(made, scratch / RESULT_FILE)
        publish(scratch, task.folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make(task: Task, scratch: Path, on_progress: OnProgress) -> Result:
    """The challenger, with its files in `scratch`; or what stopped the batch."""
    store = task.store.open()
    parts = _opened(store, task.learn)
    on_progress({"stage": "screening"})
    champion = _champion(task)
    origin = origin_of(task)
    screened = _screen(task, parts, Inspector.of(champion, _opened(store, _told(task))))
    screened = replace(screened, origin=origin)
    if screened.stopped:
        return screened
    made = _learn(task, parts, screened, champion, store=store, scratch=scratch, on_progress=on_progress)
    return replace(made, origin=replace(origin, made=digests(scratch)))


def _repeat(task: Task, on_progress: OnProgress) -> Repeated:
    """Learn the same from the same champion with another seed, and answer the same holdouts."""
    store = task.store.open()
    seed = (int(task.strategy.get("seed", 0)) + task.repeat) % SEEDS
    learner = _champion(task) or _fresh(task, seed=seed)
    learner.reseed(seed)

    try:
        learner.learn(merge(_opened(store, task.learn)), _of_steps(on_progress))
    except StrategyError as error:
        # That this seed cannot learn is an answer; the challenger stands on its own evidence.
        return Repeated(seed, failure=str(error))
    holdouts = [_judged(store, part) for part in (*task.past_holdouts, *task.new_holdouts)]
    said = {holdout.index: answer(learner, holdout) for holdout in holdouts}
    predicted = {index: details.predicted for index, details in _details(said).items()}
    return Repeated(seed, right=_bits(said), predicted=predicted)


def _of_steps(on_progress: OnProgress) -> Progress:
    """What a learner tells of its steps, told on."""

    def note(*, step: int, total_steps: int, loss: float) -> None:
        on_progress({"stage": LEARNING, "step": step, "total_steps": total_steps, "loss": loss})

    return note


def _opened(store: ExperienceStore, parts: Sequence[Stored]) -> list[Experience]:
    return [store.open(part.digest, index=part.experience) for part in parts]


def load_learner(folder: Path) -> Learner:
    """The learner that an update left in its folder."""
    from strategies.learning.state import load_any

    return load_any(folder / LEARNER_FOLDER)


def answers_of(folder: Path, parts: Sequence[Stored], task: Task) -> dict[int, Bits]:
    """What the learner that an update left in `folder` answers on stored parts, by experience.

    Raises:
        StateError: its checkpoint is missing or damaged.
        ExperienceDamagedError: a part is.
    """
    install(task.installation)
    learner, store = load_learner(folder), task.store.open()
    learner.widen(task.stream.classes)
    return {part.experience: answer(learner, _judged(store, part)).bits for part in parts}


def _champion(task: Task) -> Learner | None:
    """The champion, ready to answer for every class of the stream."""
    if task.champion is None:
        return None
    install(task.installation)
    champion = load_learner(task.champion)
    champion.widen(task.stream.classes)
    return champion


def _fresh(task: Task, **changes: Any) -> Learner:
    """A learner of the pipeline's strategy that has learnt nothing yet."""
    install(task.installation)
    spec = STRATEGIES[task.strategy["name"]]
    return spec.build(spec.config.model_validate({**task.strategy, **changes}), task.stream)


def _told(task: Task) -> list[Stored]:
    """Past holdouts that new data is compared with, the newest first: the newest, and some spread before."""
    newest_first = sorted(task.past_holdouts, key=lambda part: part.experience, reverse=True)
    newest, older = newest_first[:NEWEST_HOLDOUTS], newest_first[NEWEST_HOLDOUTS:]
    spread = np.linspace(0, len(older) - 1, min(len(older), OLDER_HOLDOUTS)).astype(int)
    return [*newest, *(older[place] for place in spread)]


def _screen(task: Task, parts: Sequence[Experience], past: Inspector | None) -> Result:
    """Look at each experience by itself; the worst is the evidence, and of equals the newest.

    Whether they are shifted is asked of all together, and may make the screen stricter.
    """
    evidence = [
        data_evidence(
            part.inputs,
            part.labels,
            n_classes=len(task.stream.classes),
            shape=task.stream.shape,
            reference=task.references,
        )
        for part in parts
    ]
    evidence = [
        replace(data, worst=broken_records(part)) if data.nonfinite_records else data
        for data, part in zip(evidence, parts, strict=True)
    ]
    readable = all(data.misshapen is None and not data.nonfinite_records for data in evidence)
    if past and readable:
        evidence = [
            replace(data, suspects=past.suspects(part)) for data, part in zip(evidence, parts, strict=True)
        ]
    shift = past.shift(parts, alpha=task.gate.shift_alpha) if past and readable else None
    worst = [_worst(data, task.gate.routed(shift)) for data in evidence]
    stopped = [position for position, badness in enumerate(worst) if badness == FAILED]
    _, place, data = max(zip(worst, range(len(parts)), evidence, strict=True), key=lambda each: each[:2])
    return Result(
        data=data,
        stopped=tuple(parts[position].index for position in stopped),
        screens={part.index: profile(part.inputs, part.labels) for part in parts},
        shift=shift,
        pictures=pictures(parts[place], data) if stopped else {},
    )


def _worst(data: DataEvidence, config: GateConfig) -> int:
    return max(BADNESS[finding.answer] for finding in batch_guards.data(data, config))


def _learn(
    task: Task,
    parts: Sequence[Experience],
    screened: Result,
    champion: Learner | None,
    *,
    store: ExperienceStore,
    scratch: Path,
    on_progress: OnProgress,
) -> Result:
    learner = champion or _fresh(task)
    experience = merge(parts)
    new = [_judged(store, part) for part in task.new_holdouts]
    past = [_judged(store, part) for part in task.past_holdouts]
    unanswered = [*new, *(holdout for holdout in past if holdout.index in task.missing_baselines)]
    baseline = {
        holdout.index: answer(champion, holdout)
        if champion
        else Answers(_majority_right(experience, holdout))
        for holdout in unanswered
    }

    former = champion.served_network() if champion and task.gate.needs_champion else None

    report = learner.learn(experience, _of_steps(on_progress))
    on_progress({"stage": "answering holdouts"})
    challenger = {holdout.index: answer(learner, holdout) for holdout in [*past, *new]}
    sealed = {part.experience: answer(learner, _judged(store, part)).bits for part in task.sealed}
    train_right = answer(learner, experience).bits
    learner.save(scratch / LEARNER_FOLDER)
    _export(learner, task.stream, scratch / SERVED_FILE)
    on_progress({"stage": "comparing with the champion"})
    disturbed, (champion_rounds, challenger_rounds) = _beside(task, former, learner, past=past, new=new)
    return replace(
        screened,
        report=report,
        challenger=_bits(challenger),
        baseline=_bits(baseline),
        sealed=sealed,
        twins={
            each.index: twins(each.inputs, each.labels, experience.inputs, experience.labels) for each in past
        },
        train_accuracy=float(train_right.mean()),
        challenger_details=_details(challenger),
        baseline_details=_details(baseline),
        records={holdout.index: records_of(holdout) for holdout in [*past, *new]}
        if task.gate.needs_records
        else {},
        disturbed=disturbed,
        running=Running(
            champion_rounds=champion_rounds,
            challenger_rounds=challenger_rounds,
            train_right=int(train_right.sum()),
            train_records=len(train_right),
            seconds=report.seconds,
            champion_bytes=_served_bytes(task.champion),
            challenger_bytes=_served_bytes(scratch),
        ),
    )


def _judged(store: ExperienceStore, part: Stored) -> Experience:
    """A holdout in the order in which its records are judged, cut to those that are."""
    holdout = store.open(part.digest, index=part.experience)
    order = judging_order(holdout.labels, seed=holdout.digest)[: part.records]
    return Experience(
        index=holdout.index,
        inputs=holdout.inputs[order],
        labels=holdout.labels[order],
        record_ids=holdout.record_ids[order],
        groups={name: values[order] for name, values in holdout.groups.items()},
        digest=holdout.digest,
    )


def judging_order(labels: NDArray[np.int64], *, seed: str) -> NDArray[np.int64]:
    """The places (n,) of a holdout's records, so ordered that its first ones are a sample even over classes.

    Always the same for a holdout: answers to fewer of its records are the first of the answers to more.
    """
    random = np.random.default_rng(np.frombuffer(hashlib.sha256(seed.encode()).digest(), dtype=np.uint32))
    shuffled = random.permutation(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        # Each class spreads its records evenly over the whole order.
        rank[members] = (np.arange(len(members)) + random.random()) / len(members)
    return np.argsort(rank, kind="stable")


_Rounds = tuple[tuple[float, ...], tuple[float, ...]]


def _beside(
    task: Task,
    former: Any,
    learner: Learner,
    *,
    past: Sequence[Experience],
    new: Sequence[Experience],
) -> tuple[tuple[Disturbed, ...], _Rounds]:
    """Champion and challenger on disturbed records, and how long each takes; where a guard asks."""
    if former is None:
        return (), ((), ())
    from strategies.learning import robustness, timing
    from strategies.learning.learner import choose_device
    from strategies.learning.networks import ServedNetwork

    gate, seed = task.gate, int(task.strategy.get("seed", 0))
    current = learner.served_network()
    inputs, labels = _sample([*past, *new], limit=gate.robustness_records, seed=seed)
    timed: _Rounds = ((), ())
    if gate.latency_ratio is not None and len(inputs):
        timed = timing.rounds(former, current, inputs[:_TIMED])
    if gate.robustness is None or not len(inputs):
        return (), timed
    if not (isinstance(former, ServedNetwork) and isinstance(current, ServedNetwork)):
        return (), timed
    before, after = (
        robustness.answers_disturbed(
            served,
            inputs,
            labels,
            ways=gate.robustness_against,
            epsilon=gate.robustness_epsilon,
            limits=(0.0, 255.0) if task.stream.dtype == "uint8" else None,
            seed=seed,
            device=choose_device(task.strategy.get("device", "auto")),
        )
        for served in (former, current)
    )
    return tuple(Disturbed(way, before[way], after[way]) for way in after), timed


_TIMED = 64
"""Records of the batch that both are timed on."""


def _sample(holdouts: Sequence[Experience], *, limit: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """At most `limit` records of all holdouts, each with the same chance."""
    ends = np.cumsum([len(holdout) for holdout in holdouts])
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:limit])
    inputs, labels = [], []
    for holdout, end in zip(holdouts, ends, strict=True):
        rows = chosen[(chosen >= end - len(holdout)) & (chosen < end)] - (end - len(holdout))
        inputs.append(holdout.inputs[rows])
        labels.append(holdout.labels[rows])
    return np.concatenate(inputs), np.concatenate(labels)


def _bits(answered: Mapping[int, Answers]) -> dict[int, Bits]:
    return {index: each.bits for index, each in answered.items()}


def _details(answered: Mapping[int, Answers]) -> dict[int, Details]:
    return {index: each.details for index, each in answered.items() if each.details is not None}


def _served_bytes(folder: Path | None) -> int | None:
    """Of the served network in an update's folder; None where there is none."""
    if folder is None or not (folder / SERVED_FILE).exists():
        return None
    return (folder / SERVED_FILE).stat().st_size


def merge(parts: Sequence[Experience]) -> Experience:
    """Consecutive experiences as one, with the index of the last."""
    if len(parts) == 1:
        return parts[0]
    return Experience(
        index=parts[-1].index,
        inputs=np.concatenate([part.inputs for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        record_ids=np.concatenate([part.record_ids for part in parts]),
        groups={name: np.concatenate([part.groups[name] for part in parts]) for name in parts[0].groups},
        digest=hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest(),
    )


def _majority_right(experience: Experience, holdout: Experience) -> Bits:
    majority = np.bincount(experience.labels).argmax()
    right: Bits = holdout.labels == majority
    return right


def _export(learner: Learner, stream: StreamInfo, path: Path) -> None:
    """Write the served network as a pt2 archive with a free batch size."""
    import torch

    # Two rows: the exporter would freeze a batch size of one.
    example = torch.zeros(2, *stream.shape, dtype=torch.float32)
    batch = {0: torch.export.Dim("batch")}
    try:
        program = torch.export.export(learner.served_network().cpu(), (example,), dynamic_shapes=(batch,))
    except Exception as error:  # an installation's own network may do what no graph can hold
        # The exporter's own traceback is thousands of lines that say no more than its first one.
        first = str(error).partition("\n")[0]
        raise StrategyError(
            f"the network cannot be exported to serve any number of records: {first}"
        ) from None
    torch.export.save(program, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def warm_up(stream: StreamInfo) -> None:
    """Pay for imports and first-call compilation before the first update does."""
    import tempfile

    spec = STRATEGIES["replay"]
    learner = spec.build(spec.config.model_validate({"name": "replay", "epochs": 1}), stream)
    rng = np.random.default_rng(0)
    inputs = rng.random((64, *stream.shape), dtype=np.float32)
    labels = rng.integers(0, len(stream.classes), 64)
    ids = np.array([str(row) for row in range(64)])
    learner.learn(Experience(0, inputs, labels, ids, {}, ""))
    profile(inputs, labels)
    with tempfile.TemporaryDirectory() as folder:
        _export(learner, stream, Path(folder) / SERVED_FILE)
