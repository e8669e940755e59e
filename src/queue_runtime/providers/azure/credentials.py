"""Where tokens come from: a key, a signature, or a credential of azure-identity. On the bridge's loop."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, final

from azure.servicebus._base_handler import _generate_sas_token
from azure.servicebus._common.constants import TOKEN_TYPE_SASTOKEN

from queue_runtime.errors import ConfigurationError, ConnectionFailed

from .config import AzureConfig
from .errors import safe_cause
from .wire import Credential

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken

__all__ = ["Identity", "SharedKey", "open_credential"]

_LIFE: Final = 3_600.0
"""Seconds that a token made with a key is good for; a new one is shown before."""


@final
class SharedKey:
    """Makes tokens with a shared access key.

    Args:
        name: Of the shared access policy.
        key: Its key.
        life: Seconds that a token is good for; whole ones count.
    """

    token_type = TOKEN_TYPE_SASTOKEN

    def __init__(self, name: str, key: str, life: float = _LIFE) -> None:
        self._name = name
        self._key = key
        self._life = timedelta(seconds=life)

    async def get_token(self, *scopes: str) -> AccessToken:
        """A token for the audience that the scope names."""
        return _generate_sas_token(scopes[0], self._name, self._key, self._life)


@final
class _Signature:
    """A token that was made beforehand."""

    token_type = TOKEN_TYPE_SASTOKEN

    def __init__(self, signature: str) -> None:
        self._signature = signature

    async def get_token(self, *scopes: str) -> AccessToken:
        from azure.core.credentials import AccessToken

        fields = dict(
            pair.partition("=")[::2] for pair in self._signature.partition(" ")[2].split("&")
        )
        return AccessToken(self._signature, int(fields["se"]))


@final
class Identity:
    """A credential of azure-identity.

    One that has given tokens before and now finds nobody to ask meets an outage, which is over some time; one that
    never has is set up wrong. azure-identity says the same of both.
    """

    def __init__(self, credential: Any) -> None:
        self._credential = credential
        self._has_given = False

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """What the credential gives.

        Raises:
            ConnectionFailed: It gave tokens before, and now nobody is there to ask.
            Exception: What azure-identity raises.
        """
        from azure.identity import CredentialUnavailableError

        try:
            token: AccessToken = await self._credential.get_token(*scopes, **options)
        except CredentialUnavailableError as error:
            if not self._has_given:
                raise
            raise ConnectionFailed(
                "a token: who gave them before cannot be reached; try again"
            ) from safe_cause(error)
        self._has_given = True
        return token


async def open_credential(config: AzureConfig, stack: AsyncExitStack) -> Credential:
    """What gives tokens; nobody is asked yet.

    Args:
        config: Says which, by :attr:`.config.AzureConfig.auth`.
        stack: Closes it.

    Raises:
        ConfigurationError: It cannot be made.
    """
    said = config.said
    if config.auth == "connection_string":
        assert said is not None, "the configuration was checked"
        if said.key is not None:
            return SharedKey(said.key_name or "", said.key.reveal())
        assert said.signature is not None, "the configuration was checked"
        return _Signature(said.signature.reveal())
    try:
        credential = _of_identity(config)
    except ValueError as error:
        raise ConfigurationError(f"auth is {config.auth}: {error}") from safe_cause(error)
    await stack.enter_async_context(credential)
    return Identity(credential)


def _of_identity(config: AzureConfig) -> Any:
    from azure.identity.aio import (
        ClientSecretCredential,
        DefaultAzureCredential,
        ManagedIdentityCredential,
    )

    if config.auth == "managed_identity":
        return ManagedIdentityCredential(client_id=config.client_id)
    options: dict[str, Any] = {}
    if config.authority is not None:
        options["authority"] = config.authority
        if config.verify is not None:
            options["connection_verify"] = config.verify
    if config.auth == "client_secret":
        assert config.client_secret is not None, "the configuration was checked"
        return ClientSecretCredential(
            config.tenant_id or "",
            config.client_id or "",
            config.client_secret.reveal(),
            **options,
        )
    if config.client_id is not None:
        # Without it, the chain goes by the environment's; ``None`` would forbid that.
        options["managed_identity_client_id"] = config.client_id
    return DefaultAzureCredential(**options)
