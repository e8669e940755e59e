"""Marks and digests in the ids that brokers see, where these are not the user's own words. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Final

__all__ = ["GENERATED", "GENERATED_ID", "HASHED", "digest"]

GENERATED: Final = "~n:"
"""Begins ids that stand for no id of the user's."""

GENERATED_ID: Final = re.compile(r"~n:[0-9a-f]{32,64}")
"""What such ids look like: behind the mark stands a token."""

HASHED: Final = "~h:"
"""Begins ids that stand for one which the broker does not take; its :func:`digest` follows."""


def digest(*parts: str) -> str:
    """The SHA-256 of ``parts`` in hexadecimal digits; different parts give different ones.

    Characters that UTF-8 does not have count as question marks: no id of ours holds any, a foreign one may.
    """
    whole = hashlib.sha256()
    for part in parts:
        encoded = part.encode(errors="replace")
        whole.update(b"%d:" % len(encoded))
        whole.update(encoded)
    return whole.hexdigest()
