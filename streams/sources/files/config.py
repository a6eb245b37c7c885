"""Configuration of a files source."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from streams.allowed import Allowed
from streams.base import SourceConfig, TableColumns
from streams.sources.files.cursor import FORMATS, ZIPPED, format_of
from streams.store.objects import S3_SCHEME, ObjectError, open_objects


class FilesConfig(SourceConfig):
    """Files that arrive in a folder or under an S3 prefix."""

    kind: Literal["files"] = "files"
    location: str = Field(
        min_length=1, max_length=1000, description="An absolute folder, or s3://bucket/prefix."
    )
    pattern: str = Field(
        "*",
        min_length=1,
        max_length=200,
        description="Which names are read, with folders below; * and ? stand for any characters, / too.",
    )
    id: str | None = Field(
        None, description="The column of ids; unset: ids are made of a file's name and a record's position."
    )
    label: str = Field("label", min_length=1, description="The column of labels.")
    time: str | None = Field(None, description="The column of event times, if there is one.")
    split_key: str | None = Field(
        None, description="The column of split keys, if there is one; rows that share one stay together."
    )
    settle_seconds: float = Field(
        5.0, ge=0, le=3600, description="How long a file must not have changed to count as whole."
    )
    look_seconds: float = Field(
        10.0, gt=0, le=3600, description="S3 only: how often new files are looked for."
    )

    @field_validator("location")
    @classmethod
    def _is_a_location(cls, location: str) -> str:
        if location.startswith(S3_SCHEME):
            try:
                open_objects(location)
            except ObjectError as error:
                raise ValueError(str(error)) from error
        elif not Path(location).is_absolute():
            raise ValueError("must be an absolute path, or s3://bucket/prefix")
        return location

    @field_validator("pattern")
    @classmethod
    def _matches_something(cls, pattern: str) -> str:
        if not pattern.endswith("*") and format_of(pattern) is None:
            raise ValueError(f"must end with * or one of {', '.join(FORMATS)}; text may end in {ZIPPED} too")
        return pattern

    @property
    def table(self) -> TableColumns:
        """The columns of CSV, Parquet and Arrow files that are not features."""
        return TableColumns(id=self.id, label=self.label, time=self.time, split_key=self.split_key)

    def refusal(self, allowed: Allowed) -> str | None:
        """See `SourceConfig`. Links are followed first."""
        return None if allowed.reads(self.location) else allowed.path_refusal("The location", self.location)
