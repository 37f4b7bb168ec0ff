"""Whether methods differ: paired tests of each method against one of them, over seeds and over clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cobo_dist.maths.confidence import half_width
from cobo_dist.reports.comparison import LEVEL, holm, least_p, seeds_needed, signed_rank_test
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import percent
from cobo_dist.reports.reading import Run
from cobo_dist.reports.statistics import Array
from cobo_dist.reports.tables.scores import GroupResult, client_values
from cobo_dist.reports.tables.table import Table
from cobo_dist.storage.schema import higher_is_better


@dataclass(frozen=True, eq=False)
class _Pairs:
    """A method minus the reference, in shown units; more is better where the metric says so."""

    group: Group
    seeds_s: Array  # of the mean over clients, a value for each seed that both have
    clients_n: Array  # mean over these seeds, a value for each client

    @property
    def mean(self) -> float:
        return float(self.seeds_s.mean())


def significance_table(results: Sequence[GroupResult], shown: Sequence[Group]) -> Table | None:
    """Return a row for each of the groups `shown` but the reference; None where nothing can be compared.

    The reference is the method that figures emphasize, else the best that is no upper bound. Runs are
    compared with equal seed, rounds, clients and amount of test data.
    """
    ours = [result for result in results if result.group in shown]
    reference = _reference(ours)
    if reference is None:
        return None
    metric, split = reference.metric, reference.split
    found = [_pairs(one, reference) for one in ours if one is not reference]
    compared = [pairs for pairs in found if pairs is not None]
    if not compared:
        return None
    over_seeds = [signed_rank_test(pairs.seeds_s) for pairs in compared]
    over_clients = [signed_rank_test(pairs.clients_n) for pairs in compared]
    corrected = list(zip(holm(over_seeds), holm(over_clients), strict=True))
    sign = 1.0 if higher_is_better(metric) else -1.0
    name, unit = reference.group.title, "points" if metric == "accuracy" else metric
    text, numbers = [], []
    for pairs, raw, (by_seed, by_client) in zip(
        compared, zip(over_seeds, over_clients, strict=True), corrected, strict=True
    ):
        seeds = len(pairs.seeds_s)
        half = float(half_width(np.std(pairs.seeds_s, ddof=1), seeds)) if seeds > 1 else math.nan
        better, worse = (int((s * sign * pairs.clients_n > 0).sum()) for s in (1, -1))
        verdict = _verdict(sign * pairs.mean, by_seed, by_client, seeds, len(compared))
        difference = f"{pairs.mean:+.3g}" + ("" if math.isnan(half) else f" ± {half:.2g}")
        tests = [str(seeds), f"{by_seed:.2g}", f"{better} / {worse}", f"{by_client:.2g}"]
        text.append([pairs.group.title, verdict, difference, *tests])
        numbers.append(
            {"method": pairs.group.label, "reference": reference.group.label, "verdict": verdict}
            | {"difference_mean": pairs.mean, "difference_ci95": "" if math.isnan(half) else half}
            | {"seeds": seeds, "p_seeds": raw[0], "p_seeds_holm": by_seed}
            | {"clients": len(pairs.clients_n), "clients_better": better, "clients_worse": worse}
            | {"p_clients": raw[1], "p_clients_holm": by_client}
        )
    headings = ["method", f"against {name}", f"difference ({unit})", "seeds", "p over seeds"]
    headings += ["clients better / worse", "p over clients"]
    return Table(
        caption="Significance",
        text=pd.DataFrame(text, columns=headings),
        notes=tuple(_notes(name, metric, split, compared, [one.group.title for one in ours])),
        left=2,
        numbers=pd.DataFrame(numbers, dtype=object),
    )


def _reference(results: Sequence[GroupResult]) -> GroupResult | None:
    known = [one for one in results if (mean := one.mean(one.metric)) is not None and mean == mean]
    emphasized = [one for one in known if one.group.method.role == "emphasized"]
    if emphasized:
        return emphasized[0]
    known = [one for one in known if one.group.method.role != "upper_bound"]
    if not known:
        return None
    choose = max if higher_is_better(known[0].metric) else min
    return choose(known, key=lambda one: one.mean(one.metric) or 0.0)


def _pairs(result: GroupResult, reference: GroupResult) -> _Pairs | None:
    """The differences of the seeds that both methods finished alike; None where there is none."""
    others = {run.seed: run for run in reference.group.scored}
    each = [
        differences
        for run in result.group.scored
        if run.seed in others
        and (differences := _differences(run, others[run.seed], result)) is not None
    ]
    if not each:
        return None
    of_first = each[0].keys()
    clients = [np.mean([one[i] for one in each]) for i in of_first if all(i in one for one in each)]
    scale = percent(result.metric)
    seeds = np.array([np.mean(list(one.values())) for one in each])
    return _Pairs(result.group, scale * seeds, scale * np.array(clients))


def _differences(run: Run, other: Run, result: GroupResult) -> Mapping[int, float] | None:
    measured, own = client_values(run, result.split, result.metric)
    other_measured, reference = client_values(other, result.split, result.metric)
    values = [*own.values(), *reference.values()]
    if (measured, own.keys()) != (other_measured, reference.keys()) or not own:
        return None
    return {i: own[i] - reference[i] for i in own} if np.isfinite(values).all() else None


def _verdict(gain: float, by_seed: float, by_client: float, seeds: int, comparisons: int) -> str:
    """What the p-values say in words. `gain` is above 0 where the method is better."""
    side = "better" if gain > 0 else "worse"
    if by_seed < LEVEL:
        return side
    few = least_p(seeds) * comparisons >= LEVEL
    if by_client < LEVEL:
        return f"{side} over clients; " + ("too few seeds" if few else "not over seeds")
    return "too few seeds" if few else "no difference shown"


def _notes(
    name: str, metric: str, split: str, compared: Sequence[_Pairs], all_titles: Sequence[str]
) -> list[str]:
    count, most = len(compared), max(len(pairs.seeds_s) for pairs in compared)
    notes = [
        f"Difference: of the mean {split} {metric} over clients, the method's minus {name}'s, with equal "
        f"seeds; mean over seeds ± half the width of its 95% confidence interval (Student's t). p: "
        f"Wilcoxon's signed-rank test, two-sided, corrected by Holm for {count} "
        f"comparison{'s' * (count > 1)}; below {LEVEL:g} it counts as shown. Over seeds: one pair a seed. "
        "Over clients: one pair a client, the mean over seeds; clients of one run learn from each other, so "
        "they are not independent, and this test speaks of these runs only."
    ]
    if least_p(most) * count >= LEVEL:
        notes.append(
            f"With {most} seed{'s' * (most > 1)} no p over seeds can be below {least_p(most):.2g} before the "
            f"correction: {seeds_needed(count)} seeds are needed to show a difference among {count} "
            f"comparison{'s' * (count > 1)}."
        )
    missing = sorted({*all_titles} - {name} - {pairs.group.title for pairs in compared})
    if missing:
        notes.append(f"No run with a seed, rounds and clients of {name}'s: {', '.join(missing)}.")
    return notes
