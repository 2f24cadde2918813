"""The only source of randomness: every draw comes from (run seed, stage name, index…).

A row's seed depends on what the row is, never on batch size, order, sharding or resumption.
"""

from __future__ import annotations

import hashlib
import json
from operator import index as as_int


def derive_seed(run_seed: int, stage: str, *index: int) -> int:
    """A 64-bit unsigned seed for one draw of `stage`, such as ``(row, sample)``.

    BLAKE2b over the JSON list of the arguments, which is injective: no two different argument lists
    are encoded alike, and two seeds are equal only by a chance of 2⁻⁶⁴ a pair.
    """
    key = json.dumps([as_int(run_seed), stage, *map(as_int, index)])
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest(), "big")
