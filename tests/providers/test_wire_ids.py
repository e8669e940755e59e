"""Digests tell different ids apart, whatever stands in them."""

from __future__ import annotations

from queue_runtime.providers.wire_ids import GENERATED, GENERATED_ID, digest


def test_digests_keep_their_parts_apart() -> None:
    assert (
        len({digest("a-b", "c"), digest("a", "b-c"), digest("a-bc"), digest("a-b", "c", "")}) == 4
    )


def test_what_no_encoding_has_does_not_crash() -> None:
    assert digest("\ud800") == digest("?")


def test_generated_ids_are_told_from_others() -> None:
    assert GENERATED_ID.fullmatch(GENERATED + "0123456789abcdef" * 2)
    assert not GENERATED_ID.fullmatch(GENERATED + "orders")
