"""The settings of a run: YAML -> frozen, validated objects. Unknown keys and impossible combinations are errors."""

from lucid.training.config.loading import from_dict, load
from lucid.training.config.only_steps import NEVER, only_steps
from lucid.training.config.run_config import RunConfig
from lucid.training.config.schema import json_schema
from lucid.training.config.sections import WATCHDOG_SECONDS, DataSettings

__all__ = ["NEVER", "WATCHDOG_SECONDS", "DataSettings", "RunConfig", "from_dict", "json_schema", "load", "only_steps"]
