"""Stop on SIGTERM or Ctrl-C without losing or repeating work.

Run without arguments it sends SIGTERM to itself while it works, as a container platform would.
``queue-runtime run`` does all of this by itself.
"""

import os
import signal
import tempfile
from pathlib import Path

import trio

from queue_runtime import Delivery, Message, SupervisorConfig, open_client, open_supervisor

# How long handlers may finish. Keep it below the time the platform waits before it kills the process
# (Kubernetes: 30 s, docker stop: 10 s).
CONFIG = SupervisorConfig(drain_timeout=5.0)


at_work = trio.Event()


async def resize(delivery: Delivery) -> None:
    print(f"{delivery.session_id}: {delivery.body.decode()} begins")
    at_work.set()
    await trio.sleep(0.7)
    print(f"{delivery.session_id}: {delivery.body.decode()} is done")


async def terminate_soon() -> None:
    await at_work.wait()
    await trio.sleep(0.2)
    print("SIGTERM: no new work, finish what runs")
    os.kill(os.getpid(), signal.SIGTERM)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'images.db'}"
        async with open_client(url) as client:
            for picture in ("first", "second", "third"):
                for album in ("holidays", "family"):
                    await client.send("images", Message(picture.encode(), session_id=album))

            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with open_supervisor(client, "images", resize, config=CONFIG) as supervisor:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(terminate_soon)
                        # Everything a program has to do: wait for the signal, then leave the block.
                        async for _ in signals:
                            break

            done = supervisor.statistics()
            left = await client.queue_stats("images")
            print(
                f"completed {done.completed}, for the next process {left.depth}, "
                f"still locked {left.locked_sessions}"
            )


if __name__ == "__main__":
    trio.run(main)
