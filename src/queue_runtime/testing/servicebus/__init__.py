"""An emulator of Azure Service Bus queues that speaks AMQP 1.0 to the real SDKs; for tests, on loopback.

In a trio program, or with :func:`emulator_in_thread` in any other::

    async with open_emulator({"orders": QueueSettings(requires_session=True)}) as emulator:
        client = ServiceBusClient.from_connection_string(emulator.connection_string)
        emulator.faults.detach(queue="orders")

From the command line: ``queue-runtime emulator azure --queues a --session-queues b``.
Needs python-qpid-proton and wsproto, of the extra ``servicebus-emulator``, as soon as it is started; TLS needs
cryptography.

What is there
    Queues with and without sessions, and their dead-letter sub-queues. Locks on messages and sessions with
    renewal; sessions by name and next available; session state; complete, abandon, defer, dead-letter, release;
    delivery counts, time to live, scheduling and cancelling, duplicate detection, batches, peeking, receiving by
    number, settling several by their lock tokens, listing sessions; limits on sizes and on connections.
    Connections by plain AMQP, TLS or WebSockets, with shared access signatures, tokens and their rights checked,
    and links ended with their tokens. On the same port over HTTP, or HTTPS, as the SDKs' administration clients
    speak it: queues created, looked at, counted, changed, listed and deleted.

What is not
    Topics, subscriptions and rules; transactions; partitions; forwarding; roles, in whose place tokens say what
    they allow; anything that outlives the process. Nothing is throttled unless a fault says so.

What can go wrong on demand, by ``ServiceBusEmulator.faults``
    Links detached by force, connections dropped, stalls, throttling and other refusals, answers that are lost (a
    settlement without its echo), locks stolen, time that moves. Refusals, lost answers and stalls are about the
    administration endpoint as well.

Where it may differ from Azure
    Its semantics come from the SDK's source, its traffic and the documentation; they were not compared with the
    service. Especially: which session is the next available (here the one that has waited longest); delivery
    counts (an expired lock, abandoning and deferring count, releasing and closing a session receiver do not);
    locks after a connection is lost (a session is free at once unless its queue's settings say otherwise, a
    message stays locked for its time); what is fetched for credit that is taken back (nothing, unless they say
    so too); settling several by token (all or none); what a duplicate's sequence number is (its original's);
    dead-lettering a dead letter (refused); the times things take.

How it is built, from the bottom:

* ``refusals``, ``timers``, ``entities``, ``store``, ``locks``, ``sessions``, ``queue``, ``namespace``: the
  semantics, without I/O;
* ``codec``, ``frames``: what the broker reads and writes of encoded messages;
* ``authority``: tokens; ``fault_book``, ``counters``: what is to go wrong, and what was seen;
* ``links``, ``requests``, ``connection``: AMQP on python-qpid-proton's engine, bytes in and bytes out;
* ``atom``, ``administration``, ``http``: the administration endpoint; ``config_file``: queues from a file;
* ``certificate``, ``websocket``, ``server``, ``emulator``: the network, and what a test holds in its hands.
"""

from __future__ import annotations

from .authority import AccessPolicy as AccessPolicy
from .authority import Right as Right
from .certificate import Certificate as Certificate
from .config_file import queues_of as queues_of
from .counters import Statistics as Statistics
from .emulator import Faults as Faults
from .emulator import ServiceBusEmulator as ServiceBusEmulator
from .emulator import emulator_in_thread as emulator_in_thread
from .emulator import open_emulator as open_emulator
from .entities import QueueCounts as QueueCounts
from .entities import QueueSettings as QueueSettings
from .fault_book import Fault as Fault
from .fault_book import Operation as Operation

__all__ = [
    "AccessPolicy",
    "Certificate",
    "Fault",
    "Faults",
    "Operation",
    "QueueCounts",
    "QueueSettings",
    "Right",
    "ServiceBusEmulator",
    "Statistics",
    "emulator_in_thread",
    "open_emulator",
    "queues_of",
]
