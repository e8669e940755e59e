"""How SQS is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from .config import SqsConfig, sqs_config_from_url

if TYPE_CHECKING:
    from .provider import SqsProvider

__all__ = ["SqsFactory"]


@final
class SqsFactory:
    """Opens ``sqs://`` providers. The SDK is loaded by :meth:`open`, not before."""

    config_type: type[SqsConfig] = SqsConfig

    def config_from_url(self, url: str) -> SqsConfig:
        """As :func:`.config.sqs_config_from_url`."""
        return sqs_config_from_url(url)

    async def open(self, config: SqsConfig) -> SqsProvider:
        """Connect.

        Raises:
            ConfigurationError: No region anywhere, an unknown profile …
            AuthenticationFailed: There are no credentials, or they could not be fetched.
            ImportError: The extra ``sqs`` is not installed; the registry turns it into advice.
        """
        from .provider import SqsProvider

        return await SqsProvider.open(config)
