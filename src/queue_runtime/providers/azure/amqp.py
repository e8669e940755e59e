"""Values with an AMQP type of their own, made by the SDK's helpers, which are not annotated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from azure.servicebus._pyamqp import endpoints, utils

__all__ = ["array", "integer", "long", "source", "string", "uint"]

_utils: Any = utils
_endpoints: Any = endpoints

array: Final[Callable[[Sequence[Any]], Any]] = _utils.amqp_array_value
"""An array; all its values are of one type."""

integer: Final[Callable[[int], Any]] = _utils.amqp_int_value
"""A number of 32 bits."""

long: Final[Callable[[int], Any]] = _utils.amqp_long_value
"""A number of 64 bits."""

string: Final[Callable[[str | bytes], Any]] = _utils.amqp_string_value
"""Text."""

uint: Final[Callable[[int], Any]] = _utils.amqp_uint_value
"""A number of 32 bits that is not negative."""


def source(address: str, filters: Mapping[bytes, Any]) -> Any:
    """Where a link's messages come from."""
    return _endpoints.Source(address=address, filters=dict(filters))
