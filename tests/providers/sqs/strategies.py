"""Messages as hostile as they may be."""

from __future__ import annotations

from hypothesis import strategies as st

from queue_runtime.messages import Message, MessageId
from queue_runtime.providers.envelope import ENVELOPE, Extras
from queue_runtime.providers.wire_ids import GENERATED

from ..strategies import dead_letters, moments, printable

TOKEN = "0123456789abcdef" * 2

acceptable = st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff")
plain = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
marks = st.sampled_from(
    ["~t:", "~h:", "~n:", "~", "%", "%20", "~t:~t:", "~h:" + "0" * 64, GENERATED + TOKEN]
)
ids = st.one_of(
    st.text(printable, min_size=1, max_size=128),
    st.text(plain, min_size=1, max_size=128),
    st.text(printable, min_size=128, max_size=128),
    st.lists(st.one_of(marks, printable, plain), min_size=1, max_size=20).map(
        lambda pieces: "".join(pieces)[:128]
    ),
)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
names = st.one_of(
    st.text(printable, min_size=1, max_size=30),
    st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True),
    st.sampled_from(
        [ENVELOPE, "AWS.x", "amazon.y", "\u0131", "\u017f", "a..b", ".a", "a.", "x" * 256]
    ),
)
bodies = st.one_of(
    st.binary(max_size=60), texts.map(str.encode), st.sampled_from([b"", b"-", b"\0"])
)
messages = st.builds(
    Message,
    bodies,
    session_id=st.none() | ids,
    headers=st.dictionaries(names, texts, max_size=14),
    message_id=st.none() | ids,
    correlation_id=st.none() | ids,
    content_type=st.none() | ids,
    time_to_live=st.none() | st.floats(1e-6, 3e8),
    scheduled_at=st.none() | moments,
    deduplication_id=st.none() | ids,
)
extras_ = st.builds(
    Extras,
    message_id=st.none() | ids.map(MessageId),
    dead_letter=st.none() | dead_letters,
    enqueued_at=st.none() | moments,
    sequence_number=st.none() | st.integers(0, 10**38),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
