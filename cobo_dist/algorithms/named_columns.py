"""Columns of models that a key of the config names."""

from __future__ import annotations

from collections.abc import Sequence

from cobo_dist.algorithms.base import Clients, Columns
from cobo_dist.errors import ConfigError


def named_columns(
    clients: Clients, key: str, patterns: Sequence[str], *, others: bool = False
) -> Columns:
    """Return the columns of the parameters that match a pattern of `algorithm.KEY`, or of all `others`.

    Raises:
        ConfigError: a pattern matches nothing, or no column is left.
    """
    try:
        return clients.columns(*patterns, others=others)
    except ConfigError as error:
        raise ConfigError(f"algorithm.{key}={list(patterns)}: {error}") from None
