"""A supervisor beside the other tasks of a trio program, started with ``nursery.start``.

The supervisor is one more task: cancelled with its nursery, and ready when ``start`` returns. Where nothing else
runs, ``async with open_supervisor(…)`` is shorter, and leaving its block drains.
"""

import trio

from queue_runtime import Delivery, Message, QueueClient, Supervisor, open_client


async def produce(client: QueueClient) -> None:
    """Stands for the rest of the program, such as a web server."""
    for number in range(30):
        thermometer = f"thermometer-{number % 3}"
        await client.send("readings", Message(b"%d" % (number * 7 % 10), session_id=thermometer))
        await trio.sleep(0.02)


async def report(supervisor: Supervisor) -> None:
    """Looks at the supervisor every now and then."""
    while True:
        await trio.sleep(0.25)
        now = supervisor.statistics()
        print(
            f"{now.completed} readings, {now.active_sessions} thermometers, healthy: {now.healthy}"
        )


async def handle(delivery: Delivery) -> None:
    """Without state, a function is handler enough."""
    if int(delivery.body) > 8:
        print(f"{delivery.session_id}: hot!")


async def main() -> None:
    async with open_client("memory://") as client, trio.open_nursery() as nursery:
        # Returns when the queue is open and messages are being received.
        supervisor: Supervisor = await nursery.start(client.supervise, "readings", handle)
        nursery.start_soon(report, supervisor)

        await produce(client)

        await supervisor.wait_empty()
        # Stop in good order: finish, settle, give the locks back. Cancelling the nursery without it would
        # be safe too: what was being handled then is delivered again.
        await supervisor.drain()
        print(f"drained after {supervisor.statistics().completed} readings")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
