"""The actors of a supervisor, one per file; follow a delivery through them in this order.

``receiver`` asks the provider for batches, ``dispatcher`` routes them, ``session`` handles them in order,
``settlement`` reports the decisions, ``leases`` keeps the locks; ``breaker`` gates every call, ``drain``
holds the order of shutting down, ``supervisor`` puts all of them together.

Each actor receives its own small set of values; nobody shares mutable state but through the synchronous
methods that stand in the actor's class.
"""

__all__: list[str] = []
