"""Amazon SQS: ``sqs://region/queue``. FIFO queues have sessions (message groups), standard queues have none.

* ``config``: what a URL says; the names of queues as SQS takes them;
* ``codec``: a message as SQS carries it, and back; pure;
* ``batches``: which messages travel in one call, and which calls may overlap; pure;
* ``errors``: what the errors of SQS and its SDK mean to a caller, in one table;
* ``factory``: from a URL to a provider.

Importing the package loads neither ``aiobotocore`` nor ``asyncio``.
"""

from __future__ import annotations

from typing import Final

from .config import SqsConfig as SqsConfig
from .factory import SqsFactory as SqsFactory

__all__ = ["FACTORY", "SqsConfig", "SqsFactory"]

FACTORY: Final = SqsFactory()
"""The factory of ``sqs://``."""
