"""A session with state: an account's balance is kept by the broker, next to the account's messages.

The state is fenced by the session's lock: a consumer that lost the lock cannot overwrite what its successor
wrote. The queue is an SQLite file, so the state outlives the process; here two runs stand for two processes.
"""

import tempfile
from pathlib import Path

import trio

from queue_runtime import (
    CloseReason,
    Delivery,
    Message,
    Session,
    SessionHandler,
    open_client,
    open_supervisor,
)


class Account(SessionHandler):
    session: Session
    balance: int
    last: str

    async def opened(self, session: Session) -> None:
        """Called once, with the lock held, before the first message."""
        self.session = session
        stored = await session.state.get()
        balance, _, self.last = (stored or b"0 ").decode().partition(" ")
        self.balance = int(balance)
        print(f"{session.id}: opened with {self.balance}")

    async def handle(self, delivery: Delivery) -> None:
        # A message may come twice: after a crash between the next lines and the completion of the message.
        # The id of the last booking is stored together with the balance, so a second delivery is noticed.
        if delivery.message_id == self.last:
            return
        self.balance += int(delivery.body)
        self.last = delivery.message_id
        await self.session.state.set(f"{self.balance} {self.last}".encode())

    async def closed(self, reason: CloseReason) -> None:
        print(f"{self.session.id}: closed with {self.balance} ({reason.value})")


async def book(url: str, bookings: list[tuple[str, int]]) -> None:
    async with open_client(url) as client:
        for account, amount in bookings:
            await client.send("bookings", Message(str(amount).encode(), session_id=account))
        async with open_supervisor(client, "bookings", Account) as supervisor:
            await supervisor.wait_empty()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'accounts.db'}"
        print("first process")
        await book(url, [("alice", 100), ("bob", 50), ("alice", -30)])
        print("second process")
        await book(url, [("bob", 25), ("alice", 5)])


if __name__ == "__main__":
    trio.run(main)
