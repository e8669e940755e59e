"""``queue-runtime bench``: speed and size, beside hand-written programs in the same run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

import attrs
import click
import trio

from queue_runtime import errors, load_config
from queue_runtime.secret import SecretUrl, mask_url
from queue_runtime.testing.benchmark import SCENARIOS, Report, Row, Scale, Workload

from .messages import table
from .options import run_async
from .output import Failure, console, exit_code_of, print_json

__all__ = ["bench"]

_USUAL: Final = ("throughput", "latency")
_SHORT: Final = Scale(
    duration=2.0,
    depth=50_000,
    idle_sessions=2_000,
    hot_messages=10_000,
    cold_sessions=200,
    switches=200,
    openings=5,
)


@click.command(
    epilog="""\b
Examples:
  queue-runtime bench
  queue-runtime bench --url sqlite:///bench.db --messages 10000 --sessions 50 --size 4096
  queue-runtime bench --scenario all --json
  queue-runtime bench --url sqs://eu-central-1 --provision --messages 5000 --rounds 3
  queue-runtime bench --url azure:// --messages 10000 --sessions 200 --rounds 3
  queue-runtime bench --url "azure://?sessions=false" --scenario throughput --scenario sending

\b
Scenarios:
  throughput  publish and drain, beside programs that do the same work; for SQS and Service Bus, the SDK alone
  latency     from when a message was due to be sent until its handler starts, at a fixed rate
  depth       cost per message at depth 1,000 and at --depth
  idle        busy sessions alone, and beside idle ones that hold their lock
  hot         latency of cold sessions, without and beside one hot session
  waiting     requests of an idle queue, and how fast calls that wait can be cancelled
  sending     message by message, from one task and from several
  switching   sessions of one message each; for Service Bus, beside the SDK's session receivers

