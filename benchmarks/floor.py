"""A round of cobo_dist compared with its compute floor.

python benchmarks/floor.py [--only WORK ...] [--method NAME ...] [--repeats 3] [--bf16] [--backend mpi]
                           [--allocator kept]

Trains with `cobo_dist.train` on 2 ranks, everything included (pairs, exchange, update, metrics). Alternating
with it, runs a bare PyTorch loop in as many processes and threads, which does the same forward and backward
passes and a plain step, and nothing else: no data, no messages. Prints seconds a round (medians over repeats
of medians over blocks of rounds) and their ratio.

A round ends when its slower rank does. So the time of a round of the floor is that of its slower process:
pairs are random, and a rank with more ends of pairs computes more passes, whatever the software. The
processes of the floor do not wait for each other; the longer time of each round is taken afterwards.

The floor uses the same models; if the run vectorises clients, the floor is a vmapped loop. Batches are made
once and not timed. `--allocator kept` raises glibc's mmap and trim thresholds for both, as the launch
scripts do. `--backend mpi` runs ours under mpirun, with messages by MPI.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from made_up import make_images, with_images
from torch import Tensor, nn

RANKS = 2
THREADS = max(1, (os.cpu_count() or RANKS) // RANKS)  # per rank
KEPT = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


@dataclass(frozen=True)
class Work:
    """One problem: settings of the run, and rounds, of which the first `warm` are not timed."""

    settings: tuple[str, ...]
    clients: int
    rounds: int
    warm: int
    block: int


WORKS = {
    # Batches are drawn for 64 rounds at once, so a block of 64 rounds has its share of that and of logging.
    "80 digits MLPs": Work(
        ("task.name=digits", "task.clusters=10", "task.clients_per_cluster=8"), 80, 353, 32, 64
    ),
    "80 small CNNs": Work(
        ("task.name=cross_device", "model.name=cnn", "data.augment=false"), 80, 14, 4, 1
    ),
    "8 ResNet-9": Work(("task.name=cross_silo", "model.dropout=0"), 8, 8, 2, 1),
}
METHODS = {
    "fedavg": ("algorithm.name=fedavg",),
    "ditto": ("algorithm.name=ditto",),
    # All weights stay 1, so mixing is dense in every round.
    "cobo": ("algorithm.name=cobo", "algorithm.gamma=0", "algorithm.rho=0.01"),
}


def main() -> None:
    """Measure and print."""
    arguments = _parse()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {RANKS} ranks of "
        f"{THREADS} thread(s), batch 32, "
        f"{'bf16 autocast, channels last' if arguments.bf16 else 'fp32'}, allocator "
        f"{arguments.allocator}, {arguments.backend}\n"
    )
    print(f"{'work':18}{'method':10}{'engine':14}{'ours s':>10}{'floor s':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as place:
        images = make_images(Path(place) / "images.npz", 8_000, 1_000)
        for name in arguments.only or WORKS:
            for method in arguments.method or METHODS:
                ours, floors, engine = _pair(name, method, images, Path(place), arguments)
                mine, floor = statistics.median(ours), statistics.median(floors)
                print(
                    f"{name:18}{method:10}{engine:14}{mine:>10.4f}{floor:>10.4f}{mine / floor:>8.2f}",
                    flush=True,
                )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, help="some of the works")
    parser.add_argument("--method", nargs="+", choices=METHODS, help="some of the methods")
    parser.add_argument("--repeats", type=int, default=3, help="alternating runs of each")
    parser.add_argument("--bf16", action="store_true", help="autocast and channels last, for both")
    parser.add_argument("--backend", choices=("gloo", "mpi"), default="gloo")
    parser.add_argument("--allocator", choices=("default", "kept"), default="kept")
    parser.add_argument("--bare", help=argparse.SUPPRESS)  # one process of the floor
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)  # where it writes its times
    arguments = parser.parse_args()
    if arguments.bare:
        _bare(json.loads(arguments.bare), arguments.place)
        sys.exit()
    return arguments


def _pair(
    name: str, method: str, images: Path, place: Path, arguments: argparse.Namespace
) -> tuple[list[float], list[float], str]:
    """Alternate ours and the floor; return seconds a round of each, and the engine."""
    ours: list[float] = []
    floors: list[float] = []
    engine = "auto"
    for _ in range(arguments.repeats):
        seconds, engine, settings = _ours(name, method, images, place, arguments, engine)
        ours.append(seconds)
        floors.append(_floor(name, method, settings, engine, arguments))
    return ours, floors, engine


# -- ours ----------------------------------------------------------------------------------------------


def _ours(
    name: str, method: str, images: Path, place: Path, arguments: argparse.Namespace, engine: str
) -> tuple[float, str, list[str]]:
    """Return seconds a round of a real run, the engine it used, and its settings."""
    work, folder = WORKS[name], place / "run"
    settings = [
        *with_images(work.settings, images), *METHODS[method], f"run.rounds={work.rounds}",
        f"run.engine={engine}", "run.eval_every=0", "run.log_weights_every=0", "log.profile=true",
        "run.checkpoint_every=0", f"run.autocast={'bfloat16' if arguments.bf16 else 'none'}",
        "log.figures=false", "log.progress=none", "run.overwrite=true", f"run.dir={folder}",
        "data.eval_examples=1",
    ]  # fmt: skip
    command = ["-m", "cobo_dist.train", *settings, f"run.threads={THREADS}"]
    if arguments.backend == "mpi":
        _call(["mpirun", "-n", str(RANKS), sys.executable, *command, "comm.backend=mpi"], arguments)
    else:
        _torchrun(command, arguments)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Seconds of each round with its logging. The last round also evaluates and saves, so it is left out.
    spent = {
        line["round"]: sum(ranks[0] for ranks in line["seconds"].values())
        for line in lines
        if line["event"] == "profile"
    }
    kept = [spent[r] for r in range(work.warm + 1, work.rounds)]
    environment = json.loads((folder / "env.json").read_text())
    return _median_of_blocks(kept, work.block), environment["engine"], settings


def _median_of_blocks(seconds: list[float], block: int) -> float:
    """Return the median over blocks of the mean seconds of a round."""
    means = [
        statistics.fmean(seconds[at : at + block])
        for at in range(0, len(seconds) - block + 1, block)
    ]
    return statistics.median(means)


def _torchrun(command: list[str], arguments: argparse.Namespace) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    _call([*launcher, f"--nproc_per_node={RANKS}", *command], arguments)


def _call(command: list[str], arguments: argparse.Namespace) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if arguments.allocator == "kept":
        environment |= KEPT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")


# -- the floor -----------------------------------------------------------------------------------------


def _floor(
    name: str, method: str, settings: list[str], engine: str, arguments: argparse.Namespace
) -> float:
    """Return seconds a round of the bare loop: of each round, those of the slower process."""
    about = json.dumps(
        {
            "name": name,
            "method": method,
            "settings": settings,
            "engine": engine,
            "bf16": arguments.bf16,
        }
    )
    with tempfile.TemporaryDirectory() as place:
        _torchrun([__file__, "--bare", about, "--place", place], arguments)
        ranks = [json.loads(path.read_text()) for path in Path(place).iterdir()]
    slower = [max(times) for times in zip(*ranks, strict=True)]
    return _median_of_blocks(slower[WORKS[name].warm :], WORKS[name].block)


def _bare(about: dict[str, object], place: Path) -> None:
    """Run one process of the floor: the passes of this rank's clients, and a step."""
    from cobo_dist.clients.engines import trained
    from cobo_dist.config import load_config
    from cobo_dist.maths import seeds
    from cobo_dist.maths.sampling import draw_pairs
    from cobo_dist.tasks.registry import build_task

    torch.set_num_threads(THREADS)
    work, method = WORKS[str(about["name"])], str(about["method"])
    config = load_config(None, list(about["settings"]))  # type: ignore[call-overload]
    task = build_task(config.task, config.model, config.data, 0, torch.float32)
    rank = int(os.environ["RANK"])
    mine = [i for i in range(work.clients) if i * RANKS // work.clients == rank]

    def ends(t: int) -> int:
        """Return the number of midpoint gradients that this rank computes in round t."""
        if method == "ditto":
            return len(mine)
        if method == "fedavg":
            return 0
        pairs = draw_pairs(seeds.key(0, "pairs", t), work.clients, 1.0 / work.clients)
        return int(np.isin(pairs.numpy(), mine).sum())

    source = task.training(mine, torch.device("cpu"))
    batch = source.batch(0, "local")
    make = _vmapped if about["engine"] == "vectorised" else _looped
    models = [task.model() for _ in mine]
    for model in models:
        assert next(trained(model), None) is not None
    one_round = make(models, batch, bool(about["bf16"]))
    seconds = []
    for t in range(work.rounds - 1):
        count = ends(t)
        started = time.perf_counter()
        one_round(count)
        seconds.append(time.perf_counter() - started)
    (place / str(rank)).write_text(json.dumps(seconds))


RoundFunction = Callable[[int], None]


def _looped(models: list[nn.Module], batch: tuple[Tensor, ...], bf16: bool) -> RoundFunction:
    """Return a round of plain loops: one model after the other."""
    examples = [tuple(tensor[row] for tensor in batch) for row in range(len(models))]

    def one(row: int, step: bool) -> None:
        model, (inputs, targets, *_) = models[row], examples[row]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(inputs), targets)
        gradients = torch.autograd.grad(loss, tuple(model.parameters()))
        if step:
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(gradient, alpha=1e-4)

    def one_round(ends: int) -> None:
        for row in range(len(models)):
            one(row, True)
        for end in range(ends):
            one(end % len(models), False)

    return one_round


def _vmapped(models: list[nn.Module], batch: tuple[Tensor, ...], bf16: bool) -> RoundFunction:
    """Return a round of one vmapped pass over all models, and one more over `ends` rows."""
    from torch.func import functional_call, grad, vmap

    template = models[0]
    names = [name for name, _ in template.named_parameters()]
    held = {name: torch.stack([m.get_parameter(name).detach() for m in models]) for name in names}

    def loss(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = functional_call(template, parameters, (inputs,))
            return nn.functional.cross_entropy(outputs, targets)

    mapped = vmap(grad(loss))

    def one_round(ends: int) -> None:
        gradients = mapped(held, *batch[:2])
        if ends:
            rows = torch.arange(ends) % len(models)
            # The floor avoids copies: it uses rows that exist already as midpoints.
            mapped({name: held[name][rows] for name in names}, batch[0][rows], batch[1][rows])
        for name in names:
            held[name].sub_(gradients[name], alpha=1e-4)

    return one_round


if __name__ == "__main__":
    main()
