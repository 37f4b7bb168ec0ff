"""Seconds, messages and bytes of a round: foretold and measured, and foretold where nothing can be measured.

    python benchmarks/scaling.py [--out docs/figures] [--ranks 1 2 4] [--quick]
    python benchmarks/scaling.py --draw docs/figures/scaling.csv

Measures the constants of this machine on 2 ranks, then trains at W^0 (gamma = 0, so that every round sends
what was planned) on 1, 2 and 4 ranks of one thread each: an MLP on images of 8 x 8 (the quickstart's model;
images are made up, so that a thousand clients have enough of them) and a narrow ResNet-9, with CoBo and with
FedAvg. Prints a table in Markdown, and writes scaling.csv and scaling.png. Takes about 4 minutes on 2 quiet
cores; with fewer cores than ranks, ranks take turns, and the prediction says so. --quick: few rounds.
`--draw` takes the rows of a CSV and draws the figure again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_up import make_images

from cobo_dist.comm.session import CommConfig, open_session
from cobo_dist.comm.startup.launch_env import read_launch
from cobo_dist.config import Config, load_config
from cobo_dist.errors import ConfigError
from cobo_dist.planning.constants import Constants, write_constants
from cobo_dist.planning.measure import measure_in_session
from cobo_dist.planning.on_paper import OnPaper
from cobo_dist.planning.round_cost import Load, choose_engine, fewest_hosts, seconds_of
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.build import run_in_session
from cobo_dist.training.preparation import set_up_torch

METHODS = {
    "CoBo": ("algorithm.name=cobo", "algorithm.gamma=0", "algorithm.rho=0.001"),
    "FedAvg": ("algorithm.name=fedavg",),
}
QUIET = (
    "run.threads=1", "run.eval_every=0", "run.log_weights_every=0", "run.checkpoint_every=0",
    "run.overwrite=true", "log.figures=false", "log.progress=none", "data.eval_examples=1",
    "optimizer.lr=0.001",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A problem on made-up images; rounds by number of clients, after `warm` ones that do not count."""

    settings: tuple[str, ...]
    rounds: dict[int, int]
    warm: int
    images: tuple[int, tuple[int, int, int], int]  # how many, their shape, and classes


WORKS = {
    "MLP": Work(
        ("model.name=mlp",), {8: 150, 80: 100, 320: 40, 1000: 15}, 5, (80_000, (8, 8, 1), 10)
    ),
    "ResNet-9, width 8": Work(
        ("model.width=8", "model.dropout=0"), {8: 10}, 2, (2_000, (32, 32, 3), 100)
    ),
}
COLUMNS = (
    "work", "method", "clients", "ranks", "kind", "seconds", "lower", "upper",
    "foretold_seconds", "messages", "foretold_messages", "bytes", "foretold_bytes", "equal",
)  # fmt: skip
PAPER = {1: 1, 2: 1, 4: 2, 1000: 500}
"""Ranks whose lines are drawn; of the last, no two share a core."""


def main() -> None:
    """Measure or read, print, draw."""
    arguments = _parse()
    if arguments.worker:
        _work(json.loads(arguments.worker))
        return
    if arguments.draw:
        with open(arguments.draw, newline="", encoding="utf-8") as file:
            draw(list(csv.DictReader(file)), Path(arguments.draw).with_suffix(".png"))
        return
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        rows = measure(Path(place), arguments.ranks, arguments.quick)
    with (out / "scaling.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    show([row for row in rows if row["kind"] == "measured"])
    draw([{key: str(value) for key, value in row.items()} for row in rows], out / "scaling.png")
    sys.exit(not all(row["equal"] for row in rows if row["kind"] == "measured"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="docs/figures", help="folder of scaling.csv, scaling.png")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], help="1 2 4")
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds")
    parser.add_argument("--draw", metavar="CSV", help="only draw, beside the CSV")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # one rank
    return parser.parse_args()


# -- on ranks ------------------------------------------------------------------------------------------


def settings_of(work: str, method: str, clients: int, place: str) -> list[str]:
    """Return the settings of a run."""
    silo = [
        f"data.file={Path(place) / name_of(work)}.npz", f"task.clients_per_cluster={clients // 4}",
        "task.name=cross_silo", "task.clusters=4", "data.augment=false",
    ]  # fmt: skip
    return [*WORKS[work].settings, *METHODS[method], *QUIET, *silo]


