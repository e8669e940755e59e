"""Seeing what the runtime does: events, whoever takes note of them, and the ports wrapped to emit them.

Write an instrument - any callable that takes an :class:`Event` - or use :class:`StructlogInstrument`, and
hand it to the client, the supervisor or :func:`instrument_provider`.
"""

from .events import BreakerChanged as BreakerChanged
from .events import DeadLettersPurged as DeadLettersPurged
from .events import Event as Event
from .events import HandlerFinished as HandlerFinished
from .events import LeaseLost as LeaseLost
from .events import LeasesReleased as LeasesReleased
from .events import LeasesRenewed as LeasesRenewed
from .events import MessageDeadLettered as MessageDeadLettered
from .events import MessagesReceived as MessagesReceived
from .events import MessagesRedriven as MessagesRedriven
from .events import MessagesSent as MessagesSent
from .events import MessagesSettled as MessagesSettled
from .events import OperationFailed as OperationFailed
from .events import PortClosed as PortClosed
from .events import PortOpened as PortOpened
from .events import QueuePurged as QueuePurged
from .events import RetryScheduled as RetryScheduled
from .events import SessionClosed as SessionClosed
from .events import SessionOpened as SessionOpened
from .events import SupervisorDraining as SupervisorDraining
from .events import SupervisorStarted as SupervisorStarted
from .events import SupervisorStopped as SupervisorStopped
from .handlers import instrument_handlers as instrument_handlers
from .instruments import Instrument as Instrument
from .instruments import Instruments as Instruments
from .log import LEVELS as LEVELS
from .log import StructlogInstrument as StructlogInstrument
from .log import configure_logging as configure_logging
from .ports import instrument_provider as instrument_provider

__all__ = [
    "LEVELS",
    "BreakerChanged",
    "DeadLettersPurged",
    "Event",
    "HandlerFinished",
    "Instrument",
    "Instruments",
    "LeaseLost",
    "LeasesReleased",
    "LeasesRenewed",
    "MessageDeadLettered",
    "MessagesReceived",
    "MessagesRedriven",
    "MessagesSent",
    "MessagesSettled",
    "OperationFailed",
    "PortClosed",
    "PortOpened",
    "QueuePurged",
    "RetryScheduled",
    "SessionClosed",
    "SessionOpened",
    "StructlogInstrument",
    "SupervisorDraining",
    "SupervisorStarted",
    "SupervisorStopped",
    "configure_logging",
    "instrument_handlers",
    "instrument_provider",
]
