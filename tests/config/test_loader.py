"""Layers, presets, environment, files: who wins, where a value came from, and every problem at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_runtime.config import (
    ENVIRONMENT,
    PRESETS,
    AzureSettings,
    RuntimeConfig,
    SettlementMode,
    SupervisorConfig,
    explain,
    load_config,
    preset,
)
from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.policies.breaker import BreakerConfig
from queue_runtime.secret import Secret, SecretUrl

CANARY = "canary-7Zq"


@attrs.frozen
class TypedProvider:
    host: str = "localhost"
    password: str = CANARY


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RuntimeConfig:
    return load_config(path, environ=environ or {}, overrides=overrides)


def problems(*args: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load(*args, **options)
    assert CANARY not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error)
        error = error.__context__ if not error.__suppress_context__ else error.__cause__
    return caught.value.problems


def origins(config: RuntimeConfig) -> dict[str, tuple[str, str]]:
    return {path: (value, origin) for path, value, origin in explain(config)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- layers -------------------------------------------------------------------------------------------


def test_defaults(folder: Path) -> None:
    config = load()
    assert config == RuntimeConfig()
    assert config.supervisor.settlement is SettlementMode.STRICT
    assert {origin for _, _, origin in explain(config)} == {"default"}


def test_each_layer_overrides_the_one_below(folder: Path) -> None:
    file = write(
        folder,
        "app.toml",
        """
        preset = "cost"
        queue = "from-file"
        [supervisor]
        max_in_flight = 7
        [supervisor.retry]
        initial = 9
        max_attempts = 9
        """,
    )
    config = load(
        file,
        {"QUEUE_NAME": "from-environment", "QUEUE_MAX_RETRY_ATTEMPTS": "8"},
        {"queue": "from-arguments"},
    )
    assert config.queue == "from-arguments"
    assert config.supervisor.max_in_flight == 7
    assert config.supervisor.retry == RetryPolicy(initial=9.0, max_delay=300.0, max_attempts=8)
    shown = origins(config)
    assert shown["queue"] == ("from-arguments", "arguments")
    assert shown["supervisor.retry.max_attempts"] == ("8", "environment QUEUE_MAX_RETRY_ATTEMPTS")
    assert shown["supervisor.retry.initial"] == ("9.0", str(file))
    assert shown["supervisor.retry.max_delay"] == ("300.0", "preset cost")
    assert shown["supervisor.retry.factor"] == ("2.0", "default")


def test_a_part_keeps_its_own_defaults_when_one_field_is_set(folder: Path) -> None:
    config = load(overrides={"client": {"retry": {"max_attempts": 2}}})
    assert config.client.retry == attrs.evolve(RuntimeConfig().client.retry, max_attempts=2)


def test_finished_objects_as_arguments(folder: Path) -> None:
    supervisor = SupervisorConfig(max_in_flight=3)
    config = load(
        environ={"QUEUE_RECEIVE_TIMEOUT_SECONDS": "9"}, overrides={"supervisor": supervisor}
    )
    assert config.supervisor is supervisor
    assert config.client.receive_timeout == 9.0
    assert origins(config)["supervisor.max_in_flight"] == ("3", "arguments")


def test_optional_parts_are_switched_on_and_off(folder: Path) -> None:
    on = write(folder, "on.toml", "[supervisor.handler_breaker]\nfailure_threshold = 2\n")
    off = write(folder, "off.toml", '[supervisor]\nhandler_breaker = "none"\n')
    assert load(on).supervisor.handler_breaker == BreakerConfig(failure_threshold=2)
    assert load(off).supervisor.handler_breaker is None


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.toml", 'queue = "jobs"\n[logging]\njson = true\n'),
        ("config.yaml", "queue: jobs\nlogging: {json: true}\n"),
    ],
)
def test_the_file_of_the_current_directory_is_found(folder: Path, name: str, text: str) -> None:
    write(folder, name, text)
    config = load()
    assert config.queue == "jobs"
    assert config.logging.json is True
    assert origins(config)["queue"] == ("jobs", name)


def test_two_files_in_the_current_directory_are_one_too_many(folder: Path) -> None:
    write(folder, "config.toml", "")
    write(folder, "config.yaml", "")
    assert problems() == ("both are here: name the one to use @ config.toml and config.yaml",)
    assert load(Path("config.yaml")) == RuntimeConfig()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", b"{}", "'.json' is not a known ending: expected .toml, .yaml or .yml @"),
        ("a.toml", b"queue = ", "is not valid TOML: "),
        ("a.toml", b"queue = " + b"9" * 5000, "is not valid TOML: Exceeds the limit"),
        ("a.yaml", f"a: [{CANARY}\nb: *{CANARY}".encode(), "is not valid YAML (at line 2, column "),
        ("a.yaml", b"queue: \x00", "is not valid YAML @"),
        ("a.yaml", f"a: *{CANARY}".encode(), "is not valid YAML (at line 1, column 4) @"),
        (
            "a.yaml",
            f"a: !!python/object:os.system {CANARY}".encode(),
            "is not valid YAML (at line 1",
        ),
        ("a.yaml", CANARY.encode(), "expected a table of settings at the top @"),
        ("a.yaml", b"[" * 100_000, "is nested too deeply @"),
        ("a.toml", b"queue = '\xff'", "is not UTF-8 text (byte 9) @"),
        ("a.toml", b"#" * 1_048_577, "is larger than 1048576 bytes, the most that is read @"),
        ("missing/a.toml", None, "cannot be read: No such file or directory @"),
    ],
)
def test_a_file_that_cannot_be_used(
    folder: Path, name: str, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    (found,) = problems(Path(name))
    assert found.startswith(problem)
    assert found.endswith(f"@ {name}")


def test_an_empty_yaml_file_sets_nothing(folder: Path) -> None:
    assert load(write(folder, "a.yml", "# nothing yet\n")) == RuntimeConfig()


def test_yaml_that_contains_itself_ends(folder: Path) -> None:
    file = write(folder, "a.yaml", "supervisor: &s\n  retry: *s\n")
    (problem,) = problems(file)
    assert problem.startswith("'retry' is unknown")
    assert problem.endswith("@ supervisor.retry.retry (" + str(file) + ")")


def test_all_problems_of_all_layers_at_once(folder: Path) -> None:
    file = write(
        folder,
        "bad.yaml",
        f"""
        preset: fast
        provider: "amqp://u:{CANARY}@h/?password={CANARY}"
        azure: {{connection_string: 12345, namspace: x}}
        supervizor: {{a: 1}}
        1: {{}}
        supervisor:
          max_in_flight: "12"
          settlement: strikt
          retry: {{initial: -1, max_attempts: 0, jiter: full}}
          idle_timeout: -3
          handler_timeout: 1.0e+99
          renew_fraction: 0.95
          breaker: {CANARY}
        logging: {{level: loud}}
        """,
    )
    found = problems(
        file,
        {"QUEUE_NAME": "a b", "QUEUE_RECEIVE_TIMEOUT_SECONDS": "soon"},
        {"dead_letter_queue": 5},
    )
    starts = {
        "preset": "'fast' is unknown; expected one of: cost, high_throughput",
        "azure.connection_string": "expected text, got a value of type int",
        "azure.namspace": "'namspace' is unknown, did you mean 'namespace'?",
        "supervizor": "'supervizor' is unknown, did you mean 'supervisor'?",
        "1": "1 is unknown; known: aws, azure, client",
        "supervisor.max_in_flight": "expected a whole number, got '12'",
        "supervisor.settlement": "'strikt' is unknown, did you mean 'strict'?",
        "supervisor.retry.initial": "initial is -1.0",
        "supervisor.retry.max_attempts": "max_attempts is 0",
        "supervisor.retry.jiter": "'jiter' is unknown, did you mean 'jitter'?",
        "supervisor.idle_timeout": "idle_timeout is -3.0: expected seconds, at least 0",
        "supervisor.handler_timeout": "handler_timeout is 1e+99: expected seconds, more than 0",
        "supervisor.renew_fraction": "renew_fraction is 0.95: expected a fraction of the lease",
        "supervisor.breaker": "expected a table, got text",
        "logging.level": "'loud' is unknown; expected one of: critical",
        "queue": "queue name 'a b' may only hold A-Z a-z 0",
        "client.receive_timeout": "expected a number, got 'soon'",
        "supervisor.receive_timeout": "expected a number, got 'soon'",
        "dead_letter_queue": "expected text, got 5",
    }
    by_path = {problem.rpartition(" @ ")[2].partition(" ")[0]: problem for problem in found}
    assert by_path.keys() == starts.keys()
    for path, start in starts.items():
        assert by_path[path].startswith(start)
    assert len(found) == 19
    assert f"supervisor.max_in_flight ({file})" in " ".join(found)
    assert "queue (environment QUEUE_NAME)" in " ".join(found)
    assert "dead_letter_queue (arguments)" in " ".join(found)


def test_one_problem_is_one_problem(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has 1 problem\n"):
        load(overrides={"queue": ""})


def test_a_value_where_another_layer_has_a_table(folder: Path) -> None:
    file = write(folder, "a.toml", "supervisor = 5\n")
    assert problems(file, {"QUEUE_MAX_RETRY_ATTEMPTS": "3"}) == (
        f"expected a table @ supervisor ({file})",
    )
    assert problems(file) == (f"expected a table, got a value of type int @ supervisor ({file})",)


def test_a_table_where_a_value_belongs(folder: Path) -> None:
    assert problems(overrides={"supervisor": {"max_in_flight": {"a": 1}}}) == (
        "expected a whole number, got a table @ supervisor.max_in_flight (arguments)",
    )


# --- presets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_changes_something(folder: Path, name: str) -> None:
    config = load(overrides={"preset": name})
    assert config.preset == name
    changed = [path for path, _, origin in explain(config) if origin == f"preset {name}"]
    assert len(changed) > 3
    assert attrs.evolve(config, preset=None) == load(overrides=preset(name))


def test_the_preset_of_the_arguments_goes_before_that_of_the_file(folder: Path) -> None:
    file = write(folder, "a.toml", 'preset = "testing"\n')
    assert load(file).provider == SecretUrl("memory://")
    config = load(file, overrides={"preset": "high_throughput"})
    assert config.preset == "high_throughput"
    assert config.provider is None
    assert config.supervisor.settlement is SettlementMode.PIPELINED


def test_an_unknown_preset(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="preset 'cots' is unknown, did you mean 'cost'"):
        preset("cots")
    (problem,) = problems(overrides={"preset": ["cost"]})
    assert problem.startswith(
        "expected one of high_throughput, low_latency, cost, testing, got a list"
    )


# --- environment --------------------------------------------------------------------------------------


def test_every_variable_sets_what_it_says(folder: Path) -> None:
    values = {
        "QUEUE_PROVIDER": "aws",
        "QUEUE_URL": "sqs://host",
        "QUEUE_RECEIVE_TIMEOUT_SECONDS": "11",
        "QUEUE_VISIBILITY_TIMEOUT_SECONDS": "300",
        "QUEUE_MAX_RETRY_ATTEMPTS": "3",
        "QUEUE_RETRY_BACKOFF_MS": "1500",
        "AZURE_SERVICE_BUS_CONNECTION_STRING": "text",
        "AZURE_SERVICEBUS_CONNECTION_STRING": "text",
    }
    environ = {variable.name: values.get(variable.name, "text") for variable in ENVIRONMENT}
    config = load(environ=environ)
    assert config == RuntimeConfig(
        provider="sqs://host",
        provider_options={"lock_duration": "300"},
        queue="text",
        dead_letter_queue="text",
        client=attrs.evolve(config.client, receive_timeout=11.0),
        supervisor=SupervisorConfig(
            receive_timeout=11.0, retry=RetryPolicy(initial=1.5, max_attempts=3)
        ),
        azure=AzureSettings(
            connection_string=Secret("text"),
            namespace="text",
            tenant_id="text",
            client_id="text",
            client_secret=Secret("text"),
        ),
        aws=config.aws,
    )
    assert config.aws.region == "text"
    assert config.aws.access_key_id == config.aws.secret_access_key == Secret("text")
    assert config.aws.session_token == Secret("text")


def test_the_environment_of_the_process_is_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("QUEUE_NAME", "from-process")
    assert load_config().queue == "from-process"


def test_empty_variables_count_as_not_set(folder: Path) -> None:
    environ = {variable.name: "" for variable in ENVIRONMENT}
    environ |= {f"{variable.name}_FILE": "" for variable in ENVIRONMENT}
    assert load(environ=environ) == RuntimeConfig()


def test_a_backoff_that_is_no_number(folder: Path) -> None:
    assert problems(environ={"QUEUE_RETRY_BACKOFF_MS": "1s"}) == (
        "expected a number, got '1s' @ supervisor.retry.initial (environment QUEUE_RETRY_BACKOFF_MS)",
    )


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file(folder: Path, ending: str) -> None:
    file = folder / "secret"
    file.write_bytes(f" {CANARY}\n{CANARY} {ending}".encode())
    config = load(environ={"AWS_SECRET_ACCESS_KEY_FILE": str(file)})
    assert config.aws.secret_access_key == Secret(f" {CANARY}\n{CANARY} ")
    assert origins(config)["aws.secret_access_key"] == (
        "***",
        "environment AWS_SECRET_ACCESS_KEY_FILE",
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "the file it names cannot be read: No such file or directory"),
        (b"\n", "the file it names is empty"),
        (b"\xff\xfe", "the file it names does not hold UTF-8 text"),
        (CANARY.encode() * 10_000, "the file it names holds more than 65536 characters"),
    ],
)
def test_a_secret_file_that_cannot_be_used(
    folder: Path, content: bytes | None, problem: str
) -> None:
    file = folder / CANARY  # a secret where the file's name belongs
    if content is not None:
        file.write_bytes(content)
    found = problems(environ={"AZURE_CLIENT_SECRET_FILE": str(file)})
    assert found == (f"{problem} @ AZURE_CLIENT_SECRET_FILE",)
    assert problems(environ={"AZURE_CLIENT_SECRET_FILE": "a\0b"}) != ()


def test_a_secret_and_its_file_are_one_too_many(folder: Path) -> None:
    found = problems(environ={"AWS_ACCESS_KEY_ID": CANARY, "AWS_ACCESS_KEY_ID_FILE": "/x"})
    assert found == ("set together with AWS_ACCESS_KEY_ID_FILE: keep one @ AWS_ACCESS_KEY_ID",)


def test_only_secrets_come_from_files(folder: Path) -> None:
    assert load(environ={"QUEUE_NAME_FILE": "/nowhere"}).queue is None


def test_the_two_names_of_the_connection_string_must_agree(folder: Path) -> None:
    found = problems(
        environ={
            "AZURE_SERVICE_BUS_CONNECTION_STRING": CANARY,
            "AZURE_SERVICEBUS_CONNECTION_STRING": f"{CANARY}2",
        }
    )
    (problem,) = found
    assert problem == (
        "differs from AZURE_SERVICEBUS_CONNECTION_STRING, which means the same: "
        "keep one @ AZURE_SERVICE_BUS_CONNECTION_STRING"
    )


# --- the provider -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "source"),
    [
        ({"QUEUE_PROVIDER": "memory"}, "memory://"),
        ({"QUEUE_PROVIDER": "AWS"}, "sqs://"),
        ({"QUEUE_PROVIDER": "sqlite:///a.db"}, "sqlite:///a.db"),
        ({"QUEUE_PROVIDER": "sqlite", "QUEUE_URL": "sqlite:///a.db"}, "sqlite:///a.db"),
        ({"QUEUE_URL": "sqlite:////a.db?declare=no"}, "sqlite:////a.db?declare=no"),
        ({"QUEUE_URL": "amqp://u:p%40@h:1/v%2F"}, "amqp://u:p%40@h:1/v%2F"),
        (
            {"QUEUE_URL": "memory://", "QUEUE_VISIBILITY_TIMEOUT_SECONDS": "60"},
            "memory://?lock_duration=60",
        ),
        (
            {
                "QUEUE_PROVIDER": "azure",
                "AZURE_SERVICEBUS_CONNECTION_STRING": "Endpoint=sb://x;Key=a+b/=",
                "AWS_REGION": "eu",
            },
            "azure://?connection_string=Endpoint%3Dsb%3A%2F%2Fx%3BKey%3Da%2Bb%2F%3D",
        ),
        (
            {"QUEUE_URL": "sqs://?region=us", "AWS_REGION": "eu", "AWS_ACCESS_KEY_ID": "id"},
            "sqs://?region=us&access_key_id=id",
        ),
        ({"QUEUE_PROVIDER": "memory", "AZURE_CLIENT_SECRET": "x"}, "memory://"),
    ],
)
def test_the_source_of_the_provider(folder: Path, environ: dict[str, str], source: str) -> None:
    assert load(environ=environ).provider_source() == SecretUrl(source)


def test_without_a_provider_there_is_no_source(folder: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="no provider: set provider in the file, QUEUE_URL"
    ):
        load().provider_source()


def test_names_that_contradict_the_url(folder: Path) -> None:
    found = problems(environ={"QUEUE_PROVIDER": "aws", "QUEUE_URL": f"memory://{CANARY}@"})
    assert found == ("is for 'memory', but QUEUE_PROVIDER says 'sqs': keep one @ QUEUE_URL",)


def test_a_url_that_cannot_be_understood(folder: Path) -> None:
    (problem,) = problems(environ={"QUEUE_URL": f"x://u:{CANARY}@h:port", "QUEUE_PROVIDER": "x"})
    assert problem == (
        "'x://***@h:port' is not a well-formed URL @ provider (environment QUEUE_URL)"
    )
    (problem,) = problems(overrides={"provider": f"Endpoint=sb://x/;SharedAccessKey={CANARY}"})
    assert problem.endswith("@ provider (arguments)")
    (problem,) = problems(overrides={"provider": "no name"})
    assert problem.startswith("'no name' is not a provider: expected a URL such as")
    (problem,) = problems(overrides={"provider": 5})
    assert problem.startswith("a provider is a URL, a name or a provider's configuration object")
    found = problems(overrides={"provider": "x://h?a=1&a=2&b"})
    assert len(found) == 2


def test_options_of_the_url_belong_to_its_layer(folder: Path) -> None:
    file = write(
        folder,
        "a.toml",
        """
        provider = "sqlite:///a.db?lock_duration=10&synchronous=normal"
        [provider_options]
        max_delivery_count = 3
        declare = false
        busy_timeout = 0.5
        default_time_to_live = "none"
        """,
    )
    config = load(file, {"QUEUE_VISIBILITY_TIMEOUT_SECONDS": "300"})
    assert config.provider_options == {
        "lock_duration": "300",
        "synchronous": "normal",
        "max_delivery_count": "3",
        "declare": "false",
        "busy_timeout": "0.5",
        "default_time_to_live": "none",
    }
    assert origins(config)["provider_options.lock_duration"] == (
        "300",
        "environment QUEUE_VISIBILITY_TIMEOUT_SECONDS",
    )
    same = load(file, overrides={"provider": "sqlite:///b.db?lock_duration=7"})
    assert same.provider_options["lock_duration"] == "7"
    assert same.provider_options["synchronous"] == "normal"
    other = load(file, overrides={"provider": "memory://"})
    assert other.provider_options == {
        "lock_duration": "10",
        "max_delivery_count": "3",
        "declare": "false",
    }
    typed = TypedProvider()
    own = load(file, overrides={"provider": typed})
    assert own.provider_options == {}
    assert own.provider_source() is typed


def test_an_option_beside_itself_in_the_url(folder: Path) -> None:
    found = problems(
        environ={"QUEUE_URL": "memory://?lock_duration=1", "QUEUE_VISIBILITY_TIMEOUT_SECONDS": "2"}
    )
    (problem,) = found
    assert problem == (
        "given in the URL's query too: keep one @ provider_options.lock_duration "
        "(environment QUEUE_VISIBILITY_TIMEOUT_SECONDS)"
    )


def test_options_must_be_simple(folder: Path) -> None:
    (problem,) = problems(overrides={"provider_options": {"a": [CANARY]}})
    assert problem == (
        "option 'a' must be text, a number or true/false, got list @ provider_options (arguments)"
    )
    (problem,) = problems(overrides={"provider_options": CANARY})
    assert problem == "expected a table, got text @ provider_options (arguments)"
    file = write(folder, "a.toml", 'provider = "x://h"\nprovider_options = 5\n')
    found = problems(file, overrides={"provider": "memory://"})
    assert found == (f"expected a table, got a value of type int @ provider_options ({file})",)


def test_options_beside_a_typed_provider(folder: Path) -> None:
    config = load(
        overrides={"provider": TypedProvider(), "provider_options": {"a": True, "b": None}}
    )
    with pytest.raises(ConfigurationError, match="options beside a TypedProvider") as caught:
        config.provider_source()
    assert caught.value.problems == (
        "unexpected @ provider_options.a",
        "unexpected @ provider_options.b",
    )


# --- what is shown ------------------------------------------------------------------------------------


def test_nothing_shows_a_secret(folder: Path) -> None:
    environ = {variable.name: CANARY for variable in ENVIRONMENT if variable.secret}
    environ["QUEUE_URL"] = f"azure://u:{CANARY}@host?sas={CANARY}&plain=1"
    overrides = {"provider_options": {"api_token": CANARY, "wrapped": Secret(CANARY)}}
    config = load(environ=environ, overrides=overrides)
    source = config.provider_source()
    assert source.reveal().count(CANARY) == 6
    shown = [
        repr(config),
        str(config),
        repr(attrs.asdict(config)),
        repr(source),
        json.dumps(explain(config)),
        repr(explain(attrs.evolve(config, provider=TypedProvider()))),
    ]
    for text in shown:
        assert CANARY not in text
    values = origins(config)
    assert values["provider"][0] == "azure://***@host"
    assert values["provider_options.plain"][0] == "1"
    assert values["provider_options.api_token"] == ("***", "arguments")


def test_a_typed_provider_is_explained_field_by_field(folder: Path) -> None:
    values = origins(load(overrides={"provider": TypedProvider(host="a\x1b[31mb")}))
    assert values["provider.host"] == ("a\\x1b[31mb", "arguments")
    assert values["provider.password"] == ("***", "arguments")


def test_values_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValidationError, match="max_in_flight is 0: expected a whole number from 1"):
        SupervisorConfig(max_in_flight=0)
    with pytest.raises(ValidationError, match="drain_timeout is nan"):
        SupervisorConfig(drain_timeout=float("nan"))
    with pytest.raises(ValidationError, match="close_timeout is True"):
        SupervisorConfig(close_timeout=True)
    with pytest.raises(ValidationError, match="more than 0 and at most 315360000, or none"):
        SupervisorConfig(handler_timeout=0)
    assert SupervisorConfig(drain_timeout=0, handler_timeout=1).handler_timeout == 1
    assert RuntimeConfig(provider_options={"u": SecretUrl(CANARY)}).provider_options == {
        "u": Secret(CANARY)
    }


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    [*(field.name for field in attrs.fields(RuntimeConfig)), "retry", "initial"]
)


@given(st.dictionaries(_KEYS, st.dictionaries(_KEYS, _JSON, max_size=3) | _JSON, max_size=4))
def test_whatever_stands_in_a_file_is_taken_or_refused(contents: dict[str, Any]) -> None:
    found: tuple[str, ...] = ()
    config = None
    try:
        config = load_config(environ={}, overrides=contents)
    except ConfigurationError as error:
        found = error.problems
    assert bool(found) == (config is None)
    assert all(problem.isprintable() for problem in found)
