"""What reports know of a run's algorithm: as the run recorded it, or as the algorithm of that name says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cobo_dist.algorithms.registry import ALGORITHMS, shown_as
from cobo_dist.storage.reading import SchemaError, read_record
from cobo_dist.storage.schema import Environment, Method


def read_method(env: Path, config: Mapping[str, object], clients: int) -> Method:
    """Return what env.json says of the algorithm.

    An earlier version did not record it. Then the algorithm of that name answers, if this package has it,
    else only its name is known.
    """
    try:
        recorded = read_record(env, Environment).method
    except (OSError, SchemaError):
        recorded = None
    return recorded or _of_registered(config, clients)


def _of_registered(config: Mapping[str, object], clients: int) -> Method:
    name = str(config["algorithm.name"])
    if name not in ALGORITHMS:
        return Method(title=name)
    section: Any = ALGORITHMS[name].section
    own = {key.removeprefix("algorithm."): value for key, value in config.items()}
    try:
        settings = section.model_validate(
            {key: own[key] for key in section.model_fields if key in own}
        )
    except ValidationError:  # values of another version: what does not depend on them
        settings = section()
    return Method.model_validate(shown_as(settings, clients))
