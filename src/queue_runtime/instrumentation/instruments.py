"""How events reach those who want them."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable
from typing import Final, Protocol, Self, final

from ..errors import ConfigurationError
from .events import Event

__all__ = ["Instrument", "Instruments"]

_logger: Final = logging.getLogger("queue_runtime.instrumentation")


class Instrument(Protocol):
    """Whoever wants to know what happens: any callable that takes one event."""

    def __call__(self, event: Event, /) -> None:
        """Take note of ``event``: at once, without waiting and without raising.

        It is called in trio's thread, often for every batch and, with ``HandlerFinished``, for every message:
        what it does there, everybody waits for. Look at the class of the event first, and pass over what is
        of no interest. What it raises is kept from the runtime and reported once.
        """


@final
class Instruments(tuple[Instrument, ...]):
    """Several instruments as one; false when there are none, so that nobody builds an event in vain.

    Written at every place where something happens::

        if instruments:
            instruments.emit(MessagesSent(...))

    Args:
        instruments: Whom to tell, in this order.

    Raises:
        ConfigurationError: One of them cannot be called.
    """

    _reported: set[int]

    def __new__(cls, instruments: Iterable[Instrument] = ()) -> Self:
        """Check that every instrument can be called."""
        self = super().__new__(cls, instruments)
        for instrument in self:
            if not callable(instrument):
                raise ConfigurationError(
                    f"{type(instrument).__name__} object is no instrument: "
                    "give a callable that takes one event"
                )
        self._reported = set()
        return self

    def emit(self, event: Event) -> None:
        """Tell every instrument. Never raises an ``Exception``: an instrument's failure stays with it.

        The first failure of each instrument is written to the standard library's logger
        ``queue_runtime.instrumentation`` - not to the instruments, which may be what is broken.
        """
        for instrument in self:
            try:
                instrument(event)
            except Exception as error:  # whatever it is, it must not reach the runtime
                self._report(instrument, event, error)

    def _report(self, instrument: Instrument, event: Event, error: Exception) -> None:
        if id(instrument) in self._reported:
            return
        self._reported.add(id(instrument))
        frame = traceback.extract_tb(error.__traceback__)[-1]
        # Only where and what kind: the text of the error may quote a body.
        _logger.error(
            "instrument %s failed at %s with %s (%s:%s); its later failures are not reported",
            getattr(instrument, "__qualname__", type(instrument).__qualname__),
            type(event).__name__,
            type(error).__name__,
            frame.filename,
            frame.lineno,
        )
