"""How Azure Service Bus is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from .config import AzureConfig, azure_config_from_url

if TYPE_CHECKING:
    from .provider import AzureProvider

__all__ = ["AzureFactory"]


@final
class AzureFactory:
    """Opens ``azure://`` providers. The SDK is loaded by :meth:`open`, not before."""

    config_type: type[AzureConfig] = AzureConfig

    def config_from_url(self, url: str) -> AzureConfig:
        """As :func:`.config.azure_config_from_url`."""
        return azure_config_from_url(url)

    async def open(self, config: AzureConfig) -> AzureProvider:
        """Connect.

        Raises:
            ConfigurationError: A CA file that is not there, a credential that cannot be made …
            AuthenticationFailed: No token could be had.
            ImportError: The extra ``azure`` is not installed; the registry turns it into advice.
        """
        from .provider import AzureProvider

        return await AzureProvider.open(config)
