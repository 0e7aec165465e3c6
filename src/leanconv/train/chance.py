"""Randomness as a function of place: every draw of a run follows from the recipe's seed and from where it is made
(epoch, step, part), never from what was drawn before. So a run that is taken up in the middle continues as if it had
never stopped, and several processes draw what one process would.
"""

from __future__ import annotations

import hashlib


def seed_at(seed: int, *place: int | str) -> int:
    """A 63-bit seed for one place of a run.

    >>> seed_at(0, "order", 3) == seed_at(0, "order", 3) != seed_at(0, "order", 4)
    True
    """
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
