"""The errors of the service. Each becomes one RFC 9457 problem: what is wrong, and what to do.

HoldfastError
├── PipelineUnknownError, PipelineExistsError
├── PipelineInvalidError
│   ├── PipelineHopelessError    its gate would ask a person about most harmless updates
│   └── PipelineUnreadableError  stored by another release in a form that this one cannot read
├── RecordsInvalidError, BacklogFullError, BatchTooLargeError, IdempotencyKeyReusedError
├── DeadLetterUnknownError, DeadLetterUnfitError
├── StreamConflictError        the stream's status does not allow it
├── UpdateUnknownError, UpdateDuplicateError, NothingToLearnError
├── InputsUnfitError           what an update's verdict was fixed by is damaged, or of another release
├── NotReproducibleError       an update has nothing to reproduce, or what it was made from is gone
├── ServedDamagedError         an exported network is not the file that its update left
├── DecisionConflictError      the update does not await a decision, or its base has moved
├── FreezeConflictError        promotion is not frozen
├── HoldoutUnknownError, HoldoutConflictError
├── GoldenUnfitError           the records cannot be a golden set of this pipeline
├── StoreAwayError             the experience store cannot be read or written
├── CancelConflictError        the update has ended, awaits a decision, or is being recorded
├── ChampionMissingError, VersionUnfitError
├── ChampionMovedError         a compare-and-set of the champion row failed
├── LostLeaseError             another worker owns the update now
├── TrainerDiedError           a trainer process ended in the middle of an update
├── TrainerStoppedError        the dispatcher stops, and its trainers with it
├── DatabaseAwayError          a command's database does not answer
├── DatabaseRevisionError      a command's database is of another release
└── SettingsError              the service cannot start as configured
"""

from collections.abc import Mapping
from typing import ClassVar


class HoldfastError(Exception):
    """Any failure the service names.

    Args:
        detail: what is wrong, one sentence.
        fix: what to do about it, one sentence.
        members: extra members of the problem document.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, fix: str, members: Mapping[str, object] | None = None) -> None:
        super().__init__(f"{detail} {fix}")
        self.detail = detail
        self.fix = fix
        self.members = dict(members or {})


class PipelineUnknownError(HoldfastError):
    status, slug, title = 404, "pipeline-unknown", "No such pipeline"


class PipelineExistsError(HoldfastError):
    status, slug, title = 409, "pipeline-exists", "A pipeline of that name exists"


class PipelineInvalidError(HoldfastError):
    status, slug, title = 422, "pipeline-invalid", "The pipeline cannot work as declared"


class PipelineHopelessError(PipelineInvalidError):
    slug, title = "pipeline-hopeless", "The gate would ask about most harmless updates"


class PipelineUnreadableError(PipelineInvalidError):
    status, slug, title = 500, "pipeline-unreadable", "A stored pipeline does not fit this release"


class RecordsInvalidError(HoldfastError):
    status, slug, title = 422, "records-invalid", "Records do not fit the pipeline's schema"


class BacklogFullError(HoldfastError):
    status, slug, title = 429, "backlog-full", "Too many records wait to be learnt"


class BatchTooLargeError(HoldfastError):
    status, slug, title = 413, "batch-too-large", "Too many records in one request"


class IdempotencyKeyReusedError(HoldfastError):
    status, slug, title = 422, "idempotency-key-reused", "That Idempotency-Key was used with other records"


class DeadLetterUnknownError(HoldfastError):
    status, slug, title = 404, "dead-letter-unknown", "No such dead letter"


class DeadLetterUnfitError(HoldfastError):
    status, slug, title = 422, "dead-letter-unfit", "That dead letter cannot be replayed this way"


class StreamConflictError(HoldfastError):
    status, slug, title = 409, "stream-conflict", "The stream's status does not allow this"


class UpdateUnknownError(HoldfastError):
    status, slug, title = 404, "update-unknown", "No such update"


class UpdateDuplicateError(HoldfastError):
    status, slug, title = 409, "update-duplicate", "That Idempotency-Key was already used"


class NothingToLearnError(HoldfastError):
    status, slug, title = 409, "nothing-to-learn", "Nothing to learn"


class InputsUnfitError(HoldfastError):
    slug, title = "inputs-unfit", "The stored inputs of an update cannot be used"


class ServedDamagedError(HoldfastError):
    slug, title = "served-damaged", "An exported network was changed"


class NotReproducibleError(HoldfastError):
    slug, title = "not-reproducible", "This update cannot be reproduced"


class DecisionConflictError(HoldfastError):
    status, slug, title = 409, "decision-conflict", "This update cannot be decided now"


class FreezeConflictError(HoldfastError):
    status, slug, title = 409, "freeze-conflict", "Promotion is not frozen"


class HoldoutUnknownError(HoldfastError):
    status, slug, title = 404, "holdout-unknown", "No such past holdout"


class HoldoutConflictError(HoldfastError):
    status, slug, title = 409, "holdout-conflict", "The holdout is in that state already"


class GoldenUnfitError(HoldfastError):
    status, slug, title = 422, "golden-unfit", "Those records cannot be such a set"


class StoreAwayError(HoldfastError):
    status, slug, title = 503, "store-away", "The experience store cannot be used"


class CancelConflictError(HoldfastError):
    status, slug, title = 409, "cancel-conflict", "This update cannot be cancelled now"


class ChampionMissingError(HoldfastError):
    status, slug, title = 404, "champion-missing", "No champion yet"


class VersionUnfitError(HoldfastError):
    status, slug, title = 409, "version-unfit", "That version cannot become champion"


class ChampionMovedError(HoldfastError):
    status, slug, title = 409, "champion-moved", "The champion has moved"


class LostLeaseError(HoldfastError):
    slug, title = "lease-lost", "Another worker owns this update now"


class TrainerDiedError(HoldfastError):
    slug, title = "trainer-died", "A trainer process ended in the middle of an update"


class TrainerStoppedError(HoldfastError):
    slug, title = "trainer-stopped", "The dispatcher stops"


class DatabaseAwayError(HoldfastError):
    status, slug, title = 503, "database-away", "The database does not answer"


class DatabaseRevisionError(HoldfastError):
    slug, title = "database-revision", "The database is of another release"


class SettingsError(HoldfastError):
    slug, title = "settings", "The service cannot start as configured"