Only ratios mean something: the figures of one run stand beside each other, those of two runs do not.
"""
)
@click.option("--url", default="memory://", show_default=True, metavar="URL", help="Provider.")
@click.option(
    "--messages", type=click.IntRange(100), default=20_000, show_default=True, metavar="N",
    help="Messages of a workload.",
)  # fmt: skip
@click.option(
    "--sessions", type=click.IntRange(1), default=100, show_default=True, metavar="S",
    help="Sessions they belong to, taking turns.",
)  # fmt: skip
@click.option(
    "--size", type=click.IntRange(0), default=1_024, show_default=True, metavar="B",
    help="Bytes of a body.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(1), default=500.0, show_default=True, metavar="R",
    help="Messages per second offered where latency is measured.",
)  # fmt: skip
@click.option(
    "--scenario", "scenarios", multiple=True, type=click.Choice([*SCENARIOS, "all"]),
    help="What to measure; may be repeated. Default: throughput and latency.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, metavar="N",
    help="How often programs that stand beside each other take turns.",
)  # fmt: skip
@click.option(
    "--provision", "may_create", is_flag=True,
    help="Create queues in a cloud account and delete them afterwards; on this machine that needs no leave.",
)  # fmt: skip
@click.option("--short", is_flag=True, help="Smaller numbers for all but throughput and sending.")
@click.option("--json", "as_json", is_flag=True, help="Output for machines.")
def bench(
    *,
    url: str,
    messages: int,
    sessions: int,
    size: int,
    rate: float,
    scenarios: tuple[str, ...],
    rounds: int,
    may_create: bool,
    short: bool,
    as_json: bool,
) -> None:
    """Measure throughput, latency and memory, with ratios to hand-written programs in the same run."""
    # With the environment's credentials, as every other command.
    source = load_config(overrides={"provider": SecretUrl(url)}).provider_source()
    chosen = list(SCENARIOS) if "all" in scenarios else list(scenarios or _USUAL)
    workload = Workload(messages, sessions, size)
    scale = attrs.evolve(_SHORT if short else Scale(), rate=rate, rounds=rounds)
    reports: list[Report] = run_async(
        _measure, url, source, chosen, workload, scale, may_create, as_json
    )
    if as_json:
        print_json(_summary(url, workload, reports))
        return
    view = console()
    for report in reports:
        rows = table("what", "figure", "", "ratio", "beside", "aim", right=("figure", "ratio"))
        for row in report.rows:
            rows.add_row(
                row.what,
                f"{row.value:,.0f}" if row.value >= 1_000 else f"{row.value:,.2f}",
                row.unit,
                "" if row.ratio is None else f"{row.ratio:.2f}",
                row.beside,
                row.aim,
            )
        view.print(
            f"\n{report.scenario}: {report.order_violations} order violations, "
            f"peak memory {report.peak_memory_mib:.0f} MiB"
        )
        view.print(rows)


async def _measure(
    url: str,
    source: SecretUrl,
    chosen: list[str],
    workload: Workload,
    scale: Scale,
    may_create: bool,
    as_json: bool,
) -> list[Report]:
    reports = []
    for scenario in chosen:
        if not as_json:
            click.echo(f"measuring {scenario} on {mask_url(url)} …", err=True)
        order = {
            "scenario": scenario,
            "url": source.reveal(),
            "workload": attrs.asdict(workload),
            "scale": attrs.asdict(scale),
            "may_create": may_create,
        }
        process = await trio.run_process(
            [sys.executable, "-m", "queue_runtime.testing.benchmark"],
            stdin=json.dumps(order).encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        if process.returncode:
            raise _failed(scenario, process)
        document = json.loads(process.stdout)
        document["rows"] = tuple(Row(**row) for row in document["rows"])
        reports.append(Report(**document))
    return reports


def _failed(scenario: str, process: subprocess.CompletedProcess[bytes]) -> Failure:
    """What became of a scenario that could not be measured, with the exit code of what was wrong."""
    if not process.stdout:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        return Failure(
            f"scenario {scenario} failed: {lines[-1].strip() if lines else process.returncode}"
        )
    said = json.loads(process.stdout)
    kind = getattr(errors, said["error"], errors.QueueError)
    message = said["message"]
    return Failure(
        f"scenario {scenario} failed: {message.partition(chr(10))[0] if said['problems'] else message}",
        code=exit_code_of(kind, transient=said["transient"]),
        kind=said["error"],
        problems=said["problems"],
    )


def _summary(url: str, workload: Workload, reports: list[Report]) -> dict[str, Any]:
    figures = {row.what: row for report in reports for row in reversed(report.rows)}

    def value(what: str) -> float | None:
        return figures[what].value if what in figures else None

    rows = [row for report in reports for row in report.rows]
    published = next((what for what in figures if what.startswith("publish, ")), "")

    def ratios(what: str) -> dict[str, float]:
        return {row.beside: row.ratio for row in rows if row.what == what and row.ratio is not None}

    latencies = {
        name: next(
            (r.value for w, r in figures.items() if w.startswith(f"latency {name} at")), None
        )
        for name in ("p50", "p95", "p99")
    }
    return {
        "url": mask_url(url),
        **attrs.asdict(workload),
        "published_per_second": value(published),
        "consumed_per_second": {
            "strict": value("runtime, strict"),
            "pipelined": value("runtime, pipelined"),
        },
        "ratios": {
            "publish": ratios(published),
            "strict": ratios("runtime, strict"),
            "pipelined": ratios("runtime, pipelined"),
        },
        "latency_ms": latencies,
        "calls_per_message": {
            "publish": value(f"calls: {published}"),
            "strict": value("calls: runtime, strict"),
            "pipelined": value("calls: runtime, pipelined"),
        },
        "order_violations": sum(report.order_violations for report in reports),
        "peak_memory_mib": max(report.peak_memory_mib for report in reports),
        "scenarios": [attrs.asdict(report) for report in reports],
    }
