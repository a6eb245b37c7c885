"""Where experiences are kept: a folder in the home, or an S3 prefix with a cache in the home."""

from pathlib import Path

from service.settings import Settings
from streams.experiences import ExperienceStore


def experience_store(settings: Settings) -> ExperienceStore:
    """The store of this installation.

    Raises:
        StreamError: the place cannot be used.
    """
    return open_store(settings.experiences, settings.store, cache_bytes=settings.cache_bytes)


def open_store(root: Path, location: str | None, *, cache_bytes: int) -> ExperienceStore:
    """A store under `root`, which is a cache of `location` where one is named."""
    raise NotImplementedError
