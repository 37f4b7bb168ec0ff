"""CoBo's variants on several tasks, as a paper would compare them: equal tuning, intervals, paired tests.

    python benchmarks/study.py [--only TASK ...] [--methods METHOD ...] [--seeds 0 1 2] [--data DIR]
        [--out DIR] [--figures DIR]

Every method tries the same learning rates and takes the one that is best on validation data at the end, on
average over the seeds; the CIFAR-100 tasks, whose runs are long, choose with the first seed only. Nothing
else is tuned: rho and gamma of the paper's update are those of the task's config. Prints a table for each
task and draws DIR/study_accuracy.png. Runs that are in --out are not repeated. MNIST-5k needs
`pip install 'cobo_dist[data]'`; the CIFAR-100 tasks need cifar100.npz in --data, and hours of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grid_runs import COMMON, train_once, with_best_rate
from study_tables import Result, draw, table


@dataclass(frozen=True)
class Task:
    """What all methods share: a config, learning rates to choose from, and the rounds to report."""

    config: str | None
    rates: tuple[float, ...]
    lengths: tuple[int, ...]  # ascending; the last is that of the run
    settings: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # methods that are left out
    needs_data: bool = False  # CIFAR-100, whose runs are long: rates are chosen with one seed


MNIST = ("run.eval_every=25", "task.partition.clients=20")
DIRICHLET = ("task.partition.name=dirichlet", "task.partition.alpha=0.1")
ALONE = ("published", "capped", "margin", "threshold")  # one change to the paper's update
SILO = "configs/cpu/cross_silo_cobo.yaml"
DEVICE = "configs/cpu/cross_device_cobo.yaml"
PATHOLOGICAL = "configs/cpu/mnist5k_pathological.yaml"
TASKS = {
    "digits": Task("configs/quickstart.yaml", (0.05, 0.1, 0.2), (100, 300, 1000), ("run.eval_every=25",)),
    "MNIST-5k, two classes": Task(PATHOLOGICAL, (0.02, 0.05, 0.1), (100, 300), MNIST, ("oracle",)),
    "MNIST-5k, Dirichlet 0.1": Task(
        PATHOLOGICAL, (0.02, 0.05, 0.1), (100, 300), (*MNIST, *DIRICHLET), ("oracle",)
    ),
    "text": Task(
        "configs/cpu/lstm_text.yaml", (0.003, 0.01), (100, 300),
        ("run.eval_every=25", "data.batch_size=32", "task.source.file=runs/fragments.csv"),
    ),
    "cross-silo": Task(
        SILO, (0.1, 0.2), (100, 300), ("run.eval_every=25",), ("margin", "threshold"), needs_data=True
    ),
    "cross-device": Task(
        DEVICE, (0.2,), (100, 300), ("run.eval_every=25",), (*ALONE, "fedavg", "remedies", "evidence"),
        needs_data=True,
    ),
}  # fmt: skip
COSINE = ("algorithm.alignment=cosine", "algorithm.gamma=0.1")
METHODS = {
    "local": ("algorithm.name=local",),
    "fedavg": ("algorithm.name=fedavg",),
    "paper": ("preset=paper",),
    "published": ("preset=published",),
    "capped": ("algorithm.coupling=capped", "algorithm.rho=5"),
    "margin": ("algorithm.margin=1e9",),
    "threshold": (*COSINE, "algorithm.threshold=0.1"),
    "remedies": (
        *COSINE, "algorithm.threshold=0.1", "algorithm.margin=1", "algorithm.start=zeros",
        "algorithm.coupling=capped", "algorithm.rho=5",
    ),
    "evidence": ("preset=evidence",),
    "robust": ("preset=robust",),
    "robust, ones": ("preset=robust", "algorithm.start=ones"),
    "oracle": ("algorithm.name=oracle",),
}  # fmt: skip


def main() -> None:
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, metavar="TASK", default=list(TASKS))
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=0, help="of all runs; 0: as the task says")
    parser.add_argument("--data", metavar="DIR", help="folder with cifar100.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), metavar="DIR")
    parser.add_argument("--figures", type=Path, default=Path("report"), metavar="DIR")
    options = parser.parse_args()
    found = {}
    for name in options.only:
        task = TASKS[name]
        if task.needs_data and not options.data:
            parser.error(f"{name} needs --data, the folder with cifar100.npz")
        lengths = (options.rounds,) if options.rounds else task.lengths
        shared = [*COMMON, *task.settings]
        if task.needs_data:
            shared.append(f"data.root={options.data}")
        methods = [one for one in options.methods if one not in task.without]
        folder = options.out / name.replace(" ", "_").replace(",", "")
        found[name] = [
            one
            for method in methods
            for one in results(task, method, options.seeds, shared, lengths[-1], folder)
        ]
        print(f"{name}\n\n{table(found[name], lengths)}\n", flush=True)
    options.figures.mkdir(parents=True, exist_ok=True)
    draw(found, options.figures / "study_accuracy.png")


def results(
    task: Task, method: str, seeds: Sequence[int], shared: Sequence[str], rounds: int, folder: Path
) -> list[Result]:
    """Return the runs of a method with its best learning rate, one for each seed."""

    def run(rate: float, seed: int) -> Result:
        path = folder / method.replace(", ", "_")
        given = [*shared, *METHODS[method]]
        return Result.read(
            train_once(task.config, given, rounds, path, rate, seed), method, rate, seed
        )

    return list(with_best_rate(task.rates, seeds, 1 if task.needs_data else len(seeds), run))


if __name__ == "__main__":
    main()
