"""Reliable, strictly ordered message processing on trio, on any broker.

Write a handler class, open a supervisor over a queue, and every session - all events of one pull request,
one order, one device - is handled by one actor at a time, in order, through retries, crashes and takeovers.

The layers, from the top; imports only go down, and a test holds it:

``cli`` → ``testing`` → ``client`` → ``actors`` → ``providers`` → ``instrumentation`` → ``config`` →
``policies`` (pure: no trio, no I/O) → ``handlers`` → ``abc`` (the ports) → ``session_keys`` → ``messages``
→ ``serialization`` → ``errors``
"""

from types import FunctionType

from .abc import DeadLetters as DeadLetters
from .abc import Lease as Lease
from .abc import Provider as Provider
from .abc import ProviderFactory as ProviderFactory
from .abc import Receiver as Receiver
from .abc import ReceiverOptions as ReceiverOptions
from .abc import Sender as Sender
from .actors.supervisor import Supervisor as Supervisor
from .actors.supervisor import SupervisorStatistics as SupervisorStatistics
from .client import DeadLetterClient as DeadLetterClient
from .client import QueueClient as QueueClient
from .client import SessionReceiver as SessionReceiver
from .client import open_client as open_client
from .client import open_supervisor as open_supervisor
from .config import ClientConfig as ClientConfig
from .config import RuntimeConfig as RuntimeConfig
from .config import SettlementMode as SettlementMode
from .config import SupervisorConfig as SupervisorConfig
from .config import load_config as load_config
from .errors import AuthenticationFailed as AuthenticationFailed
from .errors import BatchTooLarge as BatchTooLarge
from .errors import CircuitOpen as CircuitOpen
from .errors import ConfigurationError as ConfigurationError
from .errors import ConnectionFailed as ConnectionFailed
from .errors import InvalidReceipt as InvalidReceipt
from .errors import LockLost as LockLost
from .errors import MessageTooLarge as MessageTooLarge
from .errors import OperationTimeout as OperationTimeout
from .errors import PermissionDenied as PermissionDenied
from .errors import ProviderError as ProviderError
from .errors import QueueError as QueueError
from .errors import QueueFull as QueueFull
from .errors import QueueNotFound as QueueNotFound
from .errors import SerializationError as SerializationError
from .errors import SessionLocked as SessionLocked
from .errors import Throttled as Throttled
from .errors import Unsupported as Unsupported
from .errors import ValidationError as ValidationError
from .handlers import Abandon as Abandon
from .handlers import CloseReason as CloseReason
from .handlers import Complete as Complete
from .handlers import DeadLetter as DeadLetter
from .handlers import HandlerFactory as HandlerFactory
from .handlers import Outcome as Outcome
from .handlers import Retry as Retry
from .handlers import Session as Session
from .handlers import SessionHandler as SessionHandler
from .handlers import SessionState as SessionState
from .messages import Capabilities as Capabilities
from .messages import DeadLetterInfo as DeadLetterInfo
from .messages import Delivery as Delivery
from .messages import Message as Message
from .messages import MessageId as MessageId
from .messages import MessageState as MessageState
from .messages import PeekedMessage as PeekedMessage
from .messages import QueueName as QueueName
from .messages import QueueStats as QueueStats
from .messages import SendResult as SendResult
from .messages import SessionId as SessionId
from .messages import Settlement as Settlement
from .messages import SettlementAction as SettlementAction
from .policies.backoff import Backoff as Backoff
from .policies.backoff import Jitter as Jitter
from .policies.backoff import RetryPolicy as RetryPolicy
from .policies.breaker import BreakerConfig as BreakerConfig
from .policies.breaker import BreakerState as BreakerState
from .policies.breaker import BreakerStatistics as BreakerStatistics
from .session_keys import CompositeKey as CompositeKey
from .session_keys import Constant as Constant
from .session_keys import FieldKey as FieldKey
from .session_keys import FirstOf as FirstOf
from .session_keys import NoKey as NoKey
from .session_keys import SessionKey as SessionKey

__version__ = "0.1.0"

__all__ = [
    "Abandon",
    "AuthenticationFailed",
    "Backoff",
    "BatchTooLarge",
    "BreakerConfig",
    "BreakerState",
    "BreakerStatistics",
    "Capabilities",
    "CircuitOpen",
    "ClientConfig",
    "CloseReason",
    "Complete",
    "CompositeKey",
    "ConfigurationError",
    "ConnectionFailed",
    "Constant",
    "DeadLetter",
    "DeadLetterClient",
    "DeadLetterInfo",
    "DeadLetters",
    "Delivery",
    "FieldKey",
    "FirstOf",
    "HandlerFactory",
    "InvalidReceipt",
    "Jitter",
    "Lease",
    "LockLost",
    "Message",
    "MessageId",
    "MessageState",
    "MessageTooLarge",
    "NoKey",
    "OperationTimeout",
    "Outcome",
    "PeekedMessage",
    "PermissionDenied",
    "Provider",
    "ProviderError",
    "ProviderFactory",
    "QueueClient",
    "QueueError",
    "QueueFull",
    "QueueName",
    "QueueNotFound",
    "QueueStats",
    "Receiver",
    "ReceiverOptions",
    "Retry",
    "RetryPolicy",
    "RuntimeConfig",
    "SendResult",
    "Sender",
    "SerializationError",
    "Session",
    "SessionHandler",
    "SessionId",
    "SessionKey",
    "SessionLocked",
    "SessionReceiver",
    "SessionState",
    "Settlement",
    "SettlementAction",
    "SettlementMode",
    "Supervisor",
    "SupervisorConfig",
    "SupervisorStatistics",
    "Throttled",
    "Unsupported",
    "ValidationError",
    "load_config",
    "open_client",
    "open_supervisor",
]

# Users see one flat name in tracebacks and reprs, not the module a class happens to live in.
for _object in [globals()[name] for name in __all__]:
    if isinstance(_object, (type, FunctionType)) and _object.__module__.startswith(__name__):
        _object.__module__ = __name__
del _object
