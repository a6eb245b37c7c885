"""Converts the features of JSON and msgpack records to one matrix: lists, bytes, or objects of columns."""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, starmap
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.base import RecordInvalidError, RecordSchema
from streams.wire.base import Faults, difference
from streams.wire.rules import stored

_Reader = Callable[[Sequence[Any], Sequence[int], RecordSchema, Faults, list[int]], NDArray[Any]]


def feature_matrix(
    features: Sequence[Any], first: int, schema: RecordSchema, faults: Faults, *, bare: list[int]
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Features (k, size) of a block that begins at row `first`; rows without any are added to `bare`."""
    kinds = set(map(type, features))
    if len(kinds) == 1:
        indices: Sequence[int] = range(first, first + len(features))
        return stored(
            _READERS[kinds.pop()](features, indices, schema, faults, bare), schema, faults, first=first
        )
    values = np.zeros((len(features), schema.size), dtype=np.float64)
    for kind in kinds:
        at = [index for index, found in enumerate(features) if type(found) is kind]
        chosen = [features[index] for index in at]
        values[at] = _READERS[kind](chosen, [first + index for index in at], schema, faults, bare)
    return stored(values, schema, faults, first=first)


def _from_nothing(
    features: Sequence[Any], at: Sequence[int], schema: RecordSchema, faults: Faults, bare: list[int]
) -> NDArray[Any]:
    bare.extend(at)
    return np.zeros((len(features), schema.size), dtype=schema.dtype)


def _from_lists(
    features: Sequence[Any], at: Sequence[int], schema: RecordSchema, faults: Faults, bare: list[int]
) -> NDArray[Any]:
    for shape in {(schema.size,): None, schema.shape: None}:
        try:
            return _regular(features, shape, schema)
        except (struct.error, TypeError):
            continue
    return _each(features, at, schema, faults, lambda one: _any_list(one, schema))


def _from_bytes(
    features: Sequence[Any], at: Sequence[int], schema: RecordSchema, faults: Faults, bare: list[int]
) -> NDArray[Any]:
    stored_type = np.dtype(schema.dtype).newbyteorder("<")
    wanted = schema.size * stored_type.itemsize

    def values(chosen: Sequence[bytes]) -> NDArray[Any]:
        for one in chosen:
            if len(one) != wanted:
                raise RecordInvalidError(
                    f"The features are {len(one)} bytes; {schema.size} of {schema.dtype} are {wanted}.",
                    "wrong-shape",
                )
        return np.frombuffer(b"".join(chosen), dtype=stored_type).reshape(-1, schema.size)

    try:
        return values(features)
    except RecordInvalidError:
        return _each(features, at, schema, faults, lambda one: values([one]))


def _from_columns(
    features: Sequence[Any], at: Sequence[int], schema: RecordSchema, faults: Faults, bare: list[int]
) -> NDArray[Any]:
    pick = _picker(schema.columns)

    def values(chosen: Sequence[dict[str, float]]) -> NDArray[Any]:
        try:
            if schema.columns and set(map(len, chosen)) == {len(schema.columns)}:
                return _regular([pick(one) for one in chosen], (schema.size,), schema)
        except KeyError:
            pass
        raise _other_columns(chosen[0], schema)

    try:
        return values(features)
    except RecordInvalidError:
        return _each(features, at, schema, faults, lambda one: values([one]))


def _picker(columns: Sequence[str]) -> Callable[[dict[str, float]], Sequence[float]]:
    if len(columns) > 1:
        return itemgetter(*columns)
    return lambda one: [one[name] for name in columns]


def _other_columns(sent: Mapping[str, float], schema: RecordSchema) -> RecordInvalidError:
    if not schema.columns:
        return RecordInvalidError(
            f"The features are an object, and the pipeline declares no columns; {_wanted_shape(schema)}.",
            "wrong-shape",
        )
    missing = [name for name in schema.columns if name not in sent]
    unknown = [name for name in sent if name not in schema.columns]
    problem = difference(missing=missing, unknown=unknown)
    return RecordInvalidError(f"The features have not the declared columns: {problem}.", "schema-mismatch")


def _each(
    features: Sequence[Any],
    at: Sequence[int],
    schema: RecordSchema,
    faults: Faults,
    values: Callable[[Any], NDArray[Any]],
) -> NDArray[Any]:
    """Convert one by one; zeros where that fails."""
    found = np.zeros((len(features), schema.size), dtype=np.float64)
    for index, one in enumerate(features):
        try:
            found[index] = values(one)[0]
        except RecordInvalidError as error:
            faults.add(at[index], error)
    return found


def _regular(features: Sequence[Any], shape: Sequence[int], schema: RecordSchema) -> NDArray[np.float64]:
    """Values (k, size) of nested lists that all have one shape.

    Raises:
        struct.error, TypeError: one of them has another shape.
    """
    lists = features
    for extent in shape[:-1]:
        if set(map(len, lists)) != {extent}:
            raise TypeError("a list has another length")
        lists = list(chain.from_iterable(lists))
    # The packer refuses lists of another length, and nested lists.
    packed = b"".join(starmap(_packer(shape[-1]), lists))
    return np.frombuffer(packed, dtype="<f8").reshape(-1, schema.size)


def _any_list(features: Any, schema: RecordSchema) -> NDArray[np.float64]:
    try:
        values = np.array([features], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise RecordInvalidError(
            f"The features are not a regular array; {_wanted_shape(schema)}.", "wrong-shape"
        ) from error
    if values.shape[1:] not in {schema.shape, (schema.size,)}:
        raise RecordInvalidError(
            f"The features have shape {list(values.shape[1:])}; {_wanted_shape(schema)}.", "wrong-shape"
        )
    return values.reshape(-1, schema.size)


@lru_cache(maxsize=64)
def _packer(size: int) -> Callable[..., bytes]:
    return struct.Struct(f"<{size}d").pack


def _wanted_shape(schema: RecordSchema) -> str:
    return f"the pipeline declares {list(schema.shape)}, or a flat list of {schema.size}"


_READERS: Mapping[type, _Reader] = {
    list: _from_lists,
    bytes: _from_bytes,
    dict: _from_columns,
    type(None): _from_nothing,
}