def name_of(work: str, *more: object) -> str:
    """Return a file name of a work, without what shells and YAML mind."""
    return "-".join(map(str, [work.partition(",")[0], *more]))


def _work(about: dict[str, Any]) -> None:
    """Be one rank: measure constants, or train every work once, in one session."""
    launch, cpu = read_launch(os.environ), torch.device("cpu")
    with open_session(launch, CommConfig(), cpu) as session:
        for work, method in ((work, method) for work in WORKS for method in METHODS):
            sizes = WORKS[work].rounds
            name = name_of(work, method)
            if about["measure"]:
                config, task = _task(settings_of(work, method, max(sizes), about["place"]))
                set_up_torch(config.run.threads, config.comm.deterministic, cpu)
                constants = measure_in_session(config, task, session)
                if constants is not None:
                    write_constants(constants, Path(about["place"]) / f"{name}.json")
                continue
            for clients, rounds in sizes.items():
                warm = WORKS[work].warm
                rounds = warm + max(3, rounds // 5) if about["quick"] else warm + rounds
                settings = settings_of(work, method, clients, about["place"])
                folder = Path(about["place"]) / f"{name}-{clients}-{launch.world_size}"
                settings += [f"run.rounds={rounds}", f"run.dir={folder}"]
                run_in_session(load_config(None, settings), session)


def _task(settings: list[str]) -> tuple[Config, Task]:
    config = load_config(None, settings)
    dtype = getattr(torch, config.run.dtype)
    return config, build_task(config.task, config.model, config.data, config.run.seed, dtype)


def _start(ranks: int, about: dict[str, Any]) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc_per_node={ranks}", __file__, "--worker", json.dumps(about),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{ranks} ranks failed:\n{done.stderr}")


# -- foretold and measured -----------------------------------------------------------------------------


def measure(place: Path, ranks: list[int], quick: bool) -> list[dict[str, Any]]:
    """Return the rows of the table, then those of the lines."""
    for work, one in WORKS.items():
        count, shape, classes = one.images
        make_images(place / f"{name_of(work)}.npz", count, 100, shape, classes)
    about = {"place": str(place), "quick": quick, "measure": False}
    _start(2, about | {"measure": True})
    for count in ranks:
        _start(count, about)
        print(f"{count} ranks: done", file=sys.stderr, flush=True)
    rows, lines = [], []
    for work, method in ((work, method) for work in WORKS for method in METHODS):
        name = name_of(work, method)
        text = (place / f"{name}.json").read_text(encoding="utf-8")
        constants = Constants.model_validate_json(text)
        for clients in WORKS[work].rounds:
            config, task = _task(settings_of(work, method, clients, str(place)))
            for count in ranks:
                found = _rounds(place / f"{name}-{clients}-{count}")
                plan = OnPaper(config, task, count, clients)
                row = compare(plan, constants, found, WORKS[work].warm)
                rows.append({"work": work, "method": method, "clients": clients, **row})
        if len(WORKS[work].rounds) > 1:
            lines += [
                {"work": work, "method": method, **row} for row in foretell(config, task, constants)
            ]
    return rows + lines


