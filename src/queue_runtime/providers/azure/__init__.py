"""Azure Service Bus: ``azure://namespace/queue``. Queues have sessions or have none, as they were created.

From the wire up; each imports from those before it:

* ``connection_string``, ``config``: what a URL and a connection string say; the names of queues; pure;
* ``meanings``, ``errors``: what errors of Service Bus and its SDK mean to a caller, and what is raised; pure;
* ``foreign``, ``ids``, ``entries``, ``broker_letters``, ``codec``: a message as Service Bus carries it, and back; pure;
* ``amqp``, ``shared``, ``requests``, ``rights``, ``writing``, ``wire``: a connection, its rights, and questions;
* ``links``, ``inlet``, ``outlet``: the links that messages come and go by;
* ``credentials``, ``api``: a namespace, with what gives tokens for it and its connections;
* ``outgoing``, ``sender``: sending; ``settling``: what settlements become;
* ``sources``, ``session_source``, ``plain_source``: where messages come from, a locked session or a queue without;
* ``intake``: all that one receiver takes in; ``holds``, ``receiver``: leases and deliveries, on trio's side;
* ``browsing``, ``dead_letters``: looking, moving, emptying; ``administration``, ``provision``: the management API;
* ``provider``, ``factory``: a connection, and how a URL becomes one.

Importing the package loads neither ``azure`` nor ``asyncio``.
"""

from __future__ import annotations

from typing import Final

from .config import AzureConfig as AzureConfig
from .factory import AzureFactory as AzureFactory

__all__ = ["FACTORY", "AzureConfig", "AzureFactory"]

FACTORY: Final = AzureFactory()
"""The factory of ``azure://``."""
