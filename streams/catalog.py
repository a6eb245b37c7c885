"""SOURCES: every source by name. A new source is one file and one line here.

Importing the catalog, and validating any config, needs no library of any source.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType

from sqlalchemy import Engine

from streams.allowed import Allowed
from streams.base import RecordSchema, Source, SourceConfig, SourceContext
from streams.sources.datasets import DatasetsConfig
from streams.sources.files.config import FilesConfig
from streams.sources.kafka.config import KafkaConfig
from streams.sources.pushed import PushedConfig
from streams.sources.redis.config import RedisConfig

__all__ = ["SOURCES", "SourceConfig", "SourceSpec"]


@dataclass(frozen=True)
class SourceSpec:
    """One entry of the catalog."""

    config: type[SourceConfig]
    builder: str
    """"module:function", imported when a source is built."""
    summary: str

    def problem(self, config: SourceConfig, schema: RecordSchema) -> str | None:
        """Why this source cannot give records of that schema, as a sentence; None when it can."""
        return config.problem(schema)

    def build(
        self, config: SourceConfig, *, pipeline: str, schema: RecordSchema, engine: Engine, allowed: Allowed
    ) -> Source:
        """The source of one pipeline, not yet open. Opening it asks `allowed` once more."""
        module, _, function = self.builder.partition(":")
        build: Callable[[SourceConfig, SourceContext], Source] = getattr(import_module(module), function)
        return build(config, SourceContext(pipeline, schema, engine, allowed))


SOURCES: Mapping[str, SourceSpec] = MappingProxyType(
    {
        "pushed": SourceSpec(
            PushedConfig, "streams.sources.pushed:build", "Records that callers send over HTTP."
        ),
        "files": SourceSpec(
            FilesConfig,
            "streams.sources.files.source:build",
            "Files that arrive in a folder or an S3 bucket.",
        ),
        "datasets": SourceSpec(
            DatasetsConfig,
            "streams.sources.datasets:build",
            "Built-in real digits and MNIST: rotated, permuted, or split by class.",
        ),
        "kafka": SourceSpec(
            KafkaConfig, "streams.sources.kafka.source:build", "A topic of Kafka, read without a group."
        ),
        "redis": SourceSpec(
            RedisConfig, "streams.sources.redis.source:build", "Redis Streams, one record an entry."
        ),
    }
)
