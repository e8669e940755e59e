"""Text from elsewhere made safe to show: in logs, on a terminal, in the description of a dead letter."""

from __future__ import annotations

import re
from typing import Final

from .secret import mask_url

__all__ = ["DEFAULT_LIMIT", "SCRUB_LIMIT", "escape", "scrub"]

DEFAULT_LIMIT: Final = 256
"""Characters kept of an id or a reason: twice the longest session id."""

SCRUB_LIMIT: Final = 4_096
"""Characters :func:`scrub` looks at: the longest description of a dead letter."""

_CUT: Final = "…"
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://\S+")


def escape(text: str, limit: int = DEFAULT_LIMIT) -> str:
    r"""``text`` on one line, with everything that cannot be seen written as a Python escape, and cut.

    Escaped is what :meth:`str.isprintable` does not call printable: control characters (newlines and the
    ESC that begins a terminal's commands among them), marks that turn the reading direction, zero-width
    characters, line separators, unusual spaces, lone surrogates and unassigned code points. Letters of
    every script stay, and so do backslashes: the result is for reading, not for decoding.

    Args:
        text: Anything.
        limit: The longest result, in characters, at least 1. A longer one ends in ``…`` and never in half
            an escape.

    Returns:
        At most ``limit`` printable characters.

    Examples:
        >>> print(escape("two\nlines, \x1b[31mred"))
        two\nlines, \x1b[31mred
        >>> escape("a long reason", limit=7)
        'a long…'
    """
    if len(text) <= limit and text.isprintable():
        return text
    kept: list[str] = []
    length = 0  # of all that is in `kept`
    fitting = 0  # how many of `kept` leave room for the mark of a cut
    # No character becomes shorter, so those behind the limit cannot matter, however long the text is.
    for character in text[: limit + 1]:
        shown = character if character.isprintable() else _escaped(character)
        kept.append(shown)
        length += len(shown)
        if length < limit:
            fitting += 1
        elif length > limit:
            return "".join(kept[:fitting]) + _CUT
    return "".join(kept)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def scrub(text: str) -> str:
    """``text`` of an exception with everything that looks like a credential replaced by ``***``.

    URLs lose their user information and secret parameters wherever they stand in the text; ``name=value``
    pairs whose name sounds secret lose the value. See :func:`queue_runtime.secret.mask_url`.

    Returns:
        The masked text. What is longer than :data:`SCRUB_LIMIT` is cut before, between two words: half a
        credential could not be recognised.
    """
    if len(text) > SCRUB_LIMIT:
        words = text[:SCRUB_LIMIT].rsplit(maxsplit=1)
        text = (words[0] if len(words) == 2 else "") + _CUT
    return mask_url(_URL.sub(_mask_match, text))


def _mask_match(match: re.Match[str]) -> str:
    return mask_url(match[0])
