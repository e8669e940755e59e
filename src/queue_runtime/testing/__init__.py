"""Tools for testing providers and programs: the invariant checker and the provider contract suite."""
