"""Where experiences are kept: a folder in the home, or an S3 prefix with a cache in the home."""

from dataclasses import dataclass
from pathlib import Path

from service.errors import SettingsError
from service.settings import Settings
from streams.base import StreamError
from streams.store.experiences import ExperienceStore


@dataclass(frozen=True)
class StoreLocation:
    """The location of the store, as a value that is sent to trainers, which open it."""

    folder: Path
    """On storage that all workers share; with a bucket, a cache on this machine."""
    bucket: str | None
    """s3://bucket/prefix; None: everything is in the folder."""
    cache_bytes: int

    def open(self) -> ExperienceStore:
        """The store.

        Raises:
            SettingsError: the store cannot be used.
        """
        if self.bucket is None:
            return ExperienceStore(self.folder)
        try:
            return ExperienceStore.at(self.bucket, cache=self.folder, cache_bytes=self.cache_bytes)
        except StreamError as error:
            raise SettingsError(
                f"HOLDFAST_STORE cannot be used: {error}",
                fix="Write it as s3://bucket/prefix; AWS_ENDPOINT_URL and the other AWS_ variables say how.",
            ) from error


def store_location(settings: Settings) -> StoreLocation:
    """The location of this installation's experiences."""
    return StoreLocation(settings.experiences, settings.store, settings.cache_bytes)
