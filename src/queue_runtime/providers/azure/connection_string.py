"""What a connection string of Service Bus says, and what in it is wrong. Shows no value of it."""

from __future__ import annotations

import difflib
import re
from typing import Final, final
from urllib.parse import SplitResult, urlsplit

import attrs

from queue_runtime.errors import ValidationError
from queue_runtime.secret import Secret

__all__ = ["HOST", "LABEL", "QUEUE", "ConnectionString", "parse_connection_string"]

_PARTS: Final = {
    name.lower(): name
    for name in (
        "Endpoint",
        "SharedAccessKeyName",
        "SharedAccessKey",
        "SharedAccessSignature",
        "EntityPath",
        "UseDevelopmentEmulator",
    )
}
_IGNORED_PARTS: Final = {"transporttype", "operationtimeout", "runtimeport", "managementport"}
"""What older SDKs for .NET read; nothing here depends on them."""

_QUOTES: Final = ("'", '"')

LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
"""One part of a host's name."""

HOST: Final = re.compile(rf"(?=.{{1,253}}$){LABEL}(?:\.{LABEL})*")
"""A host's name."""

_SECONDS: Final = re.compile(r"[0-9]{1,11}")
"""When a signature expires, since 1970."""

QUEUE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,258}[A-Za-z0-9])?")
"""A name that a queue can have."""


@final
@attrs.frozen(kw_only=True)
class ConnectionString:
    """What a connection string says.

    Args:
        host: Of the namespace, in lower case; an address of IPv6 in brackets.
        port: Given for the emulator only.
        key_name: Name of the shared access policy.
        key: Its key.
        signature: A signature made with a key, in its place.
        queue: The only queue it is good for.
        emulator: Plain AMQP without TLS, as Microsoft's emulator speaks it.
    """

    host: str
    port: int | None = None
    key_name: str | None = None
    key: Secret | None = None
    signature: Secret | None = None
    queue: str | None = None
    emulator: bool = False


def parse_connection_string(text: str) -> ConnectionString:
    """Take apart ``Endpoint=sb://host/;SharedAccessKeyName=…;SharedAccessKey=…[;EntityPath=…]``.

    Raises:
        ValidationError: With everything that is wrong, by the names of its parts. No value is shown, and no name
            that is not a part's: either may be the key, cut off or pasted alone.
    """
    parts, problems = _split(text)
    endpoint = _endpoint(parts.get("Endpoint"), problems)
    emulator = parts.get("UseDevelopmentEmulator", "false")
    if emulator not in ("true", "false", ""):
        # The SDK takes any other spelling for false, and would then ask the emulator for TLS.
        problems.append("UseDevelopmentEmulator must be true or false, in small letters")
    elif endpoint is not None and emulator == "false" and endpoint[1] is not None:
        problems.append(
            "Endpoint has a port, which only an emulator's may have: "
            "add UseDevelopmentEmulator=true, or give custom_endpoint=sb://host:port beside it"
        )
    _check_credentials(parts, problems)
    queue = parts.get("EntityPath")
    if queue and not QUEUE.fullmatch(queue):
        problems.append("EntityPath is no name that a queue can have")
    if problems or endpoint is None:
        raise ValidationError(f"connection_string: {'; '.join(problems)}")
    key, signature = parts.get("SharedAccessKey"), parts.get("SharedAccessSignature")
    return ConnectionString(
        host=endpoint[0],
        port=endpoint[1],
        key_name=parts.get("SharedAccessKeyName"),
        key=None if key is None else Secret(key),
        signature=None if signature is None else Secret(signature),
        queue=queue,
        emulator=emulator == "true",
    )


def _split(text: str) -> tuple[dict[str, str], list[str]]:
    parts: dict[str, str] = {}
    problems: list[str] = []
    text = text.strip()
    if text[:1] in _QUOTES or text[-1:] in _QUOTES:
        # As Docker leaves them when it reads an env file; no part has any at its ends.
        problems.append("it is in quotation marks: remove them")
        text = text.strip("".join(_QUOTES))
    for number, pair in enumerate(filter(None, text.split(";")), 1):
        given, equals, value = pair.partition("=")
        given = given.strip()
        name = _PARTS.get(given.lower())
        if not equals:
            problems.append(f"part {number} is not name=value")
        elif name is None:
            if given.lower() not in _IGNORED_PARTS:
                near = difflib.get_close_matches(given.lower(), _PARTS, n=1, cutoff=0.75)
                problems.append(
                    f"part {number} has an unknown name"
                    + (f", did you mean {_PARTS[near[0]]}?" if near else "")
                )
        elif name in parts:
            problems.append(f"{name} is given more than once")
        else:
            parts[name] = value.strip()
            if not parts[name]:
                problems.append(f"{name} is empty")
    return parts, problems


def _endpoint(value: str | None, problems: list[str]) -> tuple[str, int | None] | None:
    if value is None:
        problems.append("Endpoint is missing: sb://<namespace>.servicebus.windows.net/")
        return None
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), None
    host = parts.hostname or ""
    extra = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme != "sb" or extra or not (HOST.fullmatch(host) or host == "::1"):
        if value:  # an empty one was named already
            problems.append(
                "Endpoint must be sb://<namespace>.servicebus.windows.net/, "
                "or an emulator's sb://127.0.0.1:<port>"
            )
        return None
    return f"[{host}]" if ":" in host else host.lower(), port


def _check_credentials(parts: dict[str, str], problems: list[str]) -> None:
    name, key, signature = (
        part in parts
        for part in ("SharedAccessKeyName", "SharedAccessKey", "SharedAccessSignature")
    )
    if key and signature:
        problems.append("SharedAccessKey and SharedAccessSignature are both given: keep one")
    elif name and not key and not signature:
        problems.append("SharedAccessKey is missing, which belongs to SharedAccessKeyName")
    elif key and not name:
        problems.append("SharedAccessKeyName is missing, which belongs to SharedAccessKey")
    elif not key and not signature:
        problems.append("SharedAccessKeyName and SharedAccessKey are missing")
    token = parts.get("SharedAccessSignature", "")
    if not token:
        return
    kind, _, rest = token.partition(" ")
    fields = dict(pair.partition("=")[::2] for pair in rest.split("&"))
    if kind != "SharedAccessSignature" or not all(map(fields.get, ("sr", "sig", "se"))):
        problems.append(
            "SharedAccessSignature must be 'SharedAccessSignature sr=…&sig=…&se=…&skn=…'"
        )
    elif not _SECONDS.fullmatch(fields["se"]):
        problems.append("SharedAccessSignature has an se that is no whole number of seconds")
