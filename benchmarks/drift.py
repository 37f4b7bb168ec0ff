"""Clients change cluster in the middle of a run: what each method loses, and when its links are right again.

    python benchmarks/drift.py [--only METHOD ...] [--rounds 400] [--seeds 0 1 2] [--out DIR] [--figures DIR]

The task is `digits`: 8 clients in 4 clusters of 2. After 3/8 of the rounds clients change cluster
(`task.drift`). `at once`: client 0, of the first cluster, and client 2, of the second, swap. `staggered`:
four drawn clients change to drawn clusters, each in a round of its own within the next quarter of the rounds.
CoBo has the quickstart's settings and some `algorithm.margin`, or `preset=robust`; the others have defaults.
Prints a table for each way, with one number a seed, and draws DIR/drift_accuracy.png. Runs that are in --out
are not repeated. All of it takes about 6 minutes of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from markdown_table import markdown
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

import cobo_dist
from cobo_dist.reports.figures.curves import draw_curve
from cobo_dist.reports.figures.events import mark_switches
from cobo_dist.reports.figures.style import (
    LineStyle,
    canvas,
    round_axis,
    save,
    shared_legend,
)
from cobo_dist.reports.metrics import mean_over_clients
from cobo_dist.reports.reading import Run, read_run
from cobo_dist.reports.statistics import over_seeds
from cobo_dist.reports.tables.drift import false_partings, regret, rounds_until_right

WAYS = ("at once", "staggered")
METHODS: dict[str, tuple[str, ...]] = {
    "Oracle": ("algorithm.name=oracle",),
    "Oracle, not told": ("algorithm.name=oracle", "algorithm.follows=false"),
    **{
        f"CoBo, margin {name}": ("algorithm.name=cobo", f"algorithm.margin={margin}")
        for name, margin in (("0", "0"), ("1", "1"), ("3", "3"), ("infinity", "1e9"))
    },
    "CoBo, robust": ("algorithm.name=cobo", "preset=robust"),
    "IFCA": ("algorithm.name=ifca",),
    "FedDrift": ("algorithm.name=feddrift",),
    "FedDrift, period 10": ("algorithm.name=feddrift", "algorithm.period=10"),
    "CFL": ("algorithm.name=cfl",),
    "FedAvg": ("algorithm.name=fedavg",),
    "Local": ("algorithm.name=local",),
}
SETTINGS = (
    "run.engine=vectorised", "run.threads=1", "run.eval_every=10", "run.log_weights_every=5",
    "run.checkpoint_every=0", "log.figures=false", "log.progress=none",
)  # fmt: skip
DRAWN = (
    "Oracle",
    "Oracle, not told",
    "CoBo, margin 0",
    "CoBo, robust",
    "IFCA",
    "FedDrift",
    "FedAvg",
)
LINKING = tuple(name for name in METHODS if name.startswith(("CoBo", "IFCA", "FedDrift", "CFL")))
Found = Mapping[tuple[str, str], Sequence[Run]]
"""Runs of all seeds, by way and method."""


def events(way: str, rounds: int) -> str:
    """Return `task.drift`."""
    first = 3 * rounds // 8 + 1
    if way == "at once":
        swap = ", ".join(
            f"{{round: {first}, clients: [{i}], cluster: {k}}}" for i, k in ((0, 1), (2, 0))
        )
        return f"task.drift=[{swap}]"
    return f"task.drift=[{{round: {first}, until: {first + max(1, rounds // 4)}, count: 4}}]"


def trained(way: str, method: str, seed: int, rounds: int, out: Path) -> Run:
    """Return one run, which is trained where it is not yet there."""
    folder = out / f"{way} {method} {rounds} s{seed}".replace(" ", "_").replace(",", "")
    if not (folder / "summary.json").exists():
        given = [
            *SETTINGS, *METHODS[method], events(way, rounds), f"run.rounds={rounds}",
            f"run.seed={seed}", f"run.dir={folder}", "run.overwrite=true",
        ]  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            cobo_dist.fit(None, given)
    return read_run(folder)


def accuracy(run: Run) -> dict[int, float]:
    """Return the mean test accuracy of the clients by round, as a fraction."""
    return dict(mean_over_clients(run, "test", "accuracy"))


def table(found: Found, way: str) -> pd.DataFrame:
    """Return a row for each method."""
    bounds = found.get((way, "Oracle"), ())
    rows = []
    for (one, method), runs in found.items():
        if one != way:
            continue
        last = [100 * accuracy(run)[max(accuracy(run))] for run in runs]
        row = {
            "method": method,
            "accuracy at the end, %": each(last, 1),
            "regret, rounds": each([regret(run, bounds, accuracy) for run in runs], 1),
        }
        if method in LINKING:
            row["rounds until links are right"] = each([rounds_until_right(run) for run in runs])
            row["false partings"] = each([false_partings(run) for run in runs])
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def each(values: Sequence[float | None], digits: int = 0) -> str:
    """Return one number for each seed; a dash where there is none, or where it never happens."""
    return ", ".join("-" if value is None else f"{value:.{digits}f}" for value in values)


def draw(found: Found, path: Path) -> None:
    """Draw the accuracy of some methods over rounds, a panel for each way, with the changes marked."""
    ways = list(dict.fromkeys(way for way, _ in found))
    with canvas(2.9 * len(ways), 2.5) as figure:
        grid = figure.subplots(1, len(ways), squeeze=False, sharey=True)[0]
        for axes, way in zip(grid, ways, strict=True):
            _draw_way(axes, {method: runs for (one, method), runs in found.items() if one == way})
            axes.set_title(way)
            round_axis(axes)
        grid[0].set_ylabel("test accuracy (%)")
        shared_legend(figure, grid)
        _, numbers = save(figure, path, pd.DataFrame())
        numbers.unlink()  # the runs have them


def _draw_way(axes: Axes, found: Mapping[str, Sequence[Run]]) -> None:
    for method in DRAWN:
        if method not in found:
            continue
        runs = found[method]
        shown = runs[0].method
        main = method == "CoBo, robust"
        style = LineStyle(
            method,
            to_rgb(shown.color),
            "--" if method in ("Oracle, not told", "CoBo, margin 0") else "-",
            1.8 if main else 1.1,
            4.0 if main else 3.0,
            shown.marker,
        )
        draw_curve(axes, over_seeds([accuracy(run) for run in runs]), style, 100.0, band=False)
    mark_switches(
        axes, sorted({r for runs in found.values() for run in runs for r in run.switches})
    )


def main() -> None:
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD"
    )
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/drift"), metavar="DIR")
    parser.add_argument("--figures", type=Path, default=Path("report"), metavar="DIR")
    options = parser.parse_args()
    found = {
        (way, method): [
            trained(way, method, seed, options.rounds, options.out) for seed in options.seeds
        ]
        for way in WAYS
        for method in options.only
    }
    for way in WAYS:
        print(f"{way}:\n\n{markdown(table(found, way))}", end="\n\n", flush=True)
    options.figures.mkdir(parents=True, exist_ok=True)
    draw(found, options.figures / "drift_accuracy.png")


if __name__ == "__main__":
    main()
