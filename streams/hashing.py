"""Hashes whole text columns without a loop over the texts, for the split and for the duplicate window.

The function is our own and never changes: it decides which part a record belongs to. Over the UTF-8 bytes of
a text, taken as little-endian 64-bit words padded with zeros: h = length * A; for each word,
h = (h ^ word) * A, then h ^= h >> 32; at the end, splitmix64's finaliser (Steele, Lea & Flood 2014). It is
fast, not cryptographic: whoever chooses the ids can choose the part.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_A = np.uint64(0x9E3779B97F4A7C15)
_B = np.uint64(0xBF58476D1CE4E5B9)
_C = np.uint64(0x94D049BB133111EB)
_MASKS = np.array([(1 << (8 * size)) - 1 for size in range(9)], dtype=np.uint64)
"""Keep the first 0..8 bytes of a word."""


_BLOCK = 16_384
"""Texts hashed at a time, so that they stay in the processor's cache."""


def hash_texts(texts: pa.StringArray, *, swapped: bool = False) -> NDArray[np.uint64]:
    """One 64-bit hash a text (n,). Equal texts have equal hashes, on every machine and in every release.

    `swapped` gives a second hash, of the words with their bytes in the opposite order. A difference in the
    last byte of a word spreads over few bits, and one in a later word can undo it: such texts share the one
    hash and not the other. No seed would separate them.
    """
    count = len(texts)
    found = np.empty(count, dtype=np.uint64)
    if not count:
        return found
    _, offsets_buffer, data = texts.buffers()
    # Limited by count, because a buffer may be longer than its content.
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32, count=count + 1, offset=4 * texts.offset)
    whole = np.zeros(0, dtype=np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
    with np.errstate(over="ignore"):
        for start in range(0, count, _BLOCK):
            block = offsets[start : start + _BLOCK + 1].astype(np.int64)
            _hash_block(whole[block[0] : block[-1]], block - block[0], found[start : start + _BLOCK], swapped)
    return found


def _hash_block(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], found: NDArray[np.uint64], swapped: bool
) -> None:
    # Words are read at any byte, so there must be room behind the last one.
    padded = np.zeros(len(data) + 8, dtype=np.uint8)
    padded[: len(data)] = data
    lengths = np.diff(offsets)
    shortest, longest = int(lengths.min()), int(lengths.max())
    np.multiply(lengths.astype(np.uint64), _A, out=found)
    for byte in range(0, longest, 8):
        if shortest == longest:  # by far the most common case, and the fastest: no row is gathered
            word = np.ndarray(
                (len(lengths),), dtype="<u8", buffer=padded.data, offset=byte, strides=(longest,)
            )
            _mix(found, word & _MASKS[min(longest - byte, 8)], swapped)
            continue
        words = np.ndarray((len(data) + 1,), dtype="<u8", buffer=padded.data, strides=(1,))
        rows = np.flatnonzero(lengths > byte)
        state = found[rows]
        _mix(state, words[offsets[rows] + byte] & _MASKS[np.minimum(lengths[rows] - byte, 8)], swapped)
        found[rows] = state
    found ^= found >> np.uint64(30)
    found *= _B
    found ^= found >> np.uint64(27)
    found *= _C
    found ^= found >> np.uint64(31)


def _mix(state: NDArray[np.uint64], words: NDArray[np.uint64], swapped: bool) -> None:
    state ^= words.byteswap() if swapped else words
    state *= _A
    state ^= state >> np.uint64(32)
