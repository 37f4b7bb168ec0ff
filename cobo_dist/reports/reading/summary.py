"""Reads summary.json, which a finished run leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobo_dist.errors import ConfigError
from cobo_dist.reports.reading.events import or_nan
from cobo_dist.storage import schema
from cobo_dist.storage.reading import SchemaError, read_record


@dataclass(frozen=True)
class Summary:
    """What a finished run says of itself. Seconds and bytes are of the whole run, all ranks."""

    rounds: int
    seconds: float
    bytes_sent: float
    bytes_up: float | None  # of a client as a machine of its own, like `bytes_down`
    bytes_down: float | None
    final: Mapping[str, float]
    per_client: Mapping[int, Mapping[str, float]]
    components: Mapping[int, int]  # of the clients in the run at its end, in the graph of links
    link_accuracy: float | None
    link_f1: float | None
    adjusted_rand: float | None
    graph_correlation: float | None
    clusters_found: int | None


def read_summary(path: Path) -> Summary | None:
    """Return summary.json, None where a run has none yet. Raises `ConfigError` where it is malformed."""
    if not path.exists():
        return None
    try:
        found = read_record(path, schema.Summary)
    except SchemaError as error:
        raise ConfigError(f"{path}: {error}; remove it to report the run as unfinished") from None
    each = found.bytes_per_client
    return Summary(
        rounds=found.rounds,
        seconds=found.seconds,
        bytes_sent=found.bytes_sent,
        bytes_up=None if each is None else each.up,
        bytes_down=None if each is None else each.down,
        final=_scores(found.final),
        per_client={one.client: _of_client(one) for one in found.per_client},
        components={one.client: one.cluster for one in found.per_client if one.cluster is not None},
        # Runs of earlier versions have the accuracy by its earlier name, and not the others.
        link_accuracy=found.cluster_match if found.link_accuracy is None else found.link_accuracy,
        link_f1=found.link_f1,
        adjusted_rand=found.adjusted_rand,
        graph_correlation=found.graph_correlation,
        clusters_found=found.clusters_found,
    )


def _of_client(one: schema.ClientResult) -> dict[str, float]:
    """Return the results of a client; none for one that has left, which has no component either."""
    known = {name: value for name, value in one.model_dump().items() if value is not None}
    has_left = one.cluster is None and "cluster" in one.model_fields_set
    return _scores(known if has_left else one.model_dump())


def _scores(results: Mapping[str, Any]) -> dict[str, float]:
    others = set(schema.ClientResult.model_fields) | set(schema.EvalRow.model_fields)
    names = (*schema.METRICS, *(name for name in results if name not in others))
    return {name: or_nan(results[name]) for name in names if name in results}
