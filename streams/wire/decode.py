"""Decodes payloads of every format to records. One that does not fit is rejected, without harm to the others.

JSON, msgpack and CSV are what callers and brokers send: one record a payload. Arrow is many records a
payload: our own, with the fingerprint of their schema, and those of other programs. Decoding never raises
because of the bytes.
"""

from collections.abc import Sequence

import msgspec

from streams.base import RawBatch, RecordInvalidError, RecordSchema
from streams.records import LabelMap, Records
from streams.wire.arrow import (
    FINGERPRINT_KEY,
    check_fingerprint,
    count_records,
    decode_arrow,
    decode_batch,
    encode_batch,
    from_arrow,
    to_arrow,
)
from streams.wire.base import PAYLOAD_CAP_BYTES, Decoded, Reason, Rejected, all_refused, assemble
from streams.wire.csv import draft_csv
from streams.wire.rows import JsonRecord, draft_json, draft_msgpack, json_fields
from streams.wire.rules import Draft, accept, examine
from streams.wire.tables import columns_problem

__all__ = [
    "FINGERPRINT_KEY",
    "PAYLOAD_CAP_BYTES",
    "Decoded",
    "JsonRecord",
    "Reason",
    "Rejected",
    "check_fingerprint",
    "columns_problem",
    "count_records",
    "decode",
    "decode_batch",
    "decode_json",
    "encode_batch",
    "encode_json",
    "from_arrow",
    "json_fields",
    "to_arrow",
]


def decode(batch: RawBatch, schema: RecordSchema, labels: LabelMap | None = None) -> Decoded:
    """The records of a batch; never raises because of what the payloads hold.

    Labels get their ids from `labels`, by default the classes that the schema declares. Where classes are
    open, the new ones of the accepted records are added to it, in the order of the records.
    """
    labels = LabelMap(schema) if labels is None else labels
    if batch.wire == "arrow":
        return decode_arrow(batch, schema, labels)
    try:
        draft = _draft(batch, schema)
    except RecordInvalidError as error:
        return all_refused(batch, schema, error)
    return _outcome(draft, schema, labels, payloads=batch.payloads, positions=batch.positions)


def decode_json(
    payloads: Sequence[bytes],
    schema: RecordSchema,
    *,
    positions: Sequence[str],
    labels: LabelMap | None = None,
) -> Decoded:
    """One JSON object a payload. Whatever the bytes are, each becomes a record or a `Rejected`."""
    labels = LabelMap(schema) if labels is None else labels
    return _outcome(draft_json(payloads, schema), schema, labels, payloads=payloads, positions=positions)


def encode_json(records: Records, schema: RecordSchema, names: Sequence[str] | None = None) -> list[bytes]:
    """One payload a record, such that `decode_json` gives the same records back.

    `names` are the classes by id; by default those that the schema declares.
    """
    return [msgspec.json.encode(fields) for fields in json_fields(records, schema, names)]


def _draft(batch: RawBatch, schema: RecordSchema) -> Draft:
    if batch.wire == "csv":
        draft = draft_csv(batch.payloads, batch.header, schema, batch.table)
        return draft if batch.table.id is not None else draft.named(batch.ids)
    return (draft_json if batch.wire == "json" else draft_msgpack)(batch.payloads, schema)


def _outcome(
    draft: Draft,
    schema: RecordSchema,
    labels: LabelMap,
    *,
    payloads: Sequence[bytes],
    positions: Sequence[str],
) -> Decoded:
    examined = examine(draft, schema)
    records, indices = accept(examined, schema, labels)
    return assemble(
        records, indices, examined.faults, positions=positions, payload_of=lambda index: payloads[index]
    )
