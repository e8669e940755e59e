"""What happens to a message whose handler fails: tried again in its place, or set aside and sent back later.

Whatever happens to one message, those behind it in the same session wait, and other sessions go on.
"""

import attrs
import trio

from queue_runtime import (
    DeadLetter,
    Delivery,
    Jitter,
    Message,
    Outcome,
    Retry,
    RetryPolicy,
    SessionHandler,
    SupervisorConfig,
    open_client,
    open_supervisor,
)


@attrs.frozen
class Payment:
    amount: int


class Bank:
    """Stands for a service that fails twice before it accepts the first payment."""

    failures_left = 2
    card_is_valid = False

    async def charge(self, amount: int) -> None:
        if amount == 10 and self.failures_left:
            self.failures_left -= 1
            raise ConnectionError("the bank does not answer")


bank = Bank()


class Customer(SessionHandler):
    async def handle(self, delivery: Delivery) -> Outcome | None:
        payment = delivery.json(Payment)  # a body that does not fit is dead-lettered at once
        name = f"{delivery.session_id} pays {payment.amount}"
        if payment.amount == 13:
            # The handler knows that trying again will not help, until somebody does something about it.
            if not bank.card_is_valid:
                print(f"{name}: set aside")
                return DeadLetter("CardExpired", "ask the customer for another card")
        elif payment.amount == 40 and delivery.delivery_count == 1:
            print(f"{name}: not yet")
            return Retry(delay=0.2, reason="the account is being moved")  # a delay of our own
        try:
            await bank.charge(payment.amount)
        except ConnectionError:
            print(f"{name}: failed, attempt {delivery.delivery_count}")
            raise  # what is raised goes through the retry policy
        print(f"{name}: done")
        return None


# Delays of 0.05 s, 0.1 s, 0.2 s …, without the jitter that a real program should keep; four attempts in all.
CONFIG = SupervisorConfig(retry=RetryPolicy(initial=0.05, jitter=Jitter.NONE, max_attempts=4))

MESSAGES = [
    ("alice", b'{"amount": 10}'),
    ("alice", b'{"amount": 13}'),
    ("alice", b'{"amount": 20}'),
    ("bob", b'{"amount": 40}'),
    ("bob", b'{"amount": "a lot"}'),
    ("bob", b'{"amount": 50}'),
]


async def main() -> None:
    async with open_client("memory://") as client:
        for customer, body in MESSAGES:
            await client.send("payments", Message(body, session_id=customer))

        async with open_supervisor(client, "payments", Customer, config=CONFIG) as supervisor:
            await supervisor.wait_empty()

            print("\ndead letters:")
            dead_letters = await client.dead_letters("payments")
            for letter in await dead_letters.list():
                assert letter.dead_letter is not None
                print(
                    f"  {letter.message.session_id}: {letter.dead_letter.reason}: "
                    f"{letter.dead_letter.description}"
                )

            print("\nthe card is valid again:")
            bank.card_is_valid = True
            expired = [
                letter.sequence_number async for letter in dead_letters.find(reason="CardExpired")
            ]
            # They go back to their old place: before everything of their session that still waits. Later ones
            # that were handled meanwhile stay handled; halt_on_dead_letter=True would have kept them back.
            await dead_letters.redrive(expired)
            await supervisor.wait_empty()

        left = (await client.queue_stats("payments")).dead_lettered
        print(f"\nstill dead-lettered: {left}")


if __name__ == "__main__":
    trio.run(main)
