"""A pull-request bot: one handler per pull request, fed with GitHub webhooks.

Run it with ``python examples/github_bot.py``. It needs no broker and no network: the queue lives in memory.
"""

import attrs
import trio

from queue_runtime import (
    CompositeKey,
    Constant,
    Delivery,
    FirstOf,
    Message,
    SessionHandler,
    open_client,
    open_supervisor,
)

# Which messages belong together: all events of one pull request or, for events of no pull request, all of
# one repository. Messages that belong together are handled one at a time, in the order they were sent.
session_key = FirstOf(
    CompositeKey(
        "repository.owner.login",
        "repository.name",
        Constant("pull_request"),
        "pull_request.number",
    ),
    CompositeKey("repository.owner.login", "repository.name"),
)


# What the bot reads of a webhook. GitHub sends much more; fields that are not named here are ignored. A body
# that lacks one of these goes to the dead-letter queue with the path of every problem.
@attrs.frozen
class PullRequest:
    number: int
    title: str
    draft: bool = False


@attrs.frozen
class Review:
    state: str


@attrs.frozen
class Event:
    action: str
    pull_request: PullRequest | None = None
    review: Review | None = None


class Bot(SessionHandler):
    """The runtime makes one instance per active session, so plain attributes are safe to keep state in."""

    def __init__(self) -> None:
        self.approvals = 0

    async def handle(self, delivery: Delivery) -> None:
        event = delivery.json(Event)
        await trio.sleep(0.01)  # stands for a call of GitHub's API
        comment = self.react(event)
        if comment is not None:
            print(f"{delivery.session_id}: {comment}")

    def react(self, event: Event) -> str | None:
        match event:
            case Event(action="opened", pull_request=PullRequest(draft=True)):
                return "a draft; I will wait"
            case Event(action="opened" | "ready_for_review", pull_request=PullRequest(title=title)):
                return f"welcome! looking for reviewers of {title!r}"
            case Event(action="submitted", review=Review(state="approved")):
                self.approvals += 1
                return "approved twice: ready to merge" if self.approvals == 2 else None
            case Event(action="synchronize"):
                self.approvals = 0
                return "new commits: approvals start again"
            case Event(action="closed"):
                return "done, thank you"
        return None


REPOSITORY = {"name": "site", "owner": {"login": "octo"}}


def pull_request(number: int, action: str, **more: object) -> dict[str, object]:
    """A webhook's payload, as short as it can be."""
    details = {"number": number, "title": f"Change {number}", **more}
    return {"action": action, "repository": REPOSITORY, "pull_request": details}


def approval(number: int) -> dict[str, object]:
    return {**pull_request(number, "submitted"), "review": {"state": "approved"}}


WEBHOOKS = [
    pull_request(7, "opened"),
    pull_request(8, "opened", draft=True),
    approval(7),
    pull_request(7, "synchronize"),
    approval(7),
    pull_request(8, "ready_for_review"),
    approval(7),
    pull_request(8, "closed"),
    pull_request(7, "closed"),
    {"action": "created", "repository": REPOSITORY},  # about the repository itself
]


async def main() -> None:
    async with open_client("memory://") as client:
        # A web server would do this for every request it gets.
        for payload in WEBHOOKS:
            await client.send("webhooks", Message.json(payload, session_id=session_key(payload)))

        # Leaving the block finishes what runs, settles it and gives the locks back.
        async with open_supervisor(client, "webhooks", Bot) as supervisor:
            await supervisor.wait_empty()

        done = supervisor.statistics()
        print(f"{done.completed} webhooks in {done.sessions_opened} sessions")


if __name__ == "__main__":
    trio.run(main)
