"""Configuration of a files source, and the check that its location may be read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

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

    def location_problem(self, roots: Sequence[Path | str]) -> str | None:
        """Why the location is not below one of these roots, as a sentence; None when it is.

        A root is a folder, or a text such as "s3://bucket/prefix". Links are resolved first.
        """
        if any(_is_within(self.location, str(root)) for root in roots):
            return None
        allowed = ", ".join(str(root) for root in roots) or "none"
        return f"The location {self.location} is not within those that may be read here ({allowed})."


def _is_within(location: str, root: str) -> bool:
    if location.startswith(S3_SCHEME) or root.startswith(S3_SCHEME):
        return f"{location.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")
    return Path(location).resolve().is_relative_to(Path(root).resolve())
