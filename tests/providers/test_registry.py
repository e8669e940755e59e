"""Which provider a URL or a configuration object means, and that nothing else is imported for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import attrs
import pytest

from queue_runtime.abc import Provider
from queue_runtime.errors import ConfigurationError, ConnectionFailed
from queue_runtime.providers import (
    ENTRY_POINT_GROUP,
    Registry,
    Target,
    open_provider,
    resolve_provider,
)
from queue_runtime.secret import SecretUrl

from ..fresh_python import run_python

CANARY = "canary-7Zq"

FAKE = """
import attrs

opened = []


@attrs.frozen
class FakeConfig:
    url: str = ""


class FakeProvider:
    def __init__(self):
        opened.append("opened")

    async def aclose(self):
        opened.append("closed")


class FakeFactory:
    config_type = FakeConfig

    def config_from_url(self, url):
        return FakeConfig(url)

    async def open(self, config):
        if "sdk" in config.url:
            import no_such_sdk.client
        if "down" in config.url:
            from queue_runtime.errors import ConnectionFailed
            raise ConnectionFailed("down")
        return FakeProvider()


FACTORY = FakeFactory()
NO_FACTORY = object()
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes importable modules, which are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")

    write("fake_provider", FAKE)
    yield write
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


def installed(*values: str) -> Callable[[], list[EntryPoint]]:
    """Entry points written as ``name = module:attribute``."""
    return lambda: [
        EntryPoint(name, value, ENTRY_POINT_GROUP)
        for name, _, value in (text.partition(" = ") for text in values)
    ]


def never() -> list[EntryPoint]:
    raise AssertionError("entry points were looked for")


def module(name: str) -> Any:
    return sys.modules[name]


BUILT_IN = {
    "fake": Target("fake_provider", "FACTORY"),
    "needy": Target("fake_needy", "FACTORY", extra="needy"),
}


# --- by URL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["memory", "MEMORY"])
def test_the_memory_provider_is_built_in(scheme: str) -> None:
    factory, config = resolve_provider(f"{scheme}://?lock_duration=5")
    assert type(config) is factory.config_type
    assert config.lock_duration == 5.0
    assert resolve_provider(config) == (factory, config)


def test_the_sqlite_provider_is_built_in() -> None:
    factory, config = resolve_provider(SecretUrl("sqlite:///jobs.db"))
    assert type(config) is factory.config_type
    assert resolve_provider(config) == (factory, config)


def test_a_built_in_scheme_is_found_without_looking_at_entry_points(fakes: object) -> None:
    factory, config = Registry(BUILT_IN, never).resolve("fake://host?a=1")
    assert factory is module("fake_provider").FACTORY
    assert config.url == "fake://host?a=1"


def test_a_secret_url_is_revealed_to_the_factory_only(fakes: object) -> None:
    _, config = Registry(BUILT_IN, never).resolve(SecretUrl(f"fake://u:{CANARY}@host"))
    assert config.url == f"fake://u:{CANARY}@host"


def test_a_package_registers_a_provider(fakes: object) -> None:
    registry = Registry({}, installed("Acme = fake_provider:FACTORY"))
    factory, _ = registry.resolve("acme://host")
    assert factory is module("fake_provider").FACTORY


def test_installed_packages_are_searched_for_other_schemes() -> None:
    with pytest.raises(ConfigurationError, match="no provider for 'no-such-broker://'"):
        resolve_provider("no-such-broker://")


def test_what_is_built_in_cannot_be_replaced(fakes: object) -> None:
    registry = Registry(BUILT_IN, installed("fake = fake_other:FACTORY"))
    factory, _ = registry.resolve("fake://")
    assert factory is module("fake_provider").FACTORY


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "fak://x",
            "no provider for 'fak://', did you mean 'fake'? known: acme, fake, needy; others",
        ),
        (
            "postgres://x",
            "no provider for 'postgres://'; known: acme, fake, needy; others come from",
        ),
        ("fake", "'fake' is not a provider URL: did you mean fake://?"),
        ("jobs.db", "'jobs.db' is not a provider URL: expected scheme://…, such as memory://"),
        ("", "'' is not a provider URL"),
        (f"Endpoint=sb://x;SharedAccessKey={CANARY}", "SharedAccessKey=***"),
        (f"unknown://u:{CANARY}@h", "no provider for 'unknown://'"),
        (
            5,
            "an object of type int is not a provider: expected a URL or a provider's configuration",
        ),
        (None, "known schemes: acme, fake, needy"),
    ],
)
def test_what_is_no_provider(source: object, message: str) -> None:
    registry = Registry(BUILT_IN, installed("acme = fake_provider:FACTORY"))
    with pytest.raises(ConfigurationError) as caught:
        registry.resolve(source)
    assert message in str(caught.value)
    assert CANARY not in str(caught.value)


