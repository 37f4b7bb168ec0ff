"""Methods with the clients, network and local work of PFLlib's leaderboard, beside the published numbers.

    python benchmarks/pfllib.py --data DIR [--rounds 60] [--split pathological | dirichlet]
        [--methods METHOD ...] [--seeds 0] [--out DIR]

The settings are those of configs/pfllib, and nothing is tuned: PFLlib takes lr 0.005 for all. A method that
takes one local step a round has as many rounds as an epoch has batches in place of each. Prints a table:
`best` is PFLlib's measure, the highest accuracy of all rounds where each test image counts as much, `last`
the same after the last round, `mean of clients` what all other tables here show. A round of FedAvg takes
about a minute of one core; fewer than the 2,000 published rounds say nothing of the published numbers. Runs
that are in --out are not repeated. cifar100.npz is in --data.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from bench import METHODS
from grid_runs import COMMON, train_once, try_data
from markdown_table import markdown

from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError, RunFailure
from cobo_dist.reports.grouping.problems import group_runs
from cobo_dist.reports.reading.run import read_run
from cobo_dist.reports.tables.scores import GroupResult, group_results

CONFIGS = Path(__file__).parents[1] / "configs" / "pfllib"
PUBLISHED = {
    "pathological": {
        "fedavg": 25.98, "fedprox": 25.94, "perfedavg": 56.80, "pfedme": 58.20, "ditto": 67.23, "apfl": 64.26,
        "fedfomo": 62.49, "fedamp": 64.34, "apple": 65.80, "fedala": 67.83, "fedper": 63.53, "fedrep": 67.56,
        "fedbabu": 66.85,
    },
    "dirichlet": {
        "fedavg": 31.89, "fedprox": 31.99, "perfedavg": 44.28, "pfedme": 47.34, "ditto": 52.87, "apfl": 46.74,
        "fedfomo": 45.39, "fedamp": 47.69, "apple": 53.22, "fedala": 55.92, "fedper": 49.63, "fedrep": 52.39,
        "fedbabu": 55.02,
    },
}  # fmt: skip
"""docs/benchmark.html at d832e76, after 2,000 rounds: the best round, in %."""
EPOCH = 224  # batches of a client in a round, on average
ONE_STEP = ("local.epochs=0", "local.drop_last=false")
HELD_OUT = ("task.validation_fraction=0.2",)
SETTINGS = {
    "apple": ONE_STEP,
    "l2gd": ONE_STEP,
    "adaptive_collaboration": ONE_STEP,
    "federated_clustering": ONE_STEP,
    "fedfomo": HELD_OUT,
    "dpfl": HELD_OUT,
    "validation_based": HELD_OUT,
    "prediction_based": HELD_OUT,
    "fedrep": ("local.epochs=2",),
    "fedbabu": ("algorithm.fedavg_share=0.995",),
}
"""What methods need to start, or have in PFLlib, beside the config; its header has these lines."""


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with cifar100.npz")
    parser.add_argument("--split", choices=PUBLISHED, default="pathological")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pfllib"), metavar="DIR")
    options = parser.parse_args()
    try:
        try_data(load_config(*source(options)))
    except ConfigError as error:
        parser.error(str(error))
    results, without = {}, []
    for name in options.methods:
        try:
            results[name] = result_of(trained(name, seed, options) for seed in options.seeds)
        except (ConfigError, RunFailure) as error:
            without.append(f"- {METHODS[name].title}: {' '.join(str(error).split())}")
    print(f"{options.split}, rounds: {options.rounds}\n")
    print(table(results, PUBLISHED[options.split]), "", *without, sep="\n")


def source(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the config file, and the setting that names its data."""
    config = CONFIGS / f"{options.split}.yaml"
    return str(config), [f"task.source.file={options.data}/cifar100.npz"]


def trained(name: str, seed: int, options: argparse.Namespace) -> Path:
    """Return the folder of a method's run, which is trained unless it is there.

    Raises:
        ConfigError, RunFailure: it is refused or fails.
    """
    path, data = source(options)
    method = METHODS[name]
    own = SETTINGS.get(method.algorithm, ())
    given = [*COMMON, "run.eval_splits=[test]", *data, *method.settings, *own]
    config = load_config(path, given)
    each = EPOCH if config.algorithm.takes_one_step else 1
    given.append(f"run.eval_every={each}")
    stem = options.out / options.split / name
    return train_once(path, given, each * options.rounds, stem, config.optimizer.lr, seed)


def result_of(folders: Iterable[Path]) -> GroupResult:
    """Return the result of a method over the seeds of its runs."""
    (problem,) = group_runs([read_run(folder) for folder in folders])[0]
    (result,) = group_results(problem)
    return result


def table(results: Mapping[str, GroupResult], published: Mapping[str, float]) -> str:
    """Return the results by method as Markdown, the best first."""
    by_best = sorted(
        results.items(), key=lambda one: one[1].mean("best_by_examples") or 0.0, reverse=True
    )
    rows = [
        {
            "method": METHODS[name].title,
            "best, %": result.show("best_by_examples", ".1f"),
            "last": result.show("by_examples", ".1f"),
            "mean of clients": result.show("accuracy", ".1f"),
            "adjusted Rand": result.show("adjusted_rand", ".2f"),
            "seconds": result.show("seconds", ".0f", interval=False),
            "published, 2,000 rounds": f"{published[name]:.1f}" if name in published else "",
        }
        for name, result in by_best
    ]
    return markdown(pd.DataFrame(rows)) if rows else "no method ran"


if __name__ == "__main__":
    main()
