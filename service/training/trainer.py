"""A training run: screen the data, learn, answer the holdouts, and leave one complete folder.

The folder is named by the update and appears by one rename, so a second attempt at the same update finds
the first one's work whole, or nothing.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from service.gate.base import Bits, Details, Running
from service.gate.obsolete import near_duplicates
from service.gate.screen import profile
from service.training.answers import Answers, answer, judged, majority_right, records_of
from service.training.checkpoint import digests
from service.training.inspection import Inspector
from service.training.origin import origin_of
from service.training.screening import reference_holdouts, screen
from service.training.served import Rounds, compare_served, export, served_bytes
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
from strategies.base import SEEDS, Learner, LearnReport, Progress, StrategyError, StreamInfo
from strategies.catalog import STRATEGIES
from strategies.network_choice import install
from strategies.processors import SLOW, computes_bfloat16
from streams.base import Experience
from streams.store.experiences import ExperienceStore

log = structlog.get_logger(__name__)


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
    screened = screen(task, parts, Inspector.of(champion, _opened(store, reference_holdouts(task))))
    screened = replace(screened, origin=origin)
    if screened.stopped:
        return screened
    learner = champion or _fresh(task)
    if learner_is_slow(task):
        log.warning(SLOW, update=task.update_id)
    made = _learn(
        task, learner, merge(parts), screened, store=store, scratch=scratch, on_progress=on_progress
    )
    return replace(made, origin=replace(origin, made=digests(scratch)))


def _repeat(task: Task, on_progress: OnProgress) -> Repeated:
    """Learn the same from the same champion with another seed, and answer the same holdouts."""
    store = task.store.open()
    seed = (int(task.strategy.get("seed", 0)) + task.repeat) % SEEDS
    learner = _champion(task) or _fresh(task, seed=seed)
    learner.reseed(seed)

    try:
        learner.learn(merge(_opened(store, task.learn)), _step_progress(on_progress))
    except StrategyError as error:
        # That this seed cannot learn is an answer; the challenger stands on its own evidence.
        return Repeated(seed, failure=str(error), inputs=task.inputs)
    answered = {holdout.index: answer(learner, holdout) for holdout in _Holdouts.of(task, store).all}
    predicted = {index: details.predicted for index, details in _details(answered).items()}
    return Repeated(seed, right=_bits(answered), predicted=predicted, inputs=task.inputs)


def _step_progress(on_progress: OnProgress) -> Progress:
    """A learner's progress callback that reports each step as progress of the run."""

    def note(*, step: int, total_steps: int, loss: float) -> None:
        on_progress({"stage": LEARNING, "step": step, "total_steps": total_steps, "loss": loss})

    return note


@dataclass(frozen=True)
class _Holdouts:
    """The gate parts that an update is judged on, in judging order."""

    past: Sequence[Experience]
    new: Sequence[Experience]

    @staticmethod
    def of(task: Task, store: ExperienceStore) -> "_Holdouts":
        past, new = (
            [_judged(store, part) for part in parts] for parts in (task.past_holdouts, task.new_holdouts)
        )
        return _Holdouts(past, new)

    @property
    def all(self) -> list[Experience]:
        return [*self.past, *self.new]


def _judged(store: ExperienceStore, part: Stored) -> Experience:
    return judged(store.open(part.digest, index=part.experience), part.records)


def _opened(store: ExperienceStore, parts: Sequence[Stored]) -> list[Experience]:
    return [store.open(part.digest, index=part.experience) for part in parts]


def learner_is_slow(task: Task) -> bool:
    """Whether the strategy asks for bfloat16 on a processor that only imitates it."""
    from strategies.learning.learner import choose_device

    if task.strategy.get("precision") != "bfloat16" or computes_bfloat16():
        return False
    return choose_device(task.strategy.get("device", "auto")).type == "cpu"


def load_learner(folder: Path) -> Learner:
    """The learner that an update left in its folder."""
    from strategies.learning.state import load_any

    return load_any(folder / LEARNER_FOLDER, STRATEGIES)


