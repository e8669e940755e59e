"""Values for any provider to carry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from queue_runtime.messages import DeadLetterInfo

__all__ = ["dead_letters", "moments", "printable"]

printable = st.characters(exclude_categories=("Cc", "Cs"))
moments = st.integers(0, 2 * 10**15).map(
    lambda microseconds: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
)
_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
dead_letters = st.builds(
    DeadLetterInfo,
    reason=_texts,
    description=_texts,
    dead_lettered_at=moments,
    first_failed_at=st.none() | moments,
    delivery_count=st.integers(0, 10**9),
)
