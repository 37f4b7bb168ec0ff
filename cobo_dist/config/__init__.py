"""The config: defaults < YAML file < `key.path=value` arguments; typed, frozen, checked as a whole.

schema       the sections that each package owns, put together; rules on several of them
loading      file and arguments -> Config
from_python  path, dict or Config and overrides -> Config
messages     every mistake in one line
help         the texts of `--help` about sections and keys
"""

from cobo_dist.config.from_python import config_of
from cobo_dist.config.help import describe_keys
from cobo_dist.config.loading import as_argument, load_config, read_value, variant_names
from cobo_dist.config.schema import VARIANTS, Config, all_keys, groups, owners_of

__all__ = [
    "VARIANTS",
    "Config",
    "all_keys",
    "as_argument",
    "config_of",
    "describe_keys",
    "groups",
    "load_config",
    "owners_of",
    "read_value",
    "variant_names",
]