def test_schemes_of_brokers_to_come_are_not_listed() -> None:
    with pytest.raises(
        ConfigurationError, match="no provider for 'kafka://'; known: azure, memory, sqlite, sqs"
    ):
        Registry(find_entry_points=list).resolve("kafka://host")


# --- what is missing ----------------------------------------------------------------------------------


def test_a_missing_package_names_the_extra(fakes: Callable[[str, str], None]) -> None:
    fakes("fake_needy", "import no_such_sdk.client\n")
    with pytest.raises(ConfigurationError) as caught:
        Registry(BUILT_IN, never).resolve("needy://")
    assert str(caught.value) == (
        "provider 'needy' needs no_such_sdk, which cannot be imported: "
        "pip install 'queue-runtime[needy]'"
    )
    assert isinstance(caught.value.__cause__, ImportError)


def test_an_import_error_without_a_name(fakes: Callable[[str, str], None]) -> None:
    fakes("fake_needy", "raise ImportError('libbroker.so is too old')\n")
    registry = Registry({}, installed("needy = fake_needy:FACTORY"))
    with pytest.raises(
        ConfigurationError, match="needs a package, which cannot be imported: install what it needs"
    ):
        registry.resolve("needy://")


def test_a_mistake_in_this_package_is_not_called_a_missing_extra(
    fakes: Callable[[str, str], None],
) -> None:
    fakes("fake_needy", "import queue_runtime.no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match=r"queue_runtime\.no_such_module"):
        Registry(BUILT_IN, never).resolve("needy://")


async def test_a_package_that_is_missed_only_when_opening(fakes: object) -> None:
    with pytest.raises(ConfigurationError, match="provider 'fake' needs no_such_sdk"):
        async with Registry(BUILT_IN, never).open("fake://sdk"):
            pytest.fail("it cannot be open")


@pytest.mark.parametrize("attribute", ["NO_FACTORY", "MISSING"])
def test_an_entry_point_that_names_no_factory(fakes: object, attribute: str) -> None:
    registry = Registry({}, installed(f"acme = fake_provider:{attribute}"))
    with pytest.raises(
        ConfigurationError,
        match=f"'acme' is registered as fake_provider:{attribute}, which is not a ProviderFactory",
    ):
        registry.resolve("acme://")


# --- by configuration object --------------------------------------------------------------------------


def test_a_configuration_object_finds_its_factory(fakes: object) -> None:
    for registry in (
        Registry({**BUILT_IN, "memory": Target("queue_runtime.no_such_module", "X")}, never),
        Registry({}, installed("acme = fake_provider:FACTORY")),
    ):
        _, config = Registry(BUILT_IN, never).resolve("fake://host")
        factory, same = registry.resolve(config)
        assert factory is module("fake_provider").FACTORY
        assert same is config


def test_packages_that_nobody_imported_are_not_touched(fakes: object) -> None:
    @attrs.frozen
    class Stranger:
        pass

    registry = Registry(BUILT_IN, installed("acme = fake_provider:FACTORY"))
    with pytest.raises(ConfigurationError, match="an object of type Stranger is not a provider"):
        registry.resolve(Stranger())
    assert "fake_provider" not in sys.modules


# --- opening ------------------------------------------------------------------------------------------


async def test_a_provider_is_open_inside_the_block(fakes: object) -> None:
    registry = Registry(BUILT_IN, never)
    async with registry.open("fake://"):
        assert module("fake_provider").opened == ["opened"]
    assert module("fake_provider").opened == ["opened", "closed"]


async def test_a_provider_is_closed_when_the_block_fails(fakes: object) -> None:
    with pytest.raises(RuntimeError, match="inside"):
        async with Registry(BUILT_IN, never).open("fake://"):
            raise RuntimeError("inside")
    assert module("fake_provider").opened == ["opened", "closed"]


async def test_what_fails_to_open_is_not_closed(fakes: object) -> None:
    with pytest.raises(ConnectionFailed):
        async with Registry(BUILT_IN, never).open("fake://down"):
            pytest.fail("it cannot be open")
    assert module("fake_provider").opened == []


async def test_the_memory_provider_opens() -> None:
    async with open_provider("memory://") as provider:
        assert isinstance(provider, Provider)
        assert provider.name == "memory"


def test_importing_the_registry_loads_no_provider() -> None:
    code = (
        "import sys, queue_runtime.providers\n"
        "print([m for m in sys.modules if m.startswith('queue_runtime.providers.')"
        " or m in ('importlib.metadata', 'sqlite3')])"
    )
    assert run_python(code) == ["[]"]
