"""Inputs of triggers: the champion's errors on arriving records, and the costs of past updates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import structlog
from numpy.typing import NDArray

from service.errors import InputsUnfitError, ServedDamagedError
from service.exported import load_served
from service.settings import Settings
from service.state import champions, holdouts, inputs, jobs
from service.training.tasks import SERVED_FILE
from streams.base import StreamError
from streams.state.manifest import Manifest
from streams.state.tables import reading
from streams.triggers.catalog import Judge, TriggerContext

ENOUGH_RECORDS = 200
"""Least number of holdout records that an error rate is measured on, newest experiences first."""
PAST_UPDATES = 50
_VALUES = 2**22
_RECORDS = 256
"""Most records in one pass: a deep network holds many values of each."""

log = structlog.get_logger()


class ChampionJudge:
    """One version's answers. Its network is loaded at the first question, on the CPU."""

    def __init__(self, version: int, error_rate: float, served: Path, *, sha256: str | None) -> None:
        self.version = version
        self.error_rate = error_rate
        self._served = served
        self._sha256 = sha256
        self._network: Any = None

    def wrong(self, features: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether the version answers another class than the label. Features are (n, *shape), raw.

        Raises:
            StreamError: its network is not the file that its update exported.
        """
        import torch  # heavy: only pipelines whose trigger asks for the champion pay for it

        if self._network is None:
            self._network = self._load()
        step = max(1, min(_RECORDS, _VALUES // max(1, int(np.prod(features.shape[1:])))))
        answers = [np.zeros(0, dtype=np.int64)]
        with torch.no_grad():
            for start in range(0, len(features), step):
                batch = torch.from_numpy(features[start : start + step].astype(np.float32))
                answers.append(self._network(batch).argmax(dim=1).numpy())
        return np.asarray(np.concatenate(answers) != labels)

    def _load(self) -> Any:
        if self._sha256 is None:
            log.warning("no digest of the champion's network is stored", version=self.version)
        try:
            return load_served(self._served, self._sha256)
        except ServedDamagedError as error:
            raise StreamError(f"the trigger cannot ask the champion: {error}") from error


class PipelineContext:
    """The champion and past costs of one pipeline, read from the database on demand."""

    def __init__(self, engine: sa.Engine, settings: Settings, pipeline: str) -> None:
        self._engine = engine
        self._settings = settings
        self._pipeline = pipeline
        self._judge: ChampionJudge | None = None

    def trigger_context(self) -> TriggerContext:
        """Champion and costs as the trigger takes them."""
        return TriggerContext(judge=self.judge, costs=self.costs)

    def judge(self) -> Judge | None:
        """The present champion; None before the first promotion.

        Raises:
            StreamError: the digest of its network was changed in the database.
        """
        with reading(self._engine) as connection:
            champion = champions.current(connection, self._pipeline)
            if champion is None:
                return None
            if self._judge is not None and self._judge.version == champion.version:
                return self._judge
            version = champions.version(connection, self._pipeline, champion.version)
            bits = holdouts.of_version(connection, self._pipeline, version=champion.version)
            if version is None:
                return None
            try:
                made = inputs.made(connection, version.update_id)
            except InputsUnfitError as error:
                raise StreamError(f"the trigger cannot ask the champion: {error}") from error
        served = self._settings.checkpoints / version.update_id / SERVED_FILE
        self._judge = ChampionJudge(champion.version, _error_rate(bits), served, sha256=made.get(SERVED_FILE))
        return self._judge

    def costs(self) -> Sequence[tuple[int, float]]:
        """Records learnt and seconds taken of the latest updates, oldest first."""
        with reading(self._engine) as connection:
            found = jobs.costs(connection, self._pipeline, limit=PAST_UPDATES)
        rows = {row.index: row.train.rows for row in Manifest(self._engine).experiences(self._pipeline)}
        return [
            (sum(rows[index] for index in experiences), seconds)
            for experiences, seconds in found
            if experiences
        ]


def _error_rate(bits: dict[int, NDArray[np.bool_]]) -> float:
    """Share of wrong answers on the newest holdouts, as many as make `ENOUGH_RECORDS`."""
    chosen: list[NDArray[np.bool_]] = []
    for experience in sorted(bits, reverse=True):
        chosen.append(bits[experience])
        if sum(map(len, chosen)) >= ENOUGH_RECORDS:
            break
    answers = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.bool_)
    return float(1 - answers.mean()) if len(answers) else 0.5