def answers_of(folder: Path, parts: Sequence[Stored], task: Task) -> dict[int, Bits]:
    """Answers on stored parts, by experience, of the learner that an update left in `folder`.

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


def _learn(
    task: Task,
    learner: Learner,
    batch: Experience,
    screened: Result,
    *,
    store: ExperienceStore,
    scratch: Path,
    on_progress: OnProgress,
) -> Result:
    """Learn the batch, and answer the holdouts before and after it.

    `learner` is the champion, or a fresh one where there is none; once it has learnt, it is the challenger.
    """
    holdouts = _Holdouts.of(task, store)
    baseline = _baseline(task, learner, batch, holdouts)
    golden = _Golden.before(task, learner, store)
    compares = task.champion is not None and task.gate.needs_champion
    served_champion = learner.served_network() if compares else None
    report = learner.learn(batch, _step_progress(on_progress))
    challenger = learner
    on_progress({"stage": "answering holdouts"})
    answered = {holdout.index: answer(challenger, holdout) for holdout in holdouts.all}
    sealed = {part.experience: answer(challenger, _judged(store, part)).bits for part in task.sealed}
    train_right = answer(challenger, batch).bits
    challenger.save(scratch / LEARNER_FOLDER)
    export(challenger, task.stream, scratch / SERVED_FILE)
    golden_right, golden_anchors = golden.after(task, challenger, store)
    on_progress({"stage": "comparing with the champion"})
    disturbed, rounds = compare_served(task, served_champion, challenger, holdouts.all)
    return replace(
        screened,
        report=report,
        challenger=_bits(answered),
        baseline=_bits(baseline),
        sealed=sealed,
        golden=golden_right,
        golden_baseline=golden.baseline,
        golden_anchors=golden_anchors,
        near_duplicates={
            each.index: near_duplicates(each.inputs, each.labels, batch.inputs, batch.labels)
            for each in holdouts.past
        },
        train_accuracy=float(train_right.mean()),
        challenger_details=_details(answered),
        baseline_details=_details(baseline),
        records={each.index: records_of(each) for each in holdouts.all} if task.gate.needs_records else {},
        disturbed=disturbed,
        running=_running(task, report, train_right, rounds=rounds, scratch=scratch),
    )


def _baseline(task: Task, learner: Learner, batch: Experience, holdouts: _Holdouts) -> dict[int, Answers]:
    """Answers of the champion, before it learns; of the majority class of the batch, where there is none."""
    unanswered = [
        *holdouts.new,
        *(holdout for holdout in holdouts.past if holdout.index in task.missing_baselines),
    ]
    if task.champion is None:
        return {holdout.index: Answers(majority_right(batch, holdout)) for holdout in unanswered}
    return {holdout.index: answer(learner, holdout) for holdout in unanswered}


@dataclass(frozen=True)
class _Golden:
    """The golden sets that an update is judged on, and the champion's answers that were not stored."""

    sets: Sequence[Experience]
    baseline: dict[int, Bits]

    @staticmethod
    def before(task: Task, champion: Learner, store: ExperienceStore) -> "_Golden":
        """Opened and answered before the champion learns; a fresh learner answers nothing."""
        sets = _opened(store, task.golden)
        missing = task.missing_golden if task.champion else ()
        return _Golden(
            sets, {each.index: answer(champion, each).bits for each in sets if each.index in missing}
        )

    def after(
        self, task: Task, challenger: Learner, store: ExperienceStore
    ) -> tuple[dict[int, Bits], dict[int, Bits]]:
        """The answers of the challenger, and those of anchors that were not stored."""
        return {each.index: answer(challenger, each).bits for each in self.sets}, _golden_anchors(task, store)


def _golden_anchors(task: Task, store: ExperienceStore) -> dict[int, Bits]:
    """Answers of anchors on golden sets; without those whose checkpoint cannot be read any more."""
    found: dict[int, Bits] = {}
    for each in task.golden_anchors:
        try:
            anchor = load_learner(each.folder)
        except StrategyError:
            # Without its answers the gate asks a person.
            continue
        anchor.widen(task.stream.classes)
        found |= {golden.index: answer(anchor, golden).bits for golden in _opened(store, each.sets)}
    return found


def _running(task: Task, report: LearnReport, train_right: Bits, *, rounds: Rounds, scratch: Path) -> Running:
    """Costs of training the challenger and of running it."""
    champion_rounds, challenger_rounds = rounds
    return Running(
        champion_rounds=champion_rounds,
        challenger_rounds=challenger_rounds,
        train_right=int(train_right.sum()),
        train_records=len(train_right),
        seconds=report.seconds,
        champion_bytes=served_bytes(task.champion),
        challenger_bytes=served_bytes(scratch),
    )


def _bits(answered: Mapping[int, Answers]) -> dict[int, Bits]:
    return {index: each.bits for index, each in answered.items()}


def _details(answered: Mapping[int, Answers]) -> dict[int, Details]:
    return {index: each.details for index, each in answered.items() if each.details is not None}


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
        export(learner, stream, Path(folder) / SERVED_FILE)
