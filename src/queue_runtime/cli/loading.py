"""Finds what ``run`` is given as ``module:Name``, and explains what is wrong with it before it runs."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Final

from queue_runtime import ConfigurationError, HandlerFactory, SessionHandler
from queue_runtime.config.structuring import shown
from queue_runtime.handlers import handler_maker
from queue_runtime.instrumentation import Instrument

__all__ = ["load_handler", "load_instrument"]

_NAMED: Final = 8
"""Names listed when none is near to the one that was given."""


def load_handler(reference: str) -> HandlerFactory:
    """The handler that ``module:Name`` names; the current directory is importable from here on.

    Raises:
        ConfigurationError: There is no such module or name, importing it failed (with the traceback as far as
            it is the user's), or it is no handler.
    """
    value = _load(reference, "handler", "bot:PullRequest", _handlers_in)
    _check(value, reference)
    return value  # type: ignore[no-any-return]  # checked just now


def load_instrument(reference: str) -> Instrument:
    """The instrument that ``module:name`` names, as :func:`load_handler`.

    Raises:
        ConfigurationError: As there; or it is no instrument.
    """
    value = _load(reference, "instrument", "bot:count", _functions_in)
    if inspect.isclass(value) or not callable(value):
        raise ConfigurationError(
            f"{reference} is not an instrument: expected a function that takes an event, "
            f"or an object that is called like one, got {_kind_of(value)}"
        )
    if inspect.iscoroutinefunction(value):
        raise ConfigurationError(
            f"{reference} is not an instrument: it is called in passing and cannot wait, so 'def' without 'async'"
        )
    if not _takes(value, 1):
        raise ConfigurationError(
            f"{reference} is called with the event and nothing else, "
            f"but its parameters are ({_parameters(value)})"
        )
    return value  # type: ignore[no-any-return]  # checked just now


def _load(
    reference: str, what: str, example: str, likely: Callable[[ModuleType], Iterator[str]]
) -> Any:
    """What ``module:Name`` names; ``likely`` are a module's names to tell of when it has no such one."""
    module_name, colon, path = reference.partition(":")
    if not colon or not all(
        part.isidentifier() for name in (module_name, path) for part in name.split(".")
    ):
        raise ConfigurationError(
            f"{shown(reference)} names no {what}: expected module:Name, such as {example}"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    value: Any = _import(module_name)
    for name in path.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            known = likely(value) if inspect.ismodule(value) else vars(value)
            raise ConfigurationError(
                f"{reference}: {_name_of(value)} has no {name!r}" + _near(name, known)
            ) from None
    return value


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            modules = {module.name for module in iter_modules([str(Path.cwd())])}
            raise ConfigurationError(
                f"there is no module {error.name!r}, neither in {Path.cwd()} nor installed"
                + _near(error.name, modules)
            ) from None
        raise _broken(name, error) from error
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _broken(module: str, error: BaseException) -> ConfigurationError:
    """Importing ``module`` raised: the traceback from the user's first frame on."""
    text = "".join(traceback.format_exception_only(error)).rstrip()
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen")
        and frame.filename not in (__file__, importlib.__file__)
    ]
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
    return ConfigurationError(f"importing module {module!r} failed", (*lines, *text.splitlines()))


def _check(value: Any, reference: str) -> None:
    """Refuse what would fail with the first message."""
    handler_maker(value)
    if inspect.isclass(value):
        _check_handle(value.handle, 2, reference)  # type: ignore[attr-defined]  # handler_maker found it
    elif inspect.iscoroutinefunction(value):
        _check_handle(value, 1, reference)
    else:
        made = _call(value, reference)
        if not inspect.iscoroutinefunction(getattr(made, "handle", None)):
            raise ConfigurationError(
                f"{reference} is not a handler: it returned {type(made).__name__}, "
                "which has no 'async def handle(self, delivery)'"
            )
        _check_handle(made.handle, 1, reference)


def _call(factory: Callable[[], Any], reference: str) -> Any:
    try:
        return factory()
    except Exception as error:
        raise ConfigurationError(
            f"{reference} failed when it was asked for a handler: {type(error).__name__}: {error}"
        ) from error


def _check_handle(handle: Any, arguments: int, reference: str) -> None:
    if not _takes(handle, arguments):
        raise ConfigurationError(
            f"{reference} is called with the delivery and nothing else, "
            f"but its parameters are ({_parameters(handle)})"
        )


def _takes(value: Any, arguments: int) -> bool:
    """Whether ``value`` can be called with so many positional arguments, as far as it tells."""
    try:
        inspect.signature(value).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # some of what is written in C tells nothing
        return True
    return True


def _parameters(value: Any) -> str:
    return ", ".join(inspect.signature(value).parameters)


def _name_of(value: Any) -> str:
    if inspect.ismodule(value):
        return f"module {value.__name__!r}"
    return repr(getattr(value, "__qualname__", type(value).__qualname__))


def _kind_of(value: Any) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else type(value).__name__


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _handlers_in(module: ModuleType) -> Iterator[str]:
    """Names of a module that look like handlers; all public ones if none does."""
    public = _public(module)
    handlers = [
        name
        for name in public
        if inspect.iscoroutinefunction(value := getattr(module, name))
        or (
            inspect.isclass(value)
            and value is not SessionHandler
            and inspect.iscoroutinefunction(getattr(value, "handle", None))
        )
    ]
    yield from handlers or public


def _functions_in(module: ModuleType) -> Iterator[str]:
    """Names of a module that may be instruments."""
    for name in _public(module):
        if inspect.isfunction(value := getattr(module, name)) and not inspect.iscoroutinefunction(
            value
        ):
            yield name


def _near(name: str, known: Any) -> str:
    """The end of a message about an unknown name."""
    from difflib import get_close_matches

    names = sorted(known)
    by_lower = {each.lower(): each for each in names}
    near = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(repr(by_lower[each]) for each in near)}?"
    if not names:
        return ""
    more = ", …" if len(names) > _NAMED else ""
    return f"; there is: {', '.join(names[:_NAMED])}{more}"