def _rounds(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [row for row in map(json.loads, text.splitlines()) if row["event"] == "round"]


def _seconds(plan: OnPaper, constants: Constants, load: Load, hosts: int = 1) -> float:
    ranks = plan.ranks()
    engine = choose_engine(constants, "auto", int(ranks.clients_r[0]))
    return seconds_of(load, ranks, constants, engine, hosts).total


def compare(
    plan: OnPaper, constants: Constants, found: list[dict[str, Any]], warm: int
) -> dict[str, Any]:
    """Hold a run's rounds against the plan's: every message and byte, and the median seconds."""
    loads = [plan.load(row["round"] - 1) for row in found]
    sent = [load.sent() for load in loads]
    told = [(sum(one.messages.values()), one.total) for one in sent]
    seen = [(row["messages"], row["bytes_sent"]) for row in found]
    seconds = np.array([row["seconds"] for row in found[warm:]])
    foretold = [_seconds(plan, constants, load) for load in loads[warm:]]
    messages, nbytes = np.mean(seen, axis=0)
    return {
        "ranks": len(plan.clients_r), "kind": "measured", "seconds": float(np.median(seconds)),
        "lower": float(np.quantile(seconds, 0.25)), "upper": float(np.quantile(seconds, 0.75)),
        "foretold_seconds": float(np.median(foretold)), "messages": messages, "bytes": nbytes,
        "foretold_messages": np.mean(told, axis=0)[0],
        "foretold_bytes": np.mean(told, axis=0)[1], "equal": told == seen,
    }  # fmt: skip


def foretell(config: Config, task: Task, constants: Constants) -> list[dict[str, Any]]:
    """Return the points of the lines: round 1 for every n that fits."""
    rows = []
    for ranks in PAPER:
        hosts = fewest_hosts(constants, ranks) if ranks > max(PAPER) // 2 else 1
        for clients in np.unique(np.geomspace(8, 10**6, 18).round().astype(int)).tolist():
            if clients < ranks:
                continue
            try:
                plan = OnPaper(config, task, ranks, clients)
                load = plan.load(0)
            except ConfigError:
                continue
            sent, seconds = load.sent(), _seconds(plan, constants, load, hosts)
            rows.append(
                {"clients": clients, "ranks": ranks, "kind": "foretold",
                 "foretold_seconds": seconds, "foretold_bytes": sent.total,
                 "foretold_messages": sum(sent.messages.values())}
            )  # fmt: skip
    return rows


# -- shown ---------------------------------------------------------------------------------------------


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table in Markdown."""
    print(
        "| work | method | n | R | s a round | foretold | foretold / measured | messages a round | "
        "MB a round | both as foretold |\n|---|---|--:|--:|--:|--:|--:|--:|--:|---|"
    )
    for row in rows:
        ratio = row["foretold_seconds"] / row["seconds"]
        print(
            f"| {row['work']} | {row['method']} | {row['clients']:,} | {row['ranks']} | "
            f"{row['seconds']:.4f} | {row['foretold_seconds']:.4f} | {ratio:.2f} | "
            f"{row['messages']:,.1f} | {row['bytes'] / 1e6:,.2f} | {'yes' if row['equal'] else 'NO'} |"
        )


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Draw seconds a round over n for each R: lines foretold, points measured with their quartiles."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(PAPER, ("#0072B2", "#D55E00", "#009E73", "#555555"), strict=True))
    marks = dict(zip(PAPER, "osD^", strict=True))
    works = [row["work"] for row in rows if row["kind"] == "foretold"]
    panels = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(9.0, 3.7), sharey=True, squeeze=False)
    for axis, method in zip(axes[0], panels, strict=True):
        own = [row for row in rows if row["method"] == method and row["work"] == works[0]]
        for ranks, colour in colours.items():
            line = [r for r in own if int(r["ranks"]) == ranks and r["kind"] == "foretold"]
            dots = [r for r in own if int(r["ranks"]) == ranks and r["kind"] == "measured"]
            n = [int(row["clients"]) for row in line]
            axis.plot(
                n, [float(row["foretold_seconds"]) for row in line], color=colour, linewidth=1.4,
                linestyle="-" if dots else "--", label=f"R = {ranks:,}",
            )  # fmt: skip
            if dots:
                middle = np.array([float(row["seconds"]) for row in dots])
                spread = [
                    middle - [float(row["lower"]) for row in dots],
                    np.array([float(row["upper"]) for row in dots]) - middle,
                ]
                axis.errorbar(
                    [int(row["clients"]) for row in dots], middle, spread, color=colour,
                    fmt=marks[ranks], markersize=4.5, elinewidth=0.8, capsize=2,
                )  # fmt: skip
        axis.set(xscale="log", yscale="log", title=method, xlabel="clients n")
        axis.grid(True, which="major", linewidth=0.4, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("seconds a round")
    axes[0][0].legend(
        frameon=False, title="line: foretold\npoint: measured", fontsize=8, title_fontsize=8
    )
    figure.tight_layout()
    figure.savefig(path, dpi=200)


if __name__ == "__main__":
    main()
