"""What URLs and connection strings say, what is refused and why, and that nothing loads the SDK too early."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_runtime.abc import ProviderFactory
from queue_runtime.config import AzureSettings, RuntimeConfig
from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.messages import QueueName
from queue_runtime.providers import resolve_provider
from queue_runtime.providers.azure import FACTORY, AzureConfig, AzureFactory
from queue_runtime.providers.azure.connection_string import (
    ConnectionString,
    parse_connection_string,
)
from queue_runtime.secret import Secret

from ...fresh_python import run_python

CANARY = "canary7Zq"
KEY = f"{CANARY}+/abc="
HOST = "orders.servicebus.windows.net"
WHOLE = f"Endpoint=sb://{HOST}/;SharedAccessKeyName=worker;SharedAccessKey={KEY}"
SIGNATURE = f"SharedAccessSignature sr=sb%3a%2f%2fx&sig={CANARY}%3d&se=1893456000&skn=worker"
EMULATOR = (
    "Endpoint=sb://127.0.0.1:5673;SharedAccessKeyName=a;SharedAccessKey=b;"
    "UseDevelopmentEmulator=true"
)
UNTIDY = (
    " endpoint = sb://ORDERS.servicebus.windows.net ; sharedaccesskeyname=worker;"
    f"SHAREDACCESSKEY={KEY};TransportType=Amqp; "
)
EVERYTHING = (
    "azure://orders?sessions=no&deduplication=yes&lock_duration=30&max_delivery_count=5"
    "&transport=websocket&custom_endpoint=sb://gate.test:8443&verify=/etc/ca.pem"
    "&max_message_bytes=104857600&prefetch=7&acceptors=2&accept_wait=3.5&max_sessions=9"
    "&connect_timeout=1&operation_timeout=2&declare=false&insecure=no"
)
CLIENT = "01234567-89ab-cdef-0123-456789abcdef"

read = FACTORY.config_from_url


def option(text: str) -> str:
    return quote(text, safe="")


def problems(url: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        read(url)
    assert CANARY not in str(caught.value)
    return caught.value.problems or (str(caught.value),)


# --- URLs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("azure://orders", AzureConfig(namespace="orders")),
        ("AZURE://orders/", AzureConfig(namespace="orders")),
        ("azure://orders/jobs", AzureConfig(namespace="orders", queue="jobs")),
        ("azure://orders/a/b.c", AzureConfig(namespace="orders", queue="a/b.c")),
        (f"azure://{HOST}/jobs", AzureConfig(namespace=HOST, queue="jobs")),
        ("azure:///jobs?namespace=orders", AzureConfig(namespace="orders", queue="jobs")),
        (f"azure://orders?namespace={HOST}", AzureConfig(namespace="orders")),
        (
            f"azure://?connection_string={option(WHOLE)}",
            AzureConfig(connection_string=Secret(WHOLE), namespace=HOST, auth="connection_string"),
        ),
        (
            f"azure://orders/jobs?connection_string={option(WHOLE)}",
            AzureConfig(connection_string=Secret(WHOLE), namespace="orders", queue="jobs"),
        ),
        (
            f"azure://?connection_string={option(WHOLE + ';EntityPath=jobs')}",
            AzureConfig(connection_string=Secret(WHOLE + ";EntityPath=jobs"), queue="jobs"),
        ),
        (
            f"azure://orders?tenant_id=contoso.com&client_id={CLIENT}&client_secret=x%26",
            AzureConfig(
                namespace="orders",
                tenant_id="contoso.com",
                client_id=CLIENT,
                client_secret=Secret("x&"),
                auth="client_secret",
            ),
        ),
        (
            EVERYTHING,
            AzureConfig(
                namespace="orders",
                sessions=False,
                deduplication=True,
                lock_duration=30.0,
                max_delivery_count=5,
                transport="websocket",
                custom_endpoint="sb://gate.test:8443",
                verify="/etc/ca.pem",
                max_message_bytes=104_857_600,
                prefetch=7,
                acceptors=2,
                accept_wait=3.5,
                max_sessions=9,
                connect_timeout=1.0,
                operation_timeout=2.0,
            ),
        ),
    ],
)
def test_urls(url: str, expected: AzureConfig) -> None:
    assert read(url) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("azure://", "namespace is missing: write azure://namespace/queue"),
        (f"azure://key:{CANARY}@orders/jobs", "no user information"),
        ("azure://localhost:5672/jobs", "where a namespace belongs"),
        ("azure://or_ders", "where a namespace belongs"),
        ("azure://orders?namespace=others", "namespace 'orders', and an option namespace 'others'"),
        ("azure://?namespace=or_ders", "namespace is 'or_ders': expected a name such as"),
        ("azure://orders/-jobs", "queue is '-jobs': expected 1 to 260 of"),
        ("azure://orders/" + "a" * 261, "expected 1 to 260 of"),
        ("azure://orders/$jobs", "queue is '$jobs'"),
        ("azure://orders?tenant_id=a/b", "tenant_id is 'a/b': expected a directory's id"),
        ("azure://orders?client_id=me", "client_id is 'me': expected an id such as"),
        (
            f"azure://orders?client_secret={CANARY}",
            "tenant_id is missing: auth is client_secret, which needs client_id too",
        ),
        (
            f"azure://orders?tenant_id=t&client_secret={CANARY}",
            "client_id is missing: auth is client_secret",
        ),
        ("azure://orders?client_secret=", "client_secret must be a Secret that is not empty"),
        ("azure://orders?auth=client_secret", "tenant_id is missing: auth is client_secret"),
        ("azure://orders?auth=connection_string", "connection_string is missing: auth is"),
        ("azure://orders?auth=key", "'key' is unknown; expected one of: client_secret, connection"),
        (
            "azure://orders?authority=http://login.test",
            "authority is 'http://login.test': expected",
        ),
        ("azure://orders?authority=login.test/tenant", "expected a host such as login.microsoft"),
        ("azure://orders?transport=tcp", "'tcp' is unknown; expected one of: amqp, websocket"),
        ("azure://orders?sessions=some", "expected true or false, got 'some'"),
        ("azure://orders?prefetch=10", "prefetch is 10, but sessions is true"),
        ("azure://orders?sessions=no&prefetch=5001", "a whole number of messages from 0 to 5000"),
        ("azure://orders?lock_duration=301", "more than 0 and at most 300"),
        ("azure://orders?lock_duration=0", "lock_duration is 0.0"),
        ("azure://orders?accept_wait=0", "accept_wait is 0.0: expected seconds"),
        ("azure://orders?max_message_bytes=1023", "from 1024 to 104857600"),
        ("azure://orders?acceptors=0", "acceptors is 0"),
        ("azure://orders?max_delivery_count=0", "max_delivery_count is 0"),
        ("azure://orders?verify=", "verify is '': expected some text"),
        ("azure://orders?custom_endpoint=gate.test", "custom_endpoint must be sb://host"),
        ("azure://orders?custom_endpoint=sb://gate.test/path", "custom_endpoint must be sb://host"),
        ("azure://orders?custom_endpoint=sb://gate:99999", "custom_endpoint must be sb://host"),
        (f"azure://orders?custom_endpoint=sb://u:{CANARY}@gate", "custom_endpoint must be sb://h"),
        (
            "azure://orders?administration_endpoint=sb://gate",
            "administration_endpoint must be https://host[:port] or http://host[:port], and nothing more",
        ),
        (
            "azure://orders?administration_endpoint=https://gate/path",
            "administration_endpoint must be https://host",
        ),
        (
            f"azure://orders?administration_endpoint=https://u:{CANARY}@gate",
            "administration_endpoint must be https://host",
        ),
        (
            "azure://orders?administration_endpoint=http://gate.test:5300",
            "administration_endpoint is on 'gate.test' and without TLS",
        ),
        ("azure://orders?declare=true", "declare must be false: sending and receiving create"),
        ("azure://orders?conection_string=x", "did you mean 'connection_string'"),
        (
            f"azure://others?connection_string={option(WHOLE)}",
            f"namespace is 'others', but connection_string is for '{HOST}'",
        ),
        (
            f"azure://orders/other?connection_string={option(WHOLE + ';EntityPath=jobs')}",
            "queue is 'other', but connection_string is for 'jobs' only",
        ),
        (
            f"azure://?connection_string={option(EMULATOR)}&transport=websocket",
            "transport is websocket, which goes by TLS only",
        ),
        (
            f"azure://?connection_string={option(EMULATOR)}&verify=ca.pem",
            "verify means nothing to an emulator",
        ),
        (
            f"azure://?connection_string={option(EMULATOR)}&custom_endpoint=sb://x",
            "custom_endpoint means nothing to an emulator",
        ),
        (
            f"azure://?connection_string={option(EMULATOR.replace('127.0.0.1', 'bus.test'))}",
            "connection_string is for an emulator on 'bus.test': without TLS everybody",
        ),
    ],
)
def test_bad_urls(url: str, problem: str) -> None:
    assert problem in " | ".join(problems(url))


def test_all_problems_come_at_once() -> None:
    url = (
        f"azure://orders?connection_string={option(f'Endpoint=sb://x;SharedAccessKey={CANARY}')}"
        "&lock_duration=1000&sessions=some&verify=&sesions=true"
    )
    paths = {problem.rpartition(" @ ")[2] for problem in problems(url)}
    assert paths == {"connection_string", "lock_duration", "sessions", "verify", "sesions"}


def test_problems_between_fields_come_at_once_too() -> None:
    found = problems("azure://orders?prefetch=3&auth=connection_string&lock_duration=900")
    assert [problem.partition(" ")[0] for problem in found] == [
        "lock_duration",
        "connection_string",
    ]
    assert len(problems("azure://orders?prefetch=3&operation_timeout=0")) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connection_string", "text"),
        ("client_secret", "text"),
        ("custom_endpoint", 7),
        ("administration_endpoint", 7),
        ("verify", 7),
        ("namespace", 7),
        ("acceptors", True),
        ("lock_duration", True),
        ("lock_duration", "long"),
    ],
)
def test_values_of_other_types(field: str, value: Any) -> None:
    given: dict[str, Any] = {"namespace": "orders", field: value}
    with pytest.raises(ValidationError, match=field):
        AzureConfig(**given)


# --- what follows from what ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "default"),
        (f"client_id={CLIENT}", "managed_identity"),
        (f"client_id={CLIENT}&tenant_id=t", "default"),
        (f"client_id={CLIENT}&auth=default", "default"),
        ("authority=login.microsoftonline.us", "default"),
        ("authority=https://127.0.0.1:8443/", "default"),
        ("auth=managed_identity", "managed_identity"),
        (f"client_id={CLIENT}&tenant_id=t&client_secret=s", "client_secret"),
        (f"client_secret=s&connection_string={option(WHOLE)}", "connection_string"),
        (f"auth=default&connection_string={option(WHOLE)}", "default"),
    ],
)
def test_where_tokens_come_from(options: str, expected: str) -> None:
    assert read(f"azure://orders?{options}").auth == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AzureConfig(namespace="Orders"), HOST),
        (AzureConfig(namespace="orders.servicebus.chinacloudapi.cn"), None),
        (AzureConfig(namespace="orders", connection_string=Secret(WHOLE)), HOST),
        (AzureConfig(connection_string=Secret(EMULATOR)), "127.0.0.1"),
    ],
)
def test_the_whole_name_of_the_namespace(config: AzureConfig, expected: str | None) -> None:
    assert config.fully_qualified_namespace == (expected or config.namespace)


def test_defaults_that_follow_other_values() -> None:
    assert AzureConfig(namespace="orders").prefetch == 0
    assert AzureConfig(namespace="orders", sessions=False).prefetch == 100


def test_an_emulator_elsewhere_needs_a_word() -> None:
    elsewhere = EMULATOR.replace("127.0.0.1", "bus.test")
    config = AzureConfig(connection_string=Secret(elsewhere), insecure=True)
    assert config.said is not None
    assert (config.said.host, config.said.port) == ("bus.test", 5673)


ABROAD = "Endpoint=sb://{};SharedAccessKeyName=a;SharedAccessKey=b;UseDevelopmentEmulator=true"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"namespace": "orders"}, "https://orders.servicebus.windows.net"),
        (
            {"namespace": "orders", "custom_endpoint": "sb://gate.test:8443"},
            "https://gate.test:8443",
        ),
        ({"namespace": "orders", "custom_endpoint": "sb://gate.test"}, "https://gate.test"),
        (
            {
                "namespace": "orders",
                "custom_endpoint": "sb://gate.test:5671",
                "administration_endpoint": "https://gate.test",
            },
            "https://gate.test",
        ),
        ({"connection_string": Secret(WHOLE)}, f"https://{HOST}"),
        ({"connection_string": Secret(EMULATOR)}, "http://127.0.0.1:5673"),
        ({"connection_string": Secret(ABROAD.format("localhost"))}, "http://localhost:5300"),
        (
            {
                "connection_string": Secret(ABROAD.format("localhost:5672")),
                "administration_endpoint": "http://localhost:5300",
            },
            "http://localhost:5300",
        ),
        (
            {
                "namespace": "orders",
                "administration_endpoint": "http://gate.test",
                "insecure": True,
            },
            "http://gate.test",
        ),
    ],
)
def test_where_queues_are_created_and_counted(options: dict[str, Any], expected: str) -> None:
    assert AzureConfig(**options).administration_address == expected


def test_settings_become_options() -> None:
    config = RuntimeConfig(
        provider="azure:///jobs",
        azure=AzureSettings(
            connection_string=Secret(WHOLE),
            namespace="orders",
            tenant_id="contoso.com",
            client_id=CLIENT,
            client_secret=Secret(CANARY),
        ),
    )
    source = config.provider_source()
    factory, made = resolve_provider(source)
    assert isinstance(factory, AzureFactory)
    assert made.connection_string == Secret(WHOLE)
    assert (made.auth, made.queue, made.client_id) == ("connection_string", "jobs", CLIENT)
    assert CANARY not in f"{source} {source!r} {made!r} {made} {attrs.asdict(made)}"


# --- queue names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jobs", "a", "A.b_c-d/e9", "a" * 260])
def test_queue_names(name: str) -> None:
    assert AzureConfig(namespace="orders").wire_name(QueueName(name)) == name


@pytest.mark.parametrize("name", ["jobs-", "jobs/", "a.", "a_"])
def test_queue_names_that_service_bus_refuses(name: str) -> None:
    with pytest.raises(ValidationError, match="must end in a letter or a digit"):
        AzureConfig(namespace="orders").wire_name(QueueName(name))


def test_the_only_queue() -> None:
    config = AzureConfig(namespace="orders", queue="Jobs")
    assert config.wire_name(QueueName("jobs")) == "Jobs"
    with pytest.raises(ConfigurationError, match="'other' is not the queue 'Jobs'"):
        config.wire_name(QueueName("other"))


# --- connection strings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WHOLE, ConnectionString(host=HOST, key_name="worker", key=Secret(KEY))),
        (
            UNTIDY,
            ConnectionString(host=HOST, key_name="worker", key=Secret(KEY)),
        ),
        (
            f"Endpoint=sb://{HOST}/;SharedAccessSignature={SIGNATURE};EntityPath=a/b",
            ConnectionString(host=HOST, signature=Secret(SIGNATURE), queue="a/b"),
        ),
        (
            EMULATOR,
            ConnectionString(
                host="127.0.0.1", port=5673, key_name="a", key=Secret("b"), emulator=True
            ),
        ),
        (
            "Endpoint=sb://[::1]:9;SharedAccessKeyName=a;SharedAccessKey=b;UseDevelopmentEmulator=true",
            ConnectionString(host="[::1]", port=9, key_name="a", key=Secret("b"), emulator=True),
        ),
        (
            WHOLE + ";UseDevelopmentEmulator=false",
            ConnectionString(host=HOST, key_name="worker", key=Secret(KEY)),
        ),
    ],
)
def test_connection_strings(text: str, expected: ConnectionString) -> None:
    assert parse_connection_string(text) == expected


def test_an_emulator_may_have_an_address_of_ipv6() -> None:
    text = (
        "Endpoint=sb://[::1]:9;SharedAccessKeyName=a;SharedAccessKey=b;UseDevelopmentEmulator=true"
    )
    config = AzureConfig(connection_string=Secret(text))
    assert config.fully_qualified_namespace == "[::1]"
    assert config.administration_address == "http://[::1]:9"


ENDPOINT = "Endpoint must be sb://<namespace>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["Endpoint is missing", "SharedAccessKeyName and SharedAccessKey are missing"]),
        (KEY, ["part 1 has an unknown name", "Endpoint is missing"]),
        (f"{CANARY}", ["part 1 is not name=value", "Endpoint is missing"]),
        (
            WHOLE.replace("Name=", "Nam="),
            [
                "part 2 has an unknown name, did you mean SharedAccessKeyName?",
                "SharedAccessKeyName is missing, which belongs to SharedAccessKey",
            ],
        ),
        (
            WHOLE.replace("SharedAccessKey=", "SharedAccesKey="),
            ["did you mean SharedAccessKey?", "SharedAccessKey is missing, which belongs"],
        ),
        (WHOLE.replace("sb://", "https://"), [ENDPOINT]),
        (WHOLE.replace("sb://", ""), [ENDPOINT]),
        (WHOLE.replace(HOST, f"u:{CANARY}@{HOST}"), [ENDPOINT]),
        (WHOLE.replace(HOST, f"{HOST}/{CANARY}"), [ENDPOINT]),
        (WHOLE.replace(HOST, "[" + CANARY), [ENDPOINT]),
        (WHOLE.replace(HOST, "or_ders"), [ENDPOINT]),
        (WHOLE.replace(f"sb://{HOST}/", ""), ["Endpoint is empty"]),
        (WHOLE.replace(HOST, f"{HOST}:5671"), ["Endpoint has a port, which only an emulator's"]),
        (WHOLE.replace(HOST, "127.0.0.1:99999"), [ENDPOINT, "an emulator's sb://127.0.0.1:<port>"]),
        (f'"{WHOLE}"', ["it is in quotation marks: remove them"]),
        (f"'{WHOLE};UseDevelopmentEmulator=yes'", ["in quotation marks", "must be true or false"]),
        (WHOLE.replace(KEY, ""), ["SharedAccessKey is empty"]),
        (f"{WHOLE};SharedAccessKey={CANARY}2", ["SharedAccessKey is given more than once"]),
        (
            f"{WHOLE};SharedAccessSignature={SIGNATURE}",
            ["SharedAccessKey and SharedAccessSignature are both given: keep one"],
        ),
        (
            f"Endpoint=sb://{HOST};SharedAccessSignature=sig={CANARY}",
            ["SharedAccessSignature must be 'SharedAccessSignature sr=…&sig=…&se=…&skn=…'"],
        ),
        (
            f"Endpoint=sb://{HOST};SharedAccessSignature={SIGNATURE.replace('se=', 'nose=')}",
            ["SharedAccessSignature must be 'SharedAccessSignature sr=…&sig=…&se=…&skn=…'"],
        ),
        (
            f"Endpoint=sb://{HOST};SharedAccessSignature={SIGNATURE.replace('se=', 'se=soon')}",
            ["SharedAccessSignature has an se that is no whole number of seconds"],
        ),
        (f"{WHOLE};EntityPath=-{CANARY}", ["EntityPath is no name that a queue can have"]),
        (f"{WHOLE};EntityPath=", ["EntityPath is empty"]),
        (f"{WHOLE};UseDevelopmentEmulator=True", ["UseDevelopmentEmulator must be true or false"]),
        (
            f"Endpoint=http://x;SharedAccessKey={CANARY};{CANARY};EntityPath=$",
            [
                "part 3 is not name=value",
                ENDPOINT,
                "SharedAccessKeyName is missing",
                "EntityPath is no name",
            ],
        ),
    ],
)
def test_malformed_connection_strings(text: str, expected: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_connection_string(text)
    said = str(caught.value).removeprefix("connection_string: ").split("; ")
    assert [problem for problem in expected if not any(problem in one for one in said)] == []
    assert CANARY not in str(caught.value)
    assert KEY not in str(caught.value)


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)), st.text(";=:/@ ", max_size=3))
def test_a_damaged_connection_string_never_shows_the_key(start: int, length: int, put: str) -> None:
    text = WHOLE[:start] + put + WHOLE[start + length :]
    try:
        said = repr(parse_connection_string(text))
    except ValidationError as error:
        said = str(error)
    pieces = {KEY[at : at + 5] for at in range(len(KEY) - 4)}
    assert [piece for piece in pieces if piece in said] == []


# --- the factory ---------------------------------------------------------------------------------------


def test_the_factory() -> None:
    assert isinstance(FACTORY, ProviderFactory)
    assert resolve_provider("azure://orders") == (FACTORY, AzureConfig(namespace="orders"))
    assert resolve_provider(AzureConfig(namespace="orders"))[0] is FACTORY


def test_reading_a_url_loads_no_sdk() -> None:
    code = (
        "import sys\n"
        "from queue_runtime.providers import resolve_provider\n"
        "from queue_runtime.providers.azure import codec, errors\n"
        "_, config = resolve_provider('azure://orders?lock_duration=7')\n"
        "print(config.lock_duration, {'asyncio', 'azure', 'aiohttp'} & set(sys.modules))\n"
    )
    assert run_python(code) == ["7.0 set()"]


WITHOUT_SDK = """
import sys
sys.modules["azure"] = None  # as if nothing of it were installed

import trio
from queue_runtime.providers import open_provider
from queue_runtime.errors import ConfigurationError


async def main():
    try:
        async with open_provider("azure://orders"):
            pass
    except ConfigurationError as error:
        print(error)


trio.run(main)
"""


def test_a_missing_sdk_is_advice() -> None:
    (advice,) = run_python(WITHOUT_SDK)
    assert "provider 'azure' needs azure" in advice
    assert "pip install 'queue-runtime[azure]'" in advice
