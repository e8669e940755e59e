"""Azure Service Bus: ``azure://namespace/queue``. Queues have sessions or have none, as they were created.

* ``config``: what a URL and a connection string say; the names of queues as Service Bus takes them;
* ``codec``: a message as Service Bus carries it, and back; pure;
* ``envelope``: what of it has no field in AMQP; ``foreign``: what other senders write; pure;
* ``errors``: what the errors of Service Bus and its SDK mean to a caller, in one table;
* ``factory``: from a URL to a provider.

Importing the package loads neither ``azure`` nor ``asyncio``.
"""

from __future__ import annotations

from typing import Final

from .config import AzureConfig as AzureConfig
from .factory import AzureFactory as AzureFactory

__all__ = ["FACTORY", "AzureConfig", "AzureFactory"]

FACTORY: Final = AzureFactory()
"""The factory of ``azure://``."""
