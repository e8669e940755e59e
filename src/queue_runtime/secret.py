"""Text that must not be seen: one type for secrets, one for URLs that may hold them, one masking function.

Everything that shows values - ``repr``, ``str``, f-strings, logs, ``attrs.asdict``, cattrs, tracebacks with
locals - gets the mask. The text itself comes out of :meth:`Secret.reveal` only, so every use can be found by
searching for that word.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from typing import Final, NoReturn, Self, final
from urllib.parse import unquote

from .errors import ValidationError

__all__ = ["MASK", "Secret", "SecretUrl", "is_secret_name", "mask_url"]

MASK: Final = "***"
"""What is shown in place of a secret."""

_HASH_KEY: Final = os.urandom(16)

_SECRET_NAME: Final = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|signature|key|conn(ection)?[-_ ]?str(ing)?"
    r"|^(pass|pwd|pw|auth|sas|sig|code|user(name|info)?)$",
    re.IGNORECASE,
)
# The value goes on over what has no = of its own: an & in a password that nobody escaped.
_QUERY_PAIR: Final = re.compile(r"([?&#]([^=&?#]+)=)([^&]+(?:&[^=&]*(?=&|$))*)")
_DSN_NAME: Final = re.compile(r"(?:^|[;\s])\s*([^=;&?\s]+)\s*=\s*")
_DSN_VALUE: Final = re.compile(r"[^;&]*")
_AUTHORITY: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*://)(?!/)")


def is_secret_name(name: str) -> bool:
    """Whether a parameter, header or variable of this ``name`` usually holds something secret."""
    return _SECRET_NAME.search(unquote(name).strip()) is not None


def _mask_query_pair(match: re.Match[str]) -> str:
    return match[1] + MASK if is_secret_name(match[2]) else match[0]


def _mask_connection_string(text: str) -> str:
    """``text`` with the values of secret ``name=value`` pairs masked up to the next ``;`` or ``&``."""
    pieces: list[str] = []
    done = 0
    for name in _DSN_NAME.finditer(text):
        if name.start() >= done and is_secret_name(name[1]):
            pieces += (text[done : name.end()], MASK)
            value = _DSN_VALUE.match(text, name.end())
            done = value.end() if value is not None else name.end()
    return "".join((*pieces, text[done:]))


def mask_url(url: str) -> str:
    """``url`` with its user information and every query parameter that sounds secret replaced by ``***``.

    Connection strings (``Endpoint=…;SharedAccessKey=…``) are masked too. Text that cannot be understood is
    masked rather too much than too little: up to the last ``@``, since passwords are often left unescaped.
    """
    masked = _mask_connection_string(_QUERY_PAIR.sub(_mask_query_pair, url))
    head = _AUTHORITY.match(masked)
    if head is not None and "@" in masked:
        # A file URL (scheme:///…) has no user information; its path may well hold an @.
        return f"{head[1]}{MASK}@{masked.rpartition('@')[2]}"
    return masked


class _Guarded:
    """Immutable text that is never shown as it is. The two public classes say in ``__str__`` what is shown."""

    __slots__ = ("_text",)
    _text: str

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ValidationError(f"{type(self).__name__} wraps a str, got {type(text).__name__}")
        object.__setattr__(self, "_text", text)

    def reveal(self) -> str:
        """The text itself. Hand it to whatever needs it, and nowhere else."""
        return self._text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __format__(self, format_spec: str) -> str:
        return format(str(self), format_spec)

    def __eq__(self, other: object) -> bool:
        """Equal text, compared in constant time; never equal to a plain ``str``."""
        if type(other) is not type(self):
            return NotImplemented
        return hmac.compare_digest(_encoded(self._text), _encoded(other._text))

    def __hash__(self) -> int:
        # Keyed, so that a hash that gets into a log tells nothing that could be checked against guesses.
        digest = hashlib.blake2b(_encoded(self._text), key=_HASH_KEY, digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: read it again where it is needed"
        )

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        self.__getstate__()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@final
class Secret(_Guarded):
    """A password, key, token or connection string.

    Shown as ``***`` everywhere, refuses to be pickled, compares in constant time.

    Raises:
        ValidationError: The value is not text (the value is not shown).
    """

    __slots__ = ()

    def __str__(self) -> str:
        return MASK


@final
class SecretUrl(_Guarded):
    """A URL that may hold secrets: shown as :func:`mask_url` shows it, otherwise like :class:`Secret`.

    Args:
        text: The URL.
        shown: The URL to show instead (masked too), where names do not tell which parts are secret.
    """

    __slots__ = ("_shown",)
    _shown: str

    def __init__(self, text: str, *, shown: str | None = None) -> None:
        super().__init__(text)
        object.__setattr__(self, "_shown", mask_url(text if shown is None else shown))

    def __str__(self) -> str:
        return self._shown
