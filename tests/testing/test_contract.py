"""The contract suite itself: it is two-sided, it catches providers that break the contract, it reports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import SkipTest

import attrs
import pytest
import trio
from trio.testing import MockClock

from queue_runtime.abc import DeadLetters, Lease, Provider, Receiver, ReceiverOptions, Sender
from queue_runtime.errors import QueueError, Unsupported
from queue_runtime.messages import (
    Capabilities,
    Delivery,
    Message,
    PeekedMessage,
    QueueName,
    QueueStats,
    SendResult,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.memory import MEMORY_FACTORY, MemoryConfig
from queue_runtime.testing import (
    Case,
    CaseResult,
    ContractEnvironment,
    ContractReport,
    ContractViolated,
    contract_cases,
    run_case,
    run_contract,
)
from queue_runtime.testing.contract import Bench, Verdict, skip
from queue_runtime.testing.contract.core import case as register
from queue_runtime.testing.simulation.ending_leases import EndingLeases

CASES = {case.name: case for case in contract_cases()}
FEATURES = tuple(field.name for field in attrs.fields(Capabilities) if field.type in (bool, "bool"))
SILENT = {"release_restores_count", "durable", "multi_process"}
"""Features without a call that could raise ``Unsupported`` where they are missing."""
OTHERWISE = {"keeps_empty_sessions"}
"""Features whose absence is another behaviour, proven where a provider behaves so."""


# --- a provider between the suite and the broker in memory ---------------------------------------------------


class Between(Provider):
    """Passes everything on; subclasses change something, or declare less."""

    name = "between"
    missing: frozenset[str] = frozenset()

    def __init__(self, inner: Provider) -> None:
        self.inner = inner
        features = {"provisioning": True} | dict.fromkeys(self.missing & set(FEATURES), False)
        self.capabilities = attrs.evolve(inner.capabilities, **features)

    def need(self, feature: str) -> None:
        if feature in self.missing:
            raise Unsupported(feature, self.name)

    async def open_sender(self, queue: QueueName) -> Sender:
        return BetweenSender(self, await self.inner.open_sender(queue))

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        return BetweenReceiver(self, await self.inner.open_receiver(queue, options))

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        self.need("dead_letters")
        return await self.inner.open_dead_letters(queue)

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        self.need("peek")
        return await self.inner.peek(queue, max_messages, after)

    async def purge(self, queue: QueueName) -> int:
        self.need("purge")
        return await self.inner.purge(queue)

    async def stats(self, queue: QueueName) -> QueueStats:
        self.need("stats")
        return await self.inner.stats(queue)

    async def provision(self, queue: QueueName) -> list[str]:
        self.need("provisioning")
        await self.inner.stats(queue)
        return [f"{queue}: kept"]

    async def aclose(self) -> None:
        await self.inner.aclose()

    # What subclasses spoil.

    async def send(self, sender: Sender, messages: Sequence[Message]) -> list[SendResult]:
        for message in messages:
            for feature, value in (
                ("sessions", message.session_id),
                ("scheduling", message.scheduled_at),
                ("time_to_live", message.time_to_live),
                ("deduplication", message.deduplication_id),
            ):
                if value is not None:
                    self.need(feature)
        return await sender.send(messages)

    async def receive(self, receiver: Receiver, most: int, timeout: float) -> list[Delivery]:
        return await receiver.receive(most, timeout)

    async def settle(
        self, receiver: Receiver, settlements: Sequence[Settlement]
    ) -> list[QueueError | None]:
        for settlement in settlements:
            if settlement.delay:
                self.need("abandon_delay")
            if settlement.action is SettlementAction.DEAD_LETTER:
                self.need("dead_letters")
            if settlement.halt:
                self.need("session_halt")
        return await receiver.settle(settlements)

    async def renew(self, receiver: Receiver, leases: Sequence[Lease]) -> list[QueueError | None]:
        self.need("lock_renewal")
        return await receiver.renew(leases)

    async def release(self, receiver: Receiver, leases: Sequence[Lease]) -> None:
        await receiver.release(leases)

    async def close_receiver(self, receiver: Receiver) -> None:
        await receiver.aclose()


class BetweenSender(Sender):
    def __init__(self, provider: Between, inner: Sender) -> None:
        self.provider, self.inner, self.provider_name = provider, inner, provider.name

    async def send(self, messages: Sequence[Message]) -> list[SendResult]:
        return await self.provider.send(self.inner, messages)

    async def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> list[bool]:
        self.provider.need("cancel_scheduled")
        return await self.inner.cancel_scheduled(sequence_numbers)

    async def aclose(self) -> None:
        await self.inner.aclose()


class BetweenReceiver(Receiver):
    def __init__(self, provider: Between, inner: Receiver) -> None:
        self.provider, self.inner, self.provider_name = provider, inner, provider.name
        self.lock_duration = inner.lock_duration
        self.max_delivery_count = inner.max_delivery_count

    async def receive(self, max_messages: int, timeout: float) -> list[Delivery]:
        return await self.provider.receive(self.inner, max_messages, timeout)

    async def settle(self, settlements: Sequence[Settlement]) -> list[QueueError | None]:
        return await self.provider.settle(self.inner, settlements)

    async def renew(self, leases: Sequence[Lease]) -> list[QueueError | None]:
        return await self.provider.renew(self.inner, leases)

    async def release(self, leases: Sequence[Lease]) -> None:
        await self.provider.release(self.inner, leases)

    async def accept(self, session_id: SessionId | None, timeout: float) -> Lease | None:
        self.provider.need("sessions")
        if session_id is not None:
            self.provider.need("accept_by_name")
        return await self.inner.accept(session_id, timeout)

    async def get_state(self, lease: Lease) -> bytes | None:
        self.provider.need("session_state")
        return await self.inner.get_state(lease)

    async def set_state(self, lease: Lease, state: bytes | None) -> None:
        self.provider.need("session_state")
        await self.inner.set_state(lease, state)

    async def aclose(self) -> None:
        await self.provider.close_receiver(self.inner)


async def environment(between: type[Between] = Between, **fields: Any) -> ContractEnvironment:
    """One broker in memory behind ``between``."""

    async def connect() -> Provider:
        config = MemoryConfig(lock_duration=1.0, max_delivery_count=3)
        return between(await MEMORY_FACTORY.open(config))

    # Under a mocked clock only the broker knows its time of day.
    provider, queue = await MEMORY_FACTORY.open(MemoryConfig()), QueueName("clock")
    await (await provider.open_sender(queue)).send([Message(b"")])
    [message] = await provider.peek(queue, 1)
    start = message.enqueued_at - timedelta(seconds=trio.current_time())
    small: dict[str, Any] = {
        "now": lambda: start + timedelta(seconds=trio.current_time()),
        "real_clock": False,
        "patience": 5.0,
        "case_timeout": 20.0,
        "tolerance": 0.05,
        "load_messages": 200,
        "load_consumers": 5,
    }
    return ContractEnvironment(open_provider=connect, **small | fields)


def run(between: type[Between], *names: str, **fields: Any) -> ContractReport:
    """The report on some cases (all by default)."""

    async def main() -> ContractReport:
        chosen = [CASES[name] for name in names] if names else None
        return await run_contract(await environment(between, **fields), chosen)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


# --- two sides -----------------------------------------------------------------------------------------------


def test_every_feature_is_proven_and_its_absence_too() -> None:
    proven = Counter(feature for case in CASES.values() for feature in case.requires)
    assert {feature for feature in FEATURES if proven[feature]} == set(FEATURES)
    lacked = {case.lacks for case in CASES.values()} - {None}
    assert lacked == set(FEATURES) - SILENT


def test_a_provider_that_declares_everything_keeps_the_whole_contract() -> None:
    report = run(Between)
    assert report.ok, str(report)
    assert len(report.of(Verdict.PASSED)) > 110


class Nothing(Between):
    missing = frozenset(FEATURES)


class SessionsOnly(Between):
    missing = frozenset(FEATURES) - {"sessions", "dead_letters", "keeps_empty_sessions"}


@pytest.mark.parametrize("between", [Nothing, SessionsOnly])
def test_a_provider_that_declares_little_keeps_its_contract(between: type[Between]) -> None:
    report = run(between)
    assert report.ok, str(report)
    passed = {result.case.lacks for result in report.of(Verdict.PASSED)} - {None}
    expected = between.missing - SILENT
    if between is Nothing:  # without sessions there is no lease to ask for these
        expected -= {"accept_by_name", "session_state", "session_halt", "keeps_empty_sessions"}
    assert passed == expected
    for result in report.results:
        if set(result.case.requires) & between.missing:
            assert result.verdict is Verdict.SKIPPED


@pytest.mark.parametrize("feature", sorted(set(FEATURES) - SILENT - OTHERWISE))
def test_a_feature_that_works_undeclared_is_caught(feature: str) -> None:
    class Modest(Between):
        missing = frozenset({feature})

        def need(self, feature: str) -> None:
            """Never raises: what is declared missing works."""

    [lacking] = [case for case in CASES.values() if case.lacks == feature]
    report = run(Modest, lacking.name)
    assert [result.verdict for result in report.results] == [Verdict.FAILED]
    assert "expected Unsupported" in str(report)


# --- providers that break the contract -------------------------------------------------------------------------


class LosesTheCancelled(Between):
    """A checkpoint after the claim: what was claimed is forgotten when the caller is cancelled there."""

    async def receive(self, receiver: Receiver, most: int, timeout: float) -> list[Delivery]:
        deliveries = await receiver.receive(most, timeout)
        await trio.sleep(0.004)
        return deliveries


class WaitsTooLong(Between):
    async def receive(self, receiver: Receiver, most: int, timeout: float) -> list[Delivery]:
        return await receiver.receive(most, timeout + 0.5)


class NeverLooksWithoutTimeout(Between):
    async def receive(self, receiver: Receiver, most: int, timeout: float) -> list[Delivery]:
        if not timeout:
            await trio.lowlevel.checkpoint()
            return []
        return await receiver.receive(most, timeout)


class WaitsForItsTimeout(Between):
    async def receive(self, receiver: Receiver, most: int, timeout: float) -> list[Delivery]:
        await trio.sleep(timeout)
        return await receiver.receive(most, 0)


class Reverses(Between):
    async def receive(self, receiver: Receiver, most: int, timeout: float) -> list[Delivery]:
        return list(reversed(await receiver.receive(most, timeout)))


class AcknowledgesEverything(Between):
    async def settle(
        self, receiver: Receiver, settlements: Sequence[Settlement]
    ) -> list[QueueError | None]:
        return [None for _ in await receiver.settle(settlements)]


class RenewsInName(Between):
    async def renew(self, receiver: Receiver, leases: Sequence[Lease]) -> list[QueueError | None]:
        await trio.lowlevel.checkpoint()
        return [None for _ in leases]


class KeepsLeases(Between):
    async def release(self, receiver: Receiver, leases: Sequence[Lease]) -> None:
        await trio.lowlevel.checkpoint()


class KeepsLeasesWhenClosed(Between):
    async def close_receiver(self, receiver: Receiver) -> None:
        await trio.lowlevel.checkpoint()


class GenerousDeadline(Between):
    async def receive(self, receiver: Receiver, most: int, timeout: float) -> list[Delivery]:
        deliveries = await receiver.receive(most, timeout)
        for delivery in deliveries:
            delivery.lease.deadline += 0.5 * receiver.lock_duration
        return deliveries


def spoiled(change: Callable[[Message], Message]) -> type[Between]:
    class SpoilsMessages(Between):
        async def send(self, sender: Sender, messages: Sequence[Message]) -> list[SendResult]:
            return await sender.send([change(message) for message in messages])

    return SpoilsMessages


def sooner(message: Message) -> Message:
    if message.scheduled_at is None:
        return message
    return attrs.evolve(message, scheduled_at=message.scheduled_at - timedelta(seconds=0.3))


class SendsTwice(Between):
    """A retry without need: the message is there twice."""

    async def send(self, sender: Sender, messages: Sequence[Message]) -> list[SendResult]:
        await sender.send(messages)
        return await sender.send(messages)


class DropsTheLastOfABatch(Between):
    async def send(self, sender: Sender, messages: Sequence[Message]) -> list[SendResult]:
        results = await sender.send(messages[:-1] or messages)
        return results if len(results) == len(messages) else [*results, results[-1]]


class RequeuesAsRetry(Between):
    """The failed message is sent again and the old one completed: it goes to the end of its session."""

    def __init__(self, inner: Provider) -> None:
        super().__init__(inner)
        self.queues: dict[int, QueueName] = {}

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        receiver = await self.inner.open_receiver(queue, options)
        self.queues[id(receiver)] = queue
        return BetweenReceiver(self, receiver)

    async def settle(
        self, receiver: Receiver, settlements: Sequence[Settlement]
    ) -> list[QueueError | None]:
        answers: list[QueueError | None] = []
        for settlement in settlements:
            action = settlement.action
            if action is SettlementAction.ABANDON:
                sender = await self.inner.open_sender(self.queues[id(receiver)])
                await sender.send([settlement.delivery.message])
                action = SettlementAction.COMPLETE
            answers += await receiver.settle([attrs.evolve(settlement, action=action)])
        return answers


class ReleasesAsAbandon(Between):
    async def settle(
        self, receiver: Receiver, settlements: Sequence[Settlement]
    ) -> list[QueueError | None]:
        counted = {SettlementAction.RELEASE: SettlementAction.ABANDON}
        return await receiver.settle(
            [attrs.evolve(s, action=counted.get(s.action, s.action)) for s in settlements]
        )


class IgnoresTheDelay(Between):
    async def settle(
        self, receiver: Receiver, settlements: Sequence[Settlement]
    ) -> list[QueueError | None]:
        return await receiver.settle([attrs.evolve(s, delay=0.0) for s in settlements])


class IgnoresTheHalt(Between):
    async def settle(
        self, receiver: Receiver, settlements: Sequence[Settlement]
    ) -> list[QueueError | None]:
        return await receiver.settle([attrs.evolve(s, halt=False) for s in settlements])


class CompletesWhatIsDead(Between):
    async def settle(
        self, receiver: Receiver, settlements: Sequence[Settlement]
    ) -> list[QueueError | None]:
        lost = {SettlementAction.DEAD_LETTER: SettlementAction.COMPLETE}
        return await receiver.settle(
            [attrs.evolve(s, action=lost.get(s.action, s.action)) for s in settlements]
        )


class RedrivesBackwards(Between):
    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        return Backwards(self.inner, queue, await self.inner.open_dead_letters(queue))


class Backwards(DeadLetters):
    """Sends dead letters again, the last first, and never deletes them."""

    def __init__(self, provider: Provider, queue: QueueName, inner: DeadLetters) -> None:
        self.provider, self.queue, self.inner = provider, queue, inner

    async def peek(self, max_messages: int, after: int = 0) -> list[PeekedMessage]:
        return await self.inner.peek(max_messages, after)

    async def redrive(self, sequence_numbers: Collection[int] | None = None) -> int:
        sender = await self.provider.open_sender(self.queue)
        dead = await self.inner.peek(100)
        await sender.send([letter.message for letter in reversed(dead)])
        return len(dead)

    async def purge(self, sequence_numbers: Collection[int] | None = None) -> int:
        return await self.inner.purge(sequence_numbers)


class KeepsUnsaid(Between):
    """Says that its leases end with their last delivery, and keeps them."""

    missing = frozenset({"keeps_empty_sessions"})


class EndsUnsaid(Between):
    """Says that it keeps empty sessions, and lets them go."""

    def __init__(self, inner: Provider) -> None:
        super().__init__(EndingLeases(inner))
        self.capabilities = attrs.evolve(self.capabilities, keeps_empty_sessions=True)


class RenewsWhatEnded(RenewsInName):
    def __init__(self, inner: Provider) -> None:
        super().__init__(EndingLeases(inner))


class BringsTooMany(Between):
    def __init__(self, inner: Provider) -> None:
        super().__init__(inner)
        self.capabilities = attrs.evolve(self.capabilities, max_receive_messages=10)


class DividesASession(Between):
    """What overlapping calls bring of a session is divided among them."""

    def __init__(self, inner: Provider) -> None:
        super().__init__(inner)
        self.capabilities = attrs.evolve(self.capabilities, max_concurrent_receives=4)


FLAWS: list[tuple[type[Between], str]] = [
    (LosesTheCancelled, "receive.cancelled_at_any_moment"),
    (LosesTheCancelled, "receive.cancelled_keeps_the_order"),
    (WaitsTooLong, "receive.empty_at_the_timeout"),
    (NeverLooksWithoutTimeout, "receive.looks_once_without_a_timeout"),
    (WaitsForItsTimeout, "receive.returns_as_soon_as_there_is_something"),
    (Reverses, "ordering.in_send_order"),
    (Reverses, "load.many_sessions"),
    (Reverses, "ordering.rough_handling"),
    (AcknowledgesEverything, "receipts.settled_twice"),
    (AcknowledgesEverything, "receipts.foreign"),
    (AcknowledgesEverything, "receipts.forged"),
    (AcknowledgesEverything, "receipts.stale_after_a_redelivery"),
    (AcknowledgesEverything, "expiry.a_lock_expires_and_is_taken_over"),
    (RenewsInName, "expiry.a_renewed_lock_holds"),
    (RenewsInName, "expiry.a_released_lease_cannot_be_renewed"),
    (KeepsLeases, "sessions.released_to_whoever_waits"),
    (KeepsLeasesWhenClosed, "sessions.closing_gives_back_at_once"),
    (GenerousDeadline, "roundtrip.every_field"),
    (spoiled(lambda m: attrs.evolve(m, headers={})), "hostile.headers"),
    (spoiled(lambda m: attrs.evolve(m, body=m.body.strip())), "roundtrip.binary_bodies"),
    (spoiled(lambda m: attrs.evolve(m, time_to_live=None)), "expiry.expired_unseen"),
    (spoiled(lambda m: attrs.evolve(m, deduplication_id=None)), "deduplication.stored_once"),
    (spoiled(lambda m: attrs.evolve(m, message_id=None)), "hostile.message_ids"),
    (
        spoiled(lambda m: attrs.evolve(m, session_id=m.session_id and m.session_id.lower())),
        "hostile.session_ids",
    ),
    (spoiled(sooner), "scheduling.on_time"),
    (SendsTwice, "load.no_sessions"),
    (SendsTwice, "batches.a_full_batch"),
    (DropsTheLastOfABatch, "batches.a_full_batch"),
    (RequeuesAsRetry, "ordering.an_abandoned_message_is_next"),
    (RequeuesAsRetry, "ordering.head_and_tail_given_back"),
    (ReleasesAsAbandon, "ordering.releases_are_not_counted"),
    (ReleasesAsAbandon, "ordering.a_tail_is_not_burned"),
    (IgnoresTheDelay, "ordering.a_delay_holds_the_session"),
    (IgnoresTheHalt, "dead_letters.halted_until_redriven"),
    (CompletesWhatIsDead, "dead_letters.by_word"),
    (RedrivesBackwards, "dead_letters.redriven_in_order"),
    (KeepsUnsaid, "sessions.keeps_empty_sessions"),
    (KeepsUnsaid, "expiry.a_settled_message_has_no_lease"),
    (EndsUnsaid, "sessions.held_although_empty"),
    (EndsUnsaid, "sessions.a_lease_is_kept"),
    (EndsUnsaid, "expiry.a_settled_message_has_no_lease"),
    (RenewsWhatEnded, "sessions.keeps_empty_sessions"),
    (BringsTooMany, "receive.more_is_asked_for_than_a_call_brings"),
    (DividesASession, "receive.calls_side_by_side"),
]


@pytest.mark.parametrize(("flawed", "name"), FLAWS, ids=[f"{f.__name__}-{n}" for f, n in FLAWS])
def test_a_broken_provider_is_caught(flawed: type[Between], name: str) -> None:
    report = run(flawed, name)
    assert [result.verdict for result in report.results] == [Verdict.FAILED], str(report)
    assert not report.ok


# --- running and reporting ---------------------------------------------------------------------------------------


def of(function: Callable[[Bench], Awaitable[None]], *requires: str, waits: bool = False) -> Case:
    return Case("topic.name", function, "a case of this test", requires, waits=waits)


def judge(case: Case, **fields: Any) -> CaseResult:
    async def main() -> ContractReport:
        return await run_contract(await environment(**fields), [case])

    [result] = trio.run(main, clock=MockClock(autojump_threshold=0)).results
    return result


async def nothing(bench: Bench) -> None:
    await trio.sleep(1.0)


async def skipping(bench: Bench) -> None:
    skip("for no reason")


async def failing(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise ContractViolated("expected this, got that")


def test_verdicts() -> None:
    passed, skipped, failed = judge(of(nothing)), judge(of(skipping)), judge(of(failing))
    assert (passed.verdict, passed.error) == (Verdict.PASSED, None)
    assert passed.seconds == pytest.approx(1.0)
    assert skipped.verdict is Verdict.SKIPPED
    assert str(skipped).endswith("topic.name: for no reason")
    assert failed.verdict is Verdict.FAILED
    assert isinstance(failed.error, ContractViolated)
    assert str(failed).endswith("topic.name: ContractViolated: expected this, got that")


def test_a_case_that_hangs_fails() -> None:
    async def hang(bench: Bench) -> None:
        await trio.sleep_forever()

    result = judge(of(hang), case_timeout=5.0)
    assert result.verdict is Verdict.FAILED
    assert isinstance(result.error, trio.TooSlowError)


def test_what_a_case_opened_is_closed_although_it_failed() -> None:
    opened: list[Any] = []

    async def open_and_fail(bench: Bench) -> None:
        provider = await bench.connect()
        opened.extend((provider, await bench.receiver(provider), await bench.sender()))
        raise ContractViolated("after opening")

    async def main() -> None:
        with pytest.raises(ContractViolated):
            await run_case(of(open_and_fail), await environment())
        provider, receiver, sender = opened
        with pytest.raises(trio.ClosedResourceError):
            await receiver.receive(1, 0)
        with pytest.raises(trio.ClosedResourceError):
            await sender.send([])
        with pytest.raises(trio.ClosedResourceError):
            await provider.open_sender(QueueName("q"))

    trio.run(main)


def test_a_skipped_case_is_a_skipped_test() -> None:
    async def main() -> None:
        await run_case(of(skipping), await environment())

    with pytest.raises(pytest.skip.Exception, match="for no reason"):
        trio.run(main)


def test_without_pytest_a_skipped_case_raises_skip_test() -> None:
    program = """
