"""Configuration: frozen values, and the loader that fills them from defaults, files, environment and arguments."""

from __future__ import annotations

from .structuring import Text as Text
from .structuring import split_url as split_url
from .structuring import structure_options as structure_options

__all__ = ["Text", "split_url", "structure_options"]
