"""What a change of clusters costs each method (`task.drift`): regret, rounds until links are right again.

Shapes: n clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cobo_dist.formatting import INTERVAL_NOTE
from cobo_dist.maths.confidence import half_width
from cobo_dist.maths.graph import cluster_match, link_threshold
from cobo_dist.maths.weights import Weights
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import mean_over_clients, problem_metric, problem_split
from cobo_dist.reports.reading import Run
from cobo_dist.reports.reading.series import Series
from cobo_dist.reports.tables.table import Table
from cobo_dist.storage.schema import higher_is_better

RIGHT = 0.95
"""The link accuracy from which on links count as right."""

Curve = Callable[[Run], Series]


def drift_table(groups: Sequence[Group]) -> Table | None:
    """Return a row for each method; None where no client changes cluster."""
    if not any(run.switches for group in groups for run in group.runs):
        return None
    metric, split = problem_metric(groups), problem_split(groups)
    sign = 1.0 if higher_is_better(metric) else -1.0

    def curve(run: Run) -> Series:
        return {r: sign * value for r, value in mean_over_clients(run, split, metric).items()}

    bounds = [run for group in groups if group.method.role == "upper_bound" for run in group.runs]
    columns = {
        "regret": lambda run: regret(run, bounds, curve),
        "rounds until links are right": rounds_until_right,
        "false partings": false_partings,
    }
    text: list[list[str]] = []
    numbers: list[dict[str, object]] = []
    for group in groups:
        shown = dict(columns) if group.method.learns_weights else {"regret": columns["regret"]}
        found = {name: [of(run) for run in group.runs] for name, of in shown.items()}
        text.append([group.title, *(_show(found.get(name)) for name in columns)])
        numbers.append(
            {"method": group.label, "seeds": len(group.runs)}
            | {
                f"{name.replace(' ', '_')}_{what}": value
                for name in columns
                for what, value in _statistics(found.get(name)).items()
            }
        )
    return Table(
        caption="After clients changed cluster",
        text=pd.DataFrame(text, columns=["method", *columns]),
        notes=(_note(metric, split),),
        numbers=pd.DataFrame(numbers, dtype=object),
    )


def regret(run: Run, bounds: Sequence[Run], curve: Curve) -> float | None:
    """Return the area between the upper bound and a run, from the first change of clusters to the end.

    The bound is the best run of its seed among `bounds`, by area. None where there is none, or where fewer
    than two evaluations follow the change.
    """
    areas = [
        area
        for bound in bounds
        if bound.seed == run.seed and bound.switches == run.switches
        if (area := _area_between(curve(bound), curve(run), run)) is not None
    ]
    return max(areas, default=None)


def _area_between(above: Series, below: Series, run: Run) -> float | None:
    rounds = [
        r for r in sorted(above.keys() & below.keys()) if run.switches and r >= run.switches[0]
    ]
    if len(rounds) < 2:
        return None
    gaps = [above[r] - below[r] for r in rounds]
    return float(np.sum(np.diff(rounds) * (np.array(gaps[1:]) + gaps[:-1])) / 2)


def rounds_until_right(run: Run) -> float | None:
    """Return the rounds from the last change of clusters until `RIGHT` of the links are right; None: never.

    By the rows of rounds where they tell it, else by the snapshots of W.
    """
    if not run.switches:
        return None
    last = run.switches[-1]
    accuracy = link_accuracies(run) | dict(run.rounds.get("link_accuracy", {}))
    right = [r for r, value in accuracy.items() if r >= last and value >= RIGHT]
    return float(min(right) - last + 1) if right else None


def link_accuracies(run: Run) -> Series:
    """Return the link accuracy at each snapshot of W, by the true clusters of its round."""
    weights = run.weights
    if weights is None or weights.cells or weights.clusters is None:
        return {}
    level, found = link_threshold(weights.share), {}
    for r, matrix in zip(weights.rounds.tolist(), weights.weights, strict=True):
        whole, clusters = Weights.of_rows(range(len(matrix)), matrix), weights.clusters_at(r)
        assert clusters is not None, "clusters are known before the first change"
        found[r] = cluster_match(whole, clusters.tolist(), level)
    return found


def false_partings(run: Run) -> float | None:
    """Return how many pairs of one cluster, neither of which ever moves, lose their link after the change.

    Pairs that are linked in the last snapshot before the first change, and are not in some snapshot after it.
    """
    weights = run.weights
    if not run.switches or weights is None or weights.cells or weights.later_clusters is None:
        return None
    before = weights.rounds < run.switches[0]
    if not before.any() or before.all():
        return None
    clusters = np.asarray(weights.clusters)
    stays = (weights.later_clusters == clusters).all(axis=0)
    pairs = np.triu(clusters[:, None] == clusters, k=1) & np.outer(stays, stays)
    linked = _links(weights.weights, link_threshold(weights.share))
    return float((pairs & linked[before][-1] & ~linked[~before].all(axis=0)).sum())


def _links(weights: npt.NDArray[np.floating], level: float) -> npt.NDArray[np.bool_]:
    """Whether each two clients are linked both ways, at each snapshot. [k, n, n]"""
    return (weights >= level) & (weights.swapaxes(1, 2) >= level)


def _statistics(values: Sequence[float | None] | None) -> dict[str, object]:
    known = [value for value in values or () if value is not None]
    several = len(known) > 1
    return {
        "mean": float(np.mean(known)) if known else "",
        "std": float(np.std(known, ddof=1)) if several else "",
        "seeds": len(known),
    }


def _show(values: Sequence[float | None] | None) -> str:
    known = [value for value in values or () if value is not None]
    if not known:
        return "-"
    text = f"{np.mean(known):.3g}"
    if len(known) > 1:
        text += f" ± {half_width(float(np.std(known, ddof=1)), len(known)):.2g}"
    return (
        text
        if len(known) == len(values or ())
        else f"{text} ({len(known)} of {len(values or ())} seeds)"
    )


def _note(metric: str, split: str) -> str:
    return (
        f"Regret: area between the mean {split} {metric} of the upper bound that knows the clusters of each "
        "round and that of the method, from the first change to the last round; 1 is a whole round at a "
        "difference of 1. Rounds until links are right: from the last change until "
        f"{RIGHT:.0%} of client pairs agree with the clusters; -: never. False partings: pairs of clients "
        f"that never move and lose their link after the change. {INTERVAL_NOTE}"
    )
