"""Fills the duplicate window of an ingest that opens, from the experiences that are stored."""

from streams.base import RecordSchema
from streams.duplicates import DuplicateWindow
from streams.state.manifest import ExperienceRow, Manifest
from streams.store.experiences import ExperienceStore


def recall_ids(
    seen_ids: DuplicateWindow,
    pipeline: str,
    schema: RecordSchema,
    *,
    manifest: Manifest,
    store: ExperienceStore,
) -> None:
    """Add the ids of the newest experiences that together hold as many records as the window, oldest first.

    Raises:
        ExperienceDamagedError: a stored file is missing or damaged.
    """
    recalled: list[ExperienceRow] = []
    window = seen_ids.window
    index = len(manifest.experiences(pipeline)) if window else 0
    while index and sum(row.rows for row in recalled) < window:
        index -= 1
        row = manifest.experience(pipeline, index)
        assert row is not None, "indices have no gaps"
        recalled.append(row)
    for row in reversed(recalled):
        for part in (row.train, row.gate, row.audit):
            if part is not row.train or row.train_removed_at is None:
                seen_ids.add(store.records(part.digest, schema).ids)
        seen_ids.committed(row.rows)
