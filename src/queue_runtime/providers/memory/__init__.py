"""The embedded broker: in the process (``memory://``) or in a file (``sqlite://``), one set of semantics."""
