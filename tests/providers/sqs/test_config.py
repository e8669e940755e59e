"""What URLs say, what is refused and why, and how queues are called; that nothing loads the SDK too early."""

from __future__ import annotations

from typing import Any

import pytest

from queue_runtime.abc import ProviderFactory
from queue_runtime.config import AwsSettings, RuntimeConfig
from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.messages import QueueName
from queue_runtime.providers import resolve_provider
from queue_runtime.providers.sqs import FACTORY, SqsConfig, SqsFactory
from queue_runtime.providers.sqs.config import QueueAddress, parse_queue_url
from queue_runtime.secret import Secret

from ...fresh_python import run_python

CANARY = "canary7Zq"
ROLE = "arn:aws:iam::123456789012:role/worker"
QUEUE_URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders.fifo"
LOCAL = "http://localhost:4566/000000000000/orders"

EVERYTHING = (
    "sqs://?access_key_id=a&secret_access_key=b%2B/&session_token=c&lock_duration=43200&wait_time=0"
    "&max_message_bytes=262144&max_connections=2&connect_timeout=0.5&read_timeout=3&declare=false"
    "&dead_letter_queue=bad.fifo&holding_queue=later.fifo&insecure=yes&endpoint_url=http://sqs.test"
)

read = FACTORY.config_from_url


