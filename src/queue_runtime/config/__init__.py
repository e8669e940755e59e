"""Configuration: frozen values, and the loader that fills them from defaults, files, environment and arguments.

* ``values``: what there is to configure, with defaults and units;
* ``presets``: named starting points;
* ``environment``: the variables that are read;
* ``loader``: puts the layers together, and explains where a value came from;
* ``options``: provider URLs and their options, for the providers;
* ``structuring``: plain values into attrs classes, every problem at once.
"""

from __future__ import annotations

from .environment import ENVIRONMENT as ENVIRONMENT
from .environment import Variable as Variable
from .loader import Explained as Explained
from .loader import explain as explain
from .loader import load_config as load_config
from .options import split_url as split_url
from .options import structure_options as structure_options
from .presets import PRESETS as PRESETS
from .presets import preset as preset
from .structuring import Text as Text
from .values import AwsSettings as AwsSettings
from .values import AzureSettings as AzureSettings
from .values import ClientConfig as ClientConfig
from .values import LoggingConfig as LoggingConfig
from .values import PresetName as PresetName
from .values import RuntimeConfig as RuntimeConfig
from .values import SettlementMode as SettlementMode
from .values import SupervisorConfig as SupervisorConfig

__all__ = [
    "ENVIRONMENT",
    "PRESETS",
    "AwsSettings",
    "AzureSettings",
    "ClientConfig",
    "Explained",
    "LoggingConfig",
    "PresetName",
    "RuntimeConfig",
    "SettlementMode",
    "SupervisorConfig",
    "Text",
    "Variable",
    "explain",
    "load_config",
    "preset",
    "split_url",
    "structure_options",
]
