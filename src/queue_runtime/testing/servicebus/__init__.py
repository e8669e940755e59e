"""An emulator of Azure Service Bus queues that speaks AMQP 1.0 to the real SDKs; for tests, on loopback."""

from __future__ import annotations
