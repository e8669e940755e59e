"""Who may do what: shared access signatures and tokens, as clients put them to ``$cbs``.

Signatures, expiry, audience and rights are checked for real. In Azure a token says who somebody is, and roles say
elsewhere what that identity may do; here a token says it itself.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import json
import math
import secrets
import urllib.parse
from collections.abc import Collection
from typing import Any, Final, final

import attrs

from .refusals import Refused, missing_right, unauthorized

__all__ = ["ALL_RIGHTS", "AccessPolicy", "Authority", "Grants", "Right", "entity_path"]

_SHARED_ACCESS: Final = "SharedAccessSignature "
_AUDIENCE: Final = "https://servicebus.azure.net"
"""For what tokens of Entra are, in all namespaces and all clouds."""


class Right(enum.Enum):
    """What a shared access policy's claims, or an identity's roles, allow."""

    LISTEN = "Listen"
    SEND = "Send"
    MANAGE = "Manage"


ALL_RIGHTS: Final = frozenset(Right)
"""What a policy or a token may do unless less is said."""


@final
@attrs.frozen
class AccessPolicy:
    """A name and key that sign shared access signatures.

    Args:
        name: What a signature names.
        key: What it is made with.
        rights: What it allows; queues can be administered with the right to manage.
    """

    name: str = "RootManageSharedAccessKey"
    key: str = attrs.field(factory=lambda: secrets.token_urlsafe(32), repr=False)
    rights: frozenset[Right] = ALL_RIGHTS


@final
@attrs.frozen
class _Pass:
    """What a valid token allows, and until when."""

    expires_at: float
    rights: frozenset[Right]


def entity_path(address: str | None) -> str:
    """What of an address names an entity: ``queue`` in ``amqps://host/queue`` and ``/queue``."""
    address = address or ""
    if "://" in address:
        address = address.split("://", 1)[1].partition("/")[2]
    return address.strip("/")


def _refused(problem: str) -> Refused:
    return Refused("com.microsoft:auth-failed", problem, 401)


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@final
class Authority:
    """Checks tokens.

    Args:
        policy: What shared access signatures are checked against.
    """

    def __init__(self, policy: AccessPolicy) -> None:
        self.policy = policy
        self._secret = secrets.token_bytes(32)

    def issue(
        self,
        expires_at: float,
        *,
        rights: Collection[Right] = ALL_RIGHTS,
        audience: str = _AUDIENCE,
    ) -> str:
        """A JSON web token that is accepted until ``expires_at``, in seconds since 1970, if it is for Service Bus."""
        claims = {
            "aud": audience,
            "exp": int(expires_at),
            "rights": sorted(right.value for right in rights),
            "jti": secrets.token_hex(8),  # no two are the same
        }
        parts = [{"alg": "HS256", "typ": "JWT"}, claims]
        text = ".".join(_unpadded(json.dumps(part).encode()) for part in parts)
        return f"{text}.{self._signature(text)}"

    def _signature(self, text: str) -> str:
        return _unpadded(hmac.new(self._secret, text.encode(), hashlib.sha256).digest())

    def check(self, token: Any, audience: str, now: float) -> _Pass:
        """What a token allows with ``audience``, and until when.

        Raises:
            Refused: Nothing.
        """
        text = token.decode(errors="replace") if isinstance(token, bytes) else str(token)
        if text.startswith(_SHARED_ACCESS):
            expires_at, rights = self._check_signature(text, audience), self.policy.rights
        else:
            expires_at, rights = self._check_web_token(text)
        if expires_at <= now:
            raise _refused(f"ExpiredToken: The token is expired, since {now - expires_at:.0f} s.")
        return _Pass(expires_at, rights)

    def _check_signature(self, text: str, audience: str) -> float:
        fields = dict(urllib.parse.parse_qsl(text.removeprefix(_SHARED_ACCESS)))
        try:
            resource, expiry = fields["sr"], fields["se"]
            name, signature = fields["skn"], fields["sig"]
            expires_at = float(expiry)
        except (KeyError, ValueError):
            raise _refused("MalformedToken: expected sr, se, skn and sig.") from None
        if not math.isfinite(expires_at):
            raise _refused(f"MalformedToken: se is {expiry!r}, which is no time.")
        signed = f"{urllib.parse.quote_plus(resource)}\n{expiry}"
        digest = hmac.new(self.policy.key.encode(), signed.encode(), hashlib.sha256).digest()
        expected = base64.b64encode(digest).decode()
        if name != self.policy.name or not hmac.compare_digest(
            signature.encode(), expected.encode()
        ):
            raise _refused("InvalidSignature: The token has an invalid signature.")
        if not _covers(entity_path(resource), entity_path(audience)):
            raise _refused("InvalidAudience: the token was signed for another resource.")
        return expires_at

    def _check_web_token(self, text: str) -> tuple[float, frozenset[Right]]:
        signed, _, signature = text.rpartition(".")
        expected = self._signature(signed)
        if not signed or not hmac.compare_digest(signature.encode(), expected.encode()):
            raise _refused("InvalidSignature: The token has an invalid signature.")
        claims = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        if claims["aud"].rstrip("/") != _AUDIENCE:  # the SDK asks for one with a slash
            raise _refused(f"InvalidAudience: the token is not for {_AUDIENCE}.")
        return float(claims["exp"]), frozenset(map(Right, claims["rights"]))


def _covers(granted: str, path: str) -> bool:
    """Whether a grant on one path includes another: itself, or what is below."""
    granted, path = granted.lower(), path.lower()
    return granted in {"", path} or path.startswith(f"{granted}/")


@final
class Grants:
    """What one connection may use, and until when."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._passes: dict[str, _Pass] = {}

    def put(self, token: Any, audience: str, now: float) -> float:
        """Take in a token; return when it expires.

        Raises:
            Refused: It is not valid for the audience.
        """
        granted = self._authority.check(token, audience, now)
        self._passes[entity_path(audience)] = granted
        return granted.expires_at

    def check(self, path: str, right: Right, now: float) -> None:
        """Refuse what no token allows.

        Raises:
            Refused: None was put for this path, it has expired, or it does not give this right.
        """
        passes = [each for granted, each in self._passes.items() if _covers(granted, path)]
        if not passes:
            raise unauthorized("Unauthorized access: put a token for the entity first.")
        valid = [each for each in passes if each.expires_at > now]
        if not valid:
            raise unauthorized("ExpiredToken: the token for the entity has expired.")
        if not any(right in each.rights for each in valid):
            raise missing_right(right.value, path)