import sys, trio, unittest
from queue_runtime.providers.memory import MEMORY_FACTORY, MemoryConfig
from queue_runtime.testing import ContractEnvironment, contract_cases, run_case
[case] = [case for case in contract_cases() if case.name == "queues.peek"]
environment = ContractEnvironment(open_provider=lambda: MEMORY_FACTORY.open(MemoryConfig()))
try:
    trio.run(run_case, case, environment)
except unittest.SkipTest as skipped:
    print(skipped, "pytest" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "peek is declared False"


def test_waiting_cases_run_side_by_side_and_the_others_alone() -> None:
    busy: set[Case] = set()
    most: Counter[bool] = Counter()

    def watched(waits: bool) -> Case:
        async def wait(bench: Bench) -> None:
            busy.add(case)
            most[waits] = max(most[waits], len(busy))
            await trio.sleep(1.0)
            busy.discard(case)

        case = attrs.evolve(of(wait, waits=waits), name=f"topic.{len(names)}")
        names.append(case.name)
        return case

    names: list[str] = []
    cases = [watched(waits) for waits in (True, False, True, False, True, True)]
    shown: list[CaseResult] = []

    async def main() -> ContractReport:
        return await run_contract(await environment(), cases, concurrency=3, on_result=shown.append)

    report = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert report.ok
    assert most == {False: 1, True: 3}
    assert [result.case.name for result in report.results] == names
    assert {result.case.name for result in shown} == set(names)


def test_the_report_reads_well() -> None:
    case = of(failing)
    report = ContractReport(
        (
            CaseResult(case, Verdict.PASSED, 1.0),
            CaseResult(case, Verdict.FAILED, 2.0, ContractViolated("expected this, got that")),
            CaseResult(case, Verdict.SKIPPED, 0.0, SkipTest("why not")),
        )
    )
    assert not report.ok
    assert str(report).splitlines() == [
        "1 passed, 1 failed, 1 skipped",
        "failed    2.00 s  topic.name: ContractViolated: expected this, got that",
    ]
    assert not ContractReport(()).ok


def test_cases_are_described_and_unique() -> None:
    with pytest.raises(AssertionError, match="not fields of Capabilities"):
        register("telepathy")(nothing)
    with pytest.raises(AssertionError, match="does not say what it proves"):
        register()(skipping)
    assert all(case.description.endswith(".") for case in CASES.values())


def test_importing_the_suite_imports_no_test_framework() -> None:
    program = (
        "import sys, queue_runtime.testing\n"
        "print(sorted({'pytest', 'hypothesis', 'sqlite3'} & set(sys.modules)))"
    )
    # Coverage of the child would import modules before we look.
    env = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# --- the command line ----------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "queue_runtime.testing.contract", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_proves_a_provider(tmp_path: Path) -> None:
    done = command(f"sqlite:///{tmp_path}/broker.db", "--only", "roundtrip")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "roundtrip.every_field" in done.stdout
    assert "8 passed, 0 failed, 0 skipped" in done.stdout


def test_the_command_explains_what_it_skipped() -> None:
    done = command("memory://", "--only", "expiry.a_lock_expires")
    assert done.returncode == 1, "nothing was proven"
    assert "takes 30 s, which is longer than" in done.stdout
    assert "Give the URL a short lock" in done.stdout


def test_the_command_refuses_a_bad_url() -> None:
    done = command("nothing://")
    assert done.returncode == 1
    assert "no provider for 'nothing://'" in done.stderr
    assert "Traceback" not in done.stderr
