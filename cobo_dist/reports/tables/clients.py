"""How the clients of each method fare: the worst tenth, fairness, and which are worse off than alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cobo_dist.formatting import INTERVAL_NOTE
from cobo_dist.maths.confidence import half_width
from cobo_dist.reports.comparison import harmed, jain_index, worst_tenth
from cobo_dist.reports.metrics import percent
from cobo_dist.reports.reading import Run
from cobo_dist.reports.tables.scores import GroupResult, alone_values, client_values
from cobo_dist.reports.tables.table import Table
from cobo_dist.storage.schema import higher_is_better

_MAX_NAMED = 12  # clients that a cell lists


def clients_table(results: Sequence[GroupResult]) -> Table | None:
    """Return a row for each group whose clients are known one by one; None where there is no such group."""
    local = [run for one in results for run in one.group.runs if one.group.method.role == "alone"]
    text, numbers = [], []
    for one in results:
        finals = {
            run.seed: values
            for run in one.group.scored
            if len(values := client_values(run, one.split, one.metric)[1]) > 1
        }
        if not finals:
            continue
        higher, scale = higher_is_better(one.metric), percent(one.metric)
        each = {
            "worst_tenth": [scale * worst_tenth([*v.values()], higher) for v in finals.values()],
            "jain": [jain_index([*v.values()]) for v in finals.values()],
        }
        found = {} if one.group.method.role == "alone" else _harmed(one, local)
        text.append([one.group.title, *map(_show, each.values()), *_show_harmed(one, found)])
        numbers.append(
            {"method": one.group.label, "metric": one.metric}
            | {f"{name}_mean": float(np.mean(values)) for name, values in each.items()}
            | {
                "harmed_mean": float(np.mean([len(ids) for ids in found.values()]))
                if found
                else "",
                "harmed_ids": "; ".join(
                    f"seed {seed}: {' '.join(map(str, ids))}" for seed, ids in found.items()
                ),
                "clients": max(map(len, finals.values())),
                "seeds": len(finals),
            }
        )
    if not text:
        return None
    metric = results[0].metric
    unit = f"{metric} %" if metric == "accuracy" else metric
    headings = ["method", f"worst 10% ({unit})", "Jain's index", "harmed", "harmed clients"]
    return Table(
        caption="How clients fare",
        text=pd.DataFrame(text, columns=headings),
        notes=(_note(results[0]),),
        numbers=pd.DataFrame(numbers, dtype=object),
    )


def _harmed(one: GroupResult, local: Sequence[Run]) -> Mapping[int, list[int]]:
    """The clients that are worse off than alone, by seed, where there is a run of Local to compare with."""
    higher, found = higher_is_better(one.metric), {}
    for run in one.group.scored:
        alone = alone_values(run, one.metric, one.split, local)
        own = client_values(run, one.split, one.metric)[1]
        ids = None if alone is None else harmed(own, alone, higher)
        if ids is not None:
            found[run.seed] = ids
    return found


def _show(values: Sequence[float]) -> str:
    text = f"{np.mean(values):.3g}"
    if len(values) < 2:
        return text
    return f"{text} ± {half_width(np.std(values, ddof=1), len(values)):.2g}"


def _show_harmed(one: GroupResult, found: Mapping[int, list[int]]) -> list[str]:
    """The mean number of harmed clients, and each of them with the number of seeds in which it is."""
    if not found:
        return ["-", "-"]
    mean = np.mean([len(ids) for ids in found.values()])
    counts: dict[int, int] = {}
    for ids in found.values():
        for i in ids:
            counts[i] = counts.get(i, 0) + 1
    names = _names(one)
    order = sorted(counts, key=lambda i: (-counts[i], i))
    listed = [f"{names.get(i, i)}" + (f" ({counts[i]})" if len(found) > 1 else "") for i in order]
    if len(listed) > _MAX_NAMED:
        listed = [*listed[:_MAX_NAMED], f"and {len(listed) - _MAX_NAMED} more"]
    return [f"{mean:.3g}", ", ".join(listed) or "none"]


def _names(one: GroupResult) -> Mapping[int, str]:
    """The clients' names, where they have any."""
    weights = next((run.weights for run in one.group.runs if run.weights is not None), None)
    return dict(enumerate(weights.names)) if weights is not None else {}


def _note(one: GroupResult) -> str:
    worst = "lowest" if higher_is_better(one.metric) else "highest"
    return (
        f"Worst 10%: mean {one.metric} of the tenth of the clients, rounded up, with the {worst} one; "
        f"{INTERVAL_NOTE} Jain's index of the clients' {one.metric}: 1 if all have the same, 1/n if one has "
        "all. "
        "Harmed: clients that do worse than in the run of Local with the same seed, rounds and clients, mean "
        "over seeds; in parentheses, with how many seeds. -: no such run."
    )
