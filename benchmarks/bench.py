"""A bench of methods: every registered one on several tasks, with equal tuning and a test of their ranks.

    python benchmarks/bench.py [--only TASK ...] [--methods METHOD ...] [--seeds 0 1 2] [--rounds N]
        [--rates LR ...] [--data DIR] [--out DIR] [--figures DIR]

A task is a config in configs/bench. Methods come from the registry, plug-ins excepted; one with presets runs
with each of them. All take the learning rate that is best on validation data with the first seed; nothing
else is tuned. A method that takes one local step a round runs with local.steps=1 and as many times more
rounds, so that clients take as many local steps in all. Prints a table for each task, with a line for each
method that the task refuses or that fails with every rate, and draws DIR/bench_ranks.png. Runs that are in
--out are not repeated; use another --out after a change of a config. MNIST-5k needs
`pip install 'cobo_dist[data]'`, CIFAR-100 cifar100.npz in --data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_tables import Outcome, ranks_of, table
from grid_runs import COMMON, train_once, try_data, with_best_rate

from cobo_dist.algorithms.algorithm import own
from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.config import Config, load_config
from cobo_dist.errors import ConfigError, RunFailure
from cobo_dist.reports.figures.ranks import draw_ranks, rank_note

TASKS = {
    path.stem: str(path)
    for path in sorted((Path(__file__).parents[1] / "configs" / "bench").glob("*.yaml"))
}
RATES = (0.03, 0.1, 0.3)
RATE_FACTORS = {"l2gd": 10.0}  # its mean step is 1/n of Local's; n is 8 to 20


@dataclass(frozen=True)
class Method:
    """A registered algorithm, or one of its presets."""

    algorithm: str
    title: str
    color: str
    settings: tuple[str, ...]


def all_methods() -> dict[str, Method]:
    """Return the methods by name, in the order of reports; a preset's name is ALGORITHM-PRESET."""
    found = {}
    for name, entry in ALGORITHMS.items():
        title, color = own(entry.target, "title") or name, own(entry.target, "color")
        for preset in entry.target.Config.presets or ("",):
            settings = [f"algorithm.name={name}", *([f"preset={preset}"] if preset else [])]
            found[f"{name}-{preset}" if preset else name] = Method(
                name, f"{title}, {preset}" if preset else title, color, tuple(settings)
            )
    return found


METHODS = all_methods()


def main() -> None:
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, metavar="TASK", default=list(TASKS))
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=0, help="0: as the task's config says")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, metavar="LR")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar100.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR")
    parser.add_argument("--figures", type=Path, default=Path("report"), metavar="DIR")
    options = parser.parse_args()
    try:
        shared = {name: shared_settings(name, options) for name in options.only}
    except ConfigError as error:
        parser.error(str(error))
    found = {}
    for name in options.only:
        found[name], without = outcomes(name, options.methods, options, shared[name])
        lines = [f"- {METHODS[method].title}: {why}" for method, why in without.items()]
        print(f"{name}\n\n{table(found[name], titles())}\n", *lines, "", sep="\n", flush=True)
    options.figures.mkdir(parents=True, exist_ok=True)
    compared = ranks_of(found).rename(columns=titles())
    if len(compared.columns) > 1:
        colors = {method.title: method.color for method in METHODS.values()}
        picture, _ = draw_ranks(compared, colors, options.figures / "bench_ranks.png")
        print(f"{picture.name}: {rank_note(compared)}")


def titles() -> dict[str, str]:
    """Return what each method is called in tables and figures."""
    return {name: method.title for name, method in METHODS.items()}


def shared_settings(task: str, options: argparse.Namespace) -> list[str]:
    """Return the settings of a task that all methods share.

    Raises:
        ConfigError: the task's data cannot be read.
    """
    given = [*COMMON, *([f"run.rounds={options.rounds}"] if options.rounds else [])]
    source = getattr(load_config(TASKS[task], given).task, "source", None)
    if source is not None and source.name == "npz":
        if not options.data:
            raise ConfigError(f"{task} needs --data, the folder with cifar100.npz")
        given.append(f"task.source.file={options.data}/cifar100.npz")
    try_data(load_config(TASKS[task], given))
    return given


def outcomes(
    task: str, methods: Sequence[str], options: argparse.Namespace, shared: Sequence[str]
) -> tuple[list[Outcome], dict[str, str]]:
    """Return the runs of a task, and for each method without any the reason in one line."""
    found: list[Outcome] = []
    without = {}
    for name in methods:
        try:
            found += of_method(task, name, options, shared)
        except ConfigError as error:
            without[name] = f"refused: {error}"
        except RunFailure as error:
            without[name] = f"failed: {error}"
    return found, {name: " ".join(why.split()) for name, why in without.items()}


def of_method(
    task: str, name: str, options: argparse.Namespace, shared: Sequence[str]
) -> list[Outcome]:
    """Return the runs of a method with its best learning rate, one for each seed."""
    given = [*shared, *METHODS[name].settings]
    config = local_work(TASKS[task], given)
    work = [f"local.steps={config.local.steps}"]
    factor = RATE_FACTORS.get(METHODS[name].algorithm, 1.0)

    def run(rate: float, seed: int) -> Outcome:
        stem = options.out / task / name
        path = train_once(TASKS[task], [*given, *work], config.run.rounds, stem, rate, seed)
        return Outcome.read(path, name, rate, seed)

    return list(with_best_rate([factor * one for one in options.rates], options.seeds, 1, run))


def local_work(config: str, given: Sequence[str]) -> Config:
    """Return the config of a method: with one local step and more rounds where it takes no more."""
    one_step = load_config(config, [*given, "local.steps=1"])
    if not one_step.algorithm.takes_one_step:
        return load_config(config, given)
    steps = load_config(config, []).local.steps
    rounds = one_step.run.rounds * steps
    return load_config(config, [*given, "local.steps=1", f"run.rounds={rounds}"])


if __name__ == "__main__":
    main()
