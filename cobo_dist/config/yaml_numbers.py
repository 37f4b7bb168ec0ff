"""YAML with the numbers of YAML 1.2: plain PyYAML reads 1e-3 as text."""

from __future__ import annotations

import re

import yaml


class Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does."""


class Dumper(yaml.SafeDumper):
    """Quotes text that `Loader` would read as a number."""


_FLOAT = re.compile(
    r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN)$"
)
for _side in (Loader, Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
