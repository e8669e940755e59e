"""Tests of one module that mostly wait: they do so at the same time, and each then tells of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

__all__ = ["side_by_side"]

ENDINGS = (Exception, pytest.fail.Exception, pytest.skip.Exception)
"""What a test may end with; pytest's own, such as that of an error that was not raised, are no ``Exception``."""

OUTCOMES = pytest.StashKey[dict[str, BaseException | None]]()


def side_by_side(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test with the others of its module that are marked so, when the first of them is its turn.

    Its arguments are fixtures of the module or the session, and parameters given by ``parametrize``.
    """

    @functools.wraps(test)
    def tell(request: pytest.FixtureRequest, **_: Any) -> None:
        module = request.node.getparent(pytest.Module)
        if OUTCOMES not in module.stash:
            module.stash[OUTCOMES] = trio.run(_run_all, request, module)
        error = module.stash[OUTCOMES][request.node.name]
        if error is not None:
            raise error

    signature = inspect.signature(test)
    asked = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    tell.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[asked, *signature.parameters.values()]
    )
    tell.side_by_side = test  # type: ignore[attr-defined]
    return tell


async def _run_all(
    request: pytest.FixtureRequest, module: pytest.Module
) -> dict[str, BaseException | None]:
    outcomes: dict[str, BaseException | None] = {}

    def arguments_of(item: pytest.Function, test: Callable[..., Awaitable[None]]) -> dict[str, Any]:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return {
            name: parameters[name] if name in parameters else request.getfixturevalue(name)
            for name in inspect.signature(test).parameters
        }

    async def run(
        item: pytest.Function, test: Callable[..., Awaitable[None]], arguments: dict[str, Any]
    ) -> None:
        try:
            await test(**arguments)
        except ENDINGS as error:
            outcomes[item.name] = error
        else:
            outcomes[item.name] = None

    ready = []
    for item in request.session.items:
        test = getattr(getattr(item, "obj", None), "side_by_side", None)
        if test is not None and item.getparent(pytest.Module) is module:
            # All of them before the first test begins: a fixture may take seconds, in which nothing else runs.
            ready.append((item, test, arguments_of(item, test)))
    async with trio.open_nursery() as nursery:
        for item, test, arguments in ready:
            nursery.start_soon(run, item, test, arguments)
    return outcomes
