"""Who may do what: shared access signatures and tokens, as clients put them to ``$cbs``.

One policy with one key may do everything, and tokens that :meth:`Authority.issue` made may as well. Signatures
and expiry are checked for real; claims (Listen, Send, Manage) and roles are not.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import urllib.parse
from typing import Any, final

import attrs

from .refusals import Refused, unauthorized

__all__ = ["AccessPolicy", "Authority", "Grants", "entity_path"]

_SHARED_ACCESS = "SharedAccessSignature "


@final
@attrs.frozen
class AccessPolicy:
    """A name and key that sign shared access signatures.

    Args:
        name: What a signature names.
        key: What it is made with.
        manages: Has the claim Manage besides Send and Listen: queues can be administered with it.
    """

    name: str = "RootManageSharedAccessKey"
    key: str = attrs.field(factory=lambda: secrets.token_urlsafe(32), repr=False)
    manages: bool = True


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

    def issue(self, expires_at: float) -> str:
        """A JSON web token that is accepted until ``expires_at``, in seconds since 1970."""
        parts = [{"alg": "HS256", "typ": "JWT"}, {"exp": int(expires_at)}]
        text = ".".join(_unpadded(json.dumps(part).encode()) for part in parts)
        return f"{text}.{self._signature(text)}"

    def _signature(self, text: str) -> str:
        return _unpadded(hmac.new(self._secret, text.encode(), hashlib.sha256).digest())

    def check(self, token: Any, audience: str, now: float) -> float:
        """When a token expires that allows using ``audience``.

        Raises:
            Refused: It does not.
        """
        text = token.decode() if isinstance(token, bytes) else str(token)
        if text.startswith(_SHARED_ACCESS):
            expires_at = self._check_signature(text, audience)
        else:
            expires_at = self._check_web_token(text)
        if expires_at <= now:
            raise _refused(f"ExpiredToken: the token expired {now - expires_at:.0f} s ago.")
        return expires_at

    def _check_signature(self, text: str, audience: str) -> float:
        fields = dict(urllib.parse.parse_qsl(text.removeprefix(_SHARED_ACCESS)))
        try:
            resource, expiry = fields["sr"], fields["se"]
            name, signature = fields["skn"], fields["sig"]
            expires_at = float(expiry)
        except (KeyError, ValueError):
            raise _refused("MalformedToken: expected sr, se, skn and sig.") from None
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

    def _check_web_token(self, text: str) -> float:
        signed, _, signature = text.rpartition(".")
        expected = self._signature(signed)
        if not signed or not hmac.compare_digest(signature.encode(), expected.encode()):
            raise _refused("InvalidSignature: The token has an invalid signature.")
        claims = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        return float(claims["exp"])


def _covers(granted: str, path: str) -> bool:
    """Whether a grant on one path includes another: itself, or what is below."""
    granted, path = granted.lower(), path.lower()
    return granted in {"", path} or path.startswith(f"{granted}/")


@final
class Grants:
    """What one connection may use, and until when."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._until: dict[str, float] = {}

    def put(self, token: Any, audience: str, now: float) -> float:
        """Take in a token; return when it expires.

        Raises:
            Refused: It is not valid for the audience.
        """
        expires_at = self._authority.check(token, audience, now)
        self._until[entity_path(audience)] = expires_at
        return expires_at

    def check(self, path: str, now: float) -> None:
        """Refuse what no token allows.

        Raises:
            Refused: None was put for this path, or it has expired.
        """
        untils = [until for granted, until in self._until.items() if _covers(granted, path)]
        if not untils:
            raise unauthorized("Unauthorized access: put a token for the entity first.")
        if max(untils) <= now:
            raise unauthorized("ExpiredToken: the token for the entity has expired.")