# --- URLs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqs://", SqsConfig()),
        ("SQS:///", SqsConfig()),
        ("sqs://eu-central-1", SqsConfig(region="eu-central-1", queue_type="fifo")),
        ("sqs://?region=eu-central-1", SqsConfig(region="eu-central-1")),
        ("sqs://eu-central-1?region=eu-central-1", SqsConfig(region="eu-central-1")),
        (
            "sqs://eu-central-1/orders.fifo",
            SqsConfig(region="eu-central-1", queue="orders.fifo", queue_type="fifo"),
        ),
        (
            "sqs://eu-central-1/orders/",
            SqsConfig(region="eu-central-1", queue="orders", queue_type="standard"),
        ),
        ("sqs:///orders", SqsConfig(queue="orders")),
        ("sqs://?queue_type=standard", SqsConfig(queue_type="standard")),
        (
            f"sqs://?queue_url={QUEUE_URL}",
            SqsConfig(
                queue_url=QUEUE_URL, region="eu-central-1", queue="orders.fifo", queue_type="fifo"
            ),
        ),
        (
            f"sqs://local?queue_url={LOCAL}&endpoint_url=http://localhost:4566/",
            SqsConfig(
                queue_url=LOCAL,
                region="local",
                queue="orders",
                queue_type="standard",
                endpoint_url="http://localhost:4566/",
            ),
        ),
        (
            f"sqs://?role_arn={ROLE}&role_session_name=me&external_id=a/b:c&profile=work&account_id=123456789012",
            SqsConfig(
                role_arn=ROLE,
                role_session_name="me",
                external_id="a/b:c",
                profile="work",
                account_id="123456789012",
            ),
        ),
        (
            EVERYTHING,
            SqsConfig(
                access_key_id=Secret("a"),
                secret_access_key=Secret("b+/"),
                session_token=Secret("c"),
                lock_duration=43_200,
                wait_time=0,
                max_message_bytes=262_144,
                max_connections=2,
                connect_timeout=0.5,
                read_timeout=3.0,
                dead_letter_queue="bad.fifo",
                holding_queue="later.fifo",
                insecure=True,
                endpoint_url="http://sqs.test",
            ),
        ),
    ],
)
def test_urls(url: str, expected: SqsConfig) -> None:
    assert read(url) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "sqs://localhost:4566/orders",
            "'localhost:4566' where a region such as eu-central-1 belongs",
        ),
        ("sqs://sqs.eu-central-1.amazonaws.com/1/orders", "where a region"),
        (f"sqs://key:{CANARY}@eu-central-1/orders", "no user information"),
        ("sqs://eu-central-1?region=us-east-1", "'eu-central-1', and an option region 'us-east-1'"),
        ("sqs://?region=EU", "region is 'EU': expected a region such as eu-central-1 @ region"),
        ("sqs:///a/b", "queue is 'a/b': SQS takes 1 to 80 characters"),
        ("sqs:///a.b", "queue is 'a.b'"),
        ("sqs:///.fifo", "queue is '.fifo'"),
        ("sqs:///" + "a" * 81, "SQS takes 1 to 80"),
        ("sqs:///orders?queue_type=fifo", "queue is 'orders', but queue_type is fifo"),
        (
            "sqs:///orders.fifo?queue_type=standard",
            "names of FIFO queues end in .fifo, others do not",
        ),
        ("sqs://?queue_type=lifo", "'lifo' is unknown"),
        ("sqs://?declare=true", "create queues with queue-runtime provision @ declare"),
        (
            "sqs://?lock_duration=0",
            "lock_duration is 0: expected a whole number of seconds from 1 to 43200",
        ),
        ("sqs://?lock_duration=43201", "from 1 to 43200"),
        ("sqs://?lock_duration=1.5", "expected a whole number"),
        ("sqs://?wait_time=21", "from 0 to 20"),
        (
            "sqs://?read_timeout=20",
            "read_timeout is 20: it must be longer than the wait_time of 20",
        ),
        ("sqs://?connect_timeout=0", "connect_timeout is 0"),
        ("sqs://?max_message_bytes=1048577", "bytes from 1024 to 1048576"),
        ("sqs://?max_connections=1", "connections from 2"),
        (f"sqs://?access_key_id={CANARY}", "access_key_id is given without secret_access_key"),
        (f"sqs://?secret_access_key={CANARY}", "secret_access_key is given without access_key_id"),
        (f"sqs://?session_token={CANARY}", "session_token is given without access_key_id"),
        ("sqs://?access_key_id=", "access_key_id must be a Secret that is not empty"),
        (
            f"sqs://?access_key_id={CANARY}&secret_access_key={CANARY}&profile=p",
            "profile is given beside access_key_id",
        ),
        ("sqs://?external_id=me", "external_id is given without role_arn"),
        ("sqs://?role_arn=worker", "role_arn is 'worker': expected arn:aws:iam::"),
        ("sqs://?role_session_name=a", "role_session_name is 'a'"),
        ("sqs://?account_id=12", "account_id is '12': expected an account's 12 digits"),
        ("sqs://?profile=", "profile is '': expected some text"),
        ("sqs://?holding_queue=later", "holding_queue is 'later': it must be a FIFO queue"),
        ("sqs://?dead_letter_queue=bad", "dead_letter_queue is 'bad', but queue_type is fifo"),
        ("sqs://?endpoint_url=localhost:4566", "expected https://host"),
        ("sqs://?endpoint_url=https://[x", "endpoint_url is not a well-formed URL"),
        ("sqs://?endpoint_url=https://x/path", "expected no path"),
        ("sqs://?endpoint_url=https://x?a%3D1", "nothing may follow"),
        (f"sqs://?endpoint_url=https://me:{CANARY}@x", "endpoint_url has user information"),
        ("sqs://?endpoint_url=http://sqs.test", "without TLS everybody on the way"),
        ("sqs://?queue_url=https://x/orders", "expected https://host/account/name"),
        ("sqs://?queue_url=https://x/1/a.b", "expected https://host/account/name"),
        ("sqs://?queue_url=https://evil.test/1/q", "on host 'evil.test:443', which is not SQS"),
        (
            f"sqs://?queue_url={QUEUE_URL}&endpoint_url=https://evil.test",
            "queue_url is on host 'sqs.eu-central-1.amazonaws.com:443', but endpoint_url is 'evil.test:443'",
        ),
        (
            f"sqs://us-east-1?queue_url={QUEUE_URL}",
            "in region 'eu-central-1', but region is 'us-east-1'",
        ),
        (
            f"sqs:///other.fifo?queue_url={QUEUE_URL}",
            "ends in 'orders.fifo', but queue is 'other.fifo'",
        ),
        ("sqs://?queue_url=http://sqs.eu-central-1.amazonaws.com/1/q", "without TLS"),
        ("sqs://?colour=red", "'colour' is unknown"),
    ],
)
def test_urls_that_are_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(url)
    assert problem in str(caught.value)
    assert CANARY not in str(caught.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(
            "sqs://?lock_duration=0&wait_time=x&colour=red&read_timeout=1&access_key_id=a&role_arn=r"
        )
    paths = {problem.rpartition("@ ")[2] for problem in caught.value.problems}
    # read_timeout cannot be compared with a wait_time that is none.
    assert paths == {"lock_duration", "wait_time", "colour", "access_key_id", "role_arn"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lock_duration", True),
        ("lock_duration", "30"),
        ("read_timeout", True),
        ("connect_timeout", None),
        ("region", 5),
        ("queue", 5),
        ("queue_url", 5),
        ("endpoint_url", 5),
        ("profile", 5),
        ("access_key_id", "plain"),
        ("declare", None),
    ],
)
def test_values_of_other_types(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        SqsConfig(**{name: value})


# --- queue URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("sqs.eu-central-1.amazonaws.com", "eu-central-1"),
        ("SQS.EU-CENTRAL-1.AMAZONAWS.COM", "eu-central-1"),
        ("sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("sqs-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("sqs.eu-west-1.api.aws", "eu-west-1"),
        ("sqs.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        ("eu-west-1.queue.amazonaws.com", "eu-west-1"),
        ("queue.amazonaws.com", "us-east-1"),
        ("sqs.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
        ("sqs.eu-central-1.amazonaws.com.evil.test", None),
        ("sqs.eu-central-1.evil-amazonaws.com", None),
        ("evil.test", None),
    ],
)
def test_hosts_tell_the_region(host: str, region: str | None) -> None:
    address = parse_queue_url(f"https://{host}/123456789012/orders")
    assert address == QueueAddress(f"{host.lower()}:443", region, "123456789012", "orders")


def test_ports_count() -> None:
    assert parse_queue_url("http://localhost/queue/1/q").host == "localhost:80"
    with pytest.raises(ValidationError, match="but endpoint_url is 'localhost:4567'"):
        SqsConfig(queue_url=LOCAL, endpoint_url="http://localhost:4567")


@pytest.mark.parametrize("host", ["localhost", "sqs.localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_plaintext_to_this_machine(host: str) -> None:
    url = f"http://{host}:9324"
    assert SqsConfig(endpoint_url=url).endpoint_url == url


# --- names ---------------------------------------------------------------------------------------------


def test_names_in_sqs() -> None:
    fifo, standard = SqsConfig(), SqsConfig(queue_type="standard")
    assert (fifo.fifo, standard.fifo) == (True, False)
    for name in ("orders", "orders.fifo"):
        queue = QueueName(name)
        assert fifo.wire_name(queue) == "orders.fifo"
        assert fifo.dead_letter_name(queue) == "orders-dlq.fifo"
        assert fifo.holding_name(queue) == "orders-holding.fifo"
    queue = QueueName("orders")
    assert standard.wire_name(queue) == "orders"
    assert standard.dead_letter_name(queue) == "orders-dlq"
    assert standard.holding_name(queue) == "orders-holding.fifo"
    chosen = SqsConfig(dead_letter_queue="bad.fifo", holding_queue="later.fifo")
    assert (chosen.dead_letter_name(queue), chosen.holding_name(queue)) == (
        "bad.fifo",
        "later.fifo",
    )
    assert fifo.wire_name(QueueName("a" * 75)) == "a" * 75 + ".fifo"


def test_names_that_sqs_cannot_hold() -> None:
    fifo, standard = SqsConfig(), SqsConfig(queue_type="standard")
    with pytest.raises(ValidationError, match="is 81 characters long for SQS, the limit is 80"):
        fifo.wire_name(QueueName("a" * 76))
    for name in ("a.b", "a/b"):
        with pytest.raises(ValidationError, match="may only hold A-Z a-z 0-9 - _ in SQS"):
            standard.wire_name(QueueName(name))
    with pytest.raises(ValidationError, match="say queue_type=fifo"):
        standard.wire_name(QueueName("orders.fifo"))
    long = QueueName("a" * 75)
    with pytest.raises(ValidationError, match="choose one as dead_letter_queue"):
        fifo.dead_letter_name(long)
    with pytest.raises(ValidationError, match="choose one as holding_queue"):
        fifo.holding_name(long)


def test_a_queue_in_the_url_is_the_only_one() -> None:
    config = read("sqs://eu-central-1/orders.fifo")
    assert config.wire_name(QueueName("orders")) == "orders.fifo"
    with pytest.raises(ConfigurationError, match="leave the queue out of the URL"):
        config.wire_name(QueueName("bills"))


# --- selection, secrets, imports -------------------------------------------------------------------------


def test_the_provider_is_built_in() -> None:
    factory, config = resolve_provider("sqs://eu-central-1/orders")
    assert factory is FACTORY
    assert isinstance(factory, ProviderFactory)
    assert (type(factory), factory.config_type) == (SqsFactory, SqsConfig)
    assert resolve_provider(config) == (factory, config)


def test_aws_settings_become_options() -> None:
    aws = AwsSettings(
        region="eu-west-1",
        access_key_id=Secret("a"),
        secret_access_key=Secret(CANARY),
        session_token=Secret("c"),
    )
    source = RuntimeConfig(provider="aws", aws=aws).provider_source()
    _, config = resolve_provider(source)
    assert config == SqsConfig(
        region="eu-west-1",
        access_key_id=Secret("a"),
        secret_access_key=Secret(CANARY),
        session_token=Secret("c"),
    )
    assert CANARY not in repr(config) + str(config)


def test_reading_a_url_loads_no_sdk() -> None:
    code = (
        "import sys\n"
        "from queue_runtime.providers import resolve_provider\n"
        "_, config = resolve_provider('sqs://eu-central-1/orders?lock_duration=7')\n"
        "import queue_runtime.providers.sqs.batches, queue_runtime.providers.sqs.codec\n"
        "import queue_runtime.providers.sqs.errors\n"
        "print(config.lock_duration, {'asyncio', 'aiobotocore', 'botocore'} & set(sys.modules))\n"
    )
    assert run_python(code) == ["7 set()"]


WITHOUT_SDK = """
import sys
sys.modules["aiobotocore"] = sys.modules["botocore"] = None  # as if they were not installed

import trio
from queue_runtime.providers import open_provider
from queue_runtime.errors import ConfigurationError


async def main():
    try:
        async with open_provider("sqs://eu-central-1"):
            pass
    except ConfigurationError as error:
        print(error)


trio.run(main)
"""


def test_a_missing_sdk_is_advice() -> None:
    (advice,) = run_python(WITHOUT_SDK)
    assert "provider 'sqs' needs aiobotocore" in advice
    assert "pip install 'queue-runtime[sqs]'" in advice
