"""The demo's handler: keeps the story of a pull request in its session's state, and gives a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, final
from urllib.parse import parse_qs

import attrs
import trio

from queue_runtime import Delivery, SerializationError, Session, SessionHandler

from .demo_events import FORM, failures

__all__ = ["ServiceUnavailable", "Story", "StoryTeller", "tell"]

_WORK: Final = 0.008
"""Seconds that stand for the calls a real bot would make."""
_KEPT: Final = 6
"""Chapters of a story that are kept."""

_VERDICTS: Final = {
    "merged": "merged",
    "closed": "closed",
    "reopened": "open",
    "opened": "open",
    "approved": "approved",
    "changes requested": "needs work",
    "converted to draft": "draft",
    "ready for review": "in review",
    "review requested": "in review",
    "deleted": "deleted",
    "archived": "archived",
}
"""What a chapter makes of the whole; others leave the verdict as it is."""


class ServiceUnavailable(Exception):
    """Something the handler needs did not answer; trying again helps."""


@final
@attrs.frozen
class Story:
    """What is kept with a session.

    Args:
        events: How many events made it.
        chapters: The last ones, in words.
        verdict: How it stands.
        last: Id of the last message: a message that comes twice changes nothing.
    """

    events: int = 0
    chapters: list[str] = attrs.field(factory=list)
    verdict: str = "active"
    last: str = ""

    @classmethod
    def load(cls, state: bytes | None) -> Story:
        """From what :meth:`dump` made; a new one from ``None``."""
        return cls() if state is None else cls(**json.loads(state))

    def dump(self) -> bytes:
        """As bytes for the session's state."""
        return json.dumps(attrs.asdict(self)).encode()

    def with_chapter(self, chapter: str, message_id: str) -> Story:
        """The story with one event more."""
        return Story(
            events=self.events + 1,
            chapters=[*self.chapters, chapter][-_KEPT:],
            verdict=_VERDICTS.get(chapter, self.verdict),
            last=message_id,
        )


@final
class StoryTeller(SessionHandler):
    """One per session.

    Args:
        reads_forms: Whether form-encoded payloads are understood; the demo's first version does not.
    """

    def __init__(self, *, reads_forms: bool = False) -> None:
        self._reads_forms = reads_forms
        self._session: Session | None = None
        self._story = Story()

    async def opened(self, session: Session) -> None:
        """Go on where whoever had the session before left off."""
        if session.id is not None:
            self._session = session
            self._story = Story.load(await session.state.get())

    async def handle(self, delivery: Delivery) -> None:
        """Add one event to the story."""
        chapter = tell(delivery.headers["event"], self._payload(delivery))
        await trio.sleep(_WORK)
        if delivery.delivery_count <= failures(delivery.message_id):
            raise ServiceUnavailable("the review service did not answer")
        if self._story.last != delivery.message_id:
            story = self._story.with_chapter(chapter, delivery.message_id)
            if self._session is not None:
                await self._session.state.set(story.dump())
            self._story = story

    def _payload(self, delivery: Delivery) -> Mapping[str, Any]:
        if delivery.content_type == FORM and self._reads_forms:
            form = parse_qs(delivery.body.decode(), strict_parsing=True)
            payload = json.loads(form["payload"][0])
        else:
            payload = delivery.json()
        if not isinstance(payload, Mapping):
            raise SerializationError("the payload is not an object")
        return payload


def tell(event: str, payload: Mapping[str, Any]) -> str:
    """An event in a few words."""
    action = payload.get("action")
    words = action.replace("_", " ") if isinstance(action, str) else ""
    match event:
        case "pull_request":
            request = payload.get("pull_request")
            merged = isinstance(request, Mapping) and request.get("merged")
            return "merged" if words == "closed" and merged else words or "changed"
        case "pull_request_review":
            review = payload.get("review")
            state = review.get("state") if isinstance(review, Mapping) else None
            return state.replace("_", " ") if isinstance(state, str) else "reviewed"
        case (
            "issue_comment"
            | "commit_comment"
            | "discussion_comment"
            | "pull_request_review_comment"
        ):
            return f"comment {words}"
        case "issues" | "discussion" | "repository":
            return words or "changed"
        case _:
            return f"{event.replace('_', ' ')} {words}".rstrip()
