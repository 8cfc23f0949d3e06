"""An example's key: under a teacher's fingerprint it is its ids and which of them are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

SIZE = 16  # bytes


def all_but_first(ids: Sequence[int]) -> tuple[bool, ...]:
    """The marks of an example of which it is not said what is scored: a first token has nothing before it."""
    return tuple(place > 0 for place in range(len(ids)))


def key_of(ids: Sequence[int], scored: Sequence[bool]) -> bytes:
    """BLAKE2b-128 of the count of ids, the ids (all little-endian u32) and the bits of `scored`, first bit highest.

    Another template, tokenizer or truncation makes other ids: a miss, never another example's signal.

    Raises:
        ValueError: there are not as many marks as ids.
    """
    if len(ids) != len(scored):
        raise ValueError(f"an example has {len(ids)} ids and {len(scored)} marks of scored positions.")
    digest = hashlib.blake2b(np.uint32(len(ids)).astype("<u4").tobytes(), digest_size=SIZE)
    digest.update(np.asarray(ids, "<u4").tobytes())
    digest.update(np.packbits(np.asarray(scored, bool)).tobytes())
    return digest.digest()
