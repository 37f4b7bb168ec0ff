"""What cobo_dist does on one GPU: speed beside ceilings and floors, numbers beside the CPU's, endings.

python benchmarks/gpu.py [--only PART ...] [--out FILE.json] [--small]

Needs one GPU, no network and no data: images are made up. Takes under ten minutes. Prints one table and
writes one JSON. Where there is no GPU, or with `--small`, it runs everything that a CPU can on tiny models,
to show that it works.

Parts: `ceilings` (copies, matrix products, launches), `floor` (a bare PyTorch loop of the same passes, and a
loop like the authors' code), `paper` (CoBo of the paper's two vision experiments, seconds a round and hours
of the full length), `numbers` (every algorithm in float64 on the GPU and on the CPU), `shared` (two ranks on
one GPU), `trace` (how busy the GPU is), `endings` (out of memory, a signal, a killed rank).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import gpu_floor
import torch
from made_up import make_images
from safetensors.torch import load_file

from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.cli.train import main as train
from cobo_dist.config import load_config

PAPER = {  # config: rounds of the full length, hours in the paper and on what
    "cross_silo": (40_000, "9 h on a V100"),
    "cross_device": (20_000, "28 h on four V100"),
}
PRECISIONS = {
    "float32": ("run.tf32=off",),
    "TF32": ("run.tf32=on",),
    "bfloat16": ("run.autocast=bfloat16", "run.tf32=on"),
}
QUIET = (
    "log.figures=false", "log.progress=none", "run.overwrite=true", "run.eval_every=0",
    "run.log_weights_every=0", "run.checkpoint_every=0", "data.eval_examples=1",
)  # fmt: skip
SMALL = ("model.width=2", "data.batch_size=2")
SMALL_TASK = {
    "cross_silo": ("task.clients_per_cluster=1", "task.clusters=2"),
    "cross_device": ("algorithm.sampling.rate=0.1",),
}
WARM_ROUNDS = 5
Figures = dict[str, Any]


class Bench:
    """One machine, one folder, one kind of models."""

    def __init__(self, place: Path, small: bool) -> None:
        self.place, self.small = place, small
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        count = (400, 100) if small else (50_000, 1_000)
        self.images = make_images(place / "images.npz", *count)
        self.rounds = {"cross_silo": 7 if small else 60, "cross_device": 6 if small else 15}
        self.runs = 0
        self.best = () if small else PRECISIONS["bfloat16"]

    def precisions(self) -> dict[str, tuple[str, ...]]:
        """Return settings by precision; on CPUs that emulate bfloat16, it takes minutes."""
        return {"float32": ()} if self.small else PRECISIONS

    def settings(self, *more: str) -> list[str]:
        """Return the settings of a run in a folder of its own; those in `more` come last."""
        self.runs += 1
        folder = self.place / f"run-{self.runs}"
        return [*QUIET, f"run.dir={folder}", f"run.device={self.device.type}", *more]

    def run(self, *more: str) -> Path:
        """Train in this process; return the run folder."""
        settings = self.settings(*more)
        with redirect_stdout(io.StringIO()):
            code = train(settings)
        if code:
            raise RuntimeError(f"{' '.join(settings)} ended with {code}")
        return Path(dict(one.split("=", 1) for one in settings)["run.dir"])

    def paper(self, task: str, *more: str) -> list[str]:
        """Return the settings of the paper's CoBo experiment on made-up images."""
        config = [f"--config=configs/paper/{task}_cobo.yaml", f"data.file={self.images}"]
        small = (*SMALL, *SMALL_TASK[task]) if self.small else ()
        return [*config, f"run.rounds={self.rounds[task]}", *small, *more]


# -- parts -------------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> Iterator[tuple[str, Figures]]:
    """Bandwidth, matrix products, launches and waiting."""
    yield "ceilings", gpu_floor.ceilings(bench.device, bench.small)


def floor(bench: Bench) -> Iterator[tuple[str, Figures]]:
    """Milliseconds a gradient of a bare loop, and a round of a loop like the authors' code."""
    width, batch = (2, 8) if bench.small else (64, 128)
    for name, one in gpu_floor.VARIANTS.items():
        if bench.device.type == "cuda" or not one.graph:
            ms = gpu_floor.gradient_ms(bench.device, width, batch, one)
            yield f"floor, {name}", {"ms a gradient": ms}
    clients, rounds = (4, 1) if bench.small else (8, 3)
    seconds = gpu_floor.authors_like(bench.device, width, batch, clients, rounds)
    yield "a loop like the authors' code", {"s a round": seconds}


def paper(bench: Bench) -> Iterator[tuple[str, Figures]]:
    """Seconds a round of CoBo, hours of the full length, memory."""
    for task, (length, published) in PAPER.items():
        for name, precision in bench.precisions().items():
            for graphs in ("auto", "off"):
                if graphs == "off" and (task == "cross_device" or bench.device.type == "cpu"):
                    continue
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                more = (*precision, f"run.cuda_graphs={graphs}", "run.engine=one_by_one")
                folder = bench.run(*bench.paper(task, *more))
                seconds = seconds_a_round(folder)
                title = f"{task}, {name}" + (", no graphs" if graphs == "off" else "")
                yield (
                    title,
                    {
                        "s a round": seconds,
                        "h for the full length": seconds * length / 3600,
                        "the paper": published,
                        "peak GB": _peak(folder) / 1e9,
                        "engine": json.loads((folder / "env.json").read_text())["engine_choice"],
                    },
                )


def numbers(bench: Bench) -> Iterator[tuple[str, Figures]]:
    """The largest difference between models of the GPU and of the CPU, in float64."""
    for algorithm in ("cobo",) if bench.small else ALGORITHMS:
        settings = load_config(None, [f"algorithm.name={algorithm}"]).algorithm
        steps = 1 if settings.takes_one_step else 2  # some are others with one
        common = (
            f"algorithm.name={algorithm}", "run.dtype=float64", "run.rounds=10",
            "task.validation_fraction=0.2", f"local.steps={steps}", "model.norm=batch",
        )  # fmt: skip
        for engine in ("one_by_one", "vectorised"):
            there = bench.run(*common, f"run.engine={engine}")
            here = bench.run(*common, f"run.engine={engine}", "run.device=cpu")
            yield f"{algorithm}, {engine}", {"largest difference": difference(there, here)}


def shared(bench: Bench) -> Iterator[tuple[str, Figures]]:
    """Two ranks on one GPU: the same models as one rank, and the time of a round."""
    common = ("run.dtype=float64", "run.rounds=20")
    settings = bench.settings(*common, "comm.backend=gloo", "comm.check=true")
    _torchrun(settings)
    two = bench.place / f"run-{bench.runs}"
    yield "two ranks, digits", {"largest difference": difference(bench.run(*common), two)}
    settings = bench.settings(*bench.paper("cross_silo", *bench.best), "comm.backend=gloo")
    _torchrun(settings)
    two = bench.place / f"run-{bench.runs}"
    yield "two ranks, cross_silo, bfloat16", {"s a round": seconds_a_round(two)}


def trace(bench: Bench) -> Iterator[tuple[str, Figures]]:
    """The share of the time in which the GPU works."""
    rounds = 3 if bench.small else 10
    more = (
        *PRECISIONS["bfloat16"],
        f"log.trace={rounds}",
        "run.rounds=25",
        "run.engine=one_by_one",
    )
    folder = bench.run(*bench.paper("cross_silo", *more))
    events = json.loads((folder / "profile" / "rank_00000.json").read_text())["traceEvents"]
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"} if bench.device.type == "cuda" else {"cpu_op"}
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in kinds)
    busy, end = 0.0, spans[0][0]
    for begin, stop in spans:
        busy += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    launches = sum(e.get("name", "").startswith(("cudaLaunch", "cudaGraphLaunch")) for e in events)
    yield (
        "trace, cross_silo, bfloat16",
        {
            "busy share": busy / (end - spans[0][0]),
            "operations a round": len(spans) / rounds,
            "launches a round": launches / rounds,
        },
    )


def endings(bench: Bench) -> Iterator[tuple[str, Figures]]:
    """Exit codes, words and seconds of runs that end badly."""
    if bench.device.type == "cuda":
        much = bench.paper("cross_silo", "data.batch_size=400000", "run.engine=one_by_one")
        yield "out of memory", _ending([*bench.settings(*much)], 1, None)
    forever = bench.paper("cross_silo", "run.rounds=100000")
    yield "SIGTERM", _ending(bench.settings(*forever), 1, signal.SIGTERM)
    two = bench.settings(*forever, "comm.backend=gloo")
    yield "a killed rank of two", _ending(two, 2, signal.SIGKILL)


PARTS: dict[str, Callable[[Bench], Iterator[tuple[str, Figures]]]] = {
    one.__name__: one for one in (ceilings, floor, paper, numbers, shared, trace, endings)
}


# -- helpers -----------------------------------------------------------------------------------------


def seconds_a_round(folder: Path) -> float:
    """Return the median seconds of a round after the first ones."""
    return statistics.median(
        row["seconds"]
        for row in _rows(folder)
        if row["event"] == "round" and row["round"] > WARM_ROUNDS
    )


def _peak(folder: Path) -> int:
    (row,) = [row for row in _rows(folder) if row["event"] == "traffic"]
    return int(max(row["peak_bytes"]))


def _rows(folder: Path) -> list[Figures]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of two runs' models."""
    paths = sorted((one / "models").glob("*.safetensors"))
    if not paths:
        raise RuntimeError(f"{one} holds no models")
    return max(
        float((mine - load_file(other / "models" / path.name)[name]).abs().max())
        for path in paths
        for name, mine in load_file(path).items()
    )


def _torchrun(settings: list[str]) -> None:
    done = subprocess.run([*_LAUNCHER, *settings], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[0])


_LAUNCHER = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
    "-m", "cobo_dist.train",
]  # fmt: skip


def _ending(settings: list[str], ranks: int, sent: signal.Signals | None) -> Figures:
    """Start a run and, once it trains, signal it (its last rank where there are two)."""
    folder = Path(dict(one.split("=", 1) for one in settings if "=" in one)["run.dir"])
    command = [sys.executable, "-m", "cobo_dist.train"] if ranks == 1 else _LAUNCHER
    process = subprocess.Popen(
        [*command, *settings], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    began = time.monotonic()
    if sent is not None:
        metrics = folder / "metrics.jsonl"
        while process.poll() is None and not (
            metrics.exists() and '"round"' in metrics.read_text() and time.monotonic() - began > 5
        ):
            time.sleep(0.2)
        target = process.pid if ranks == 1 else _last_rank(process.pid)
        os.kill(target, sent)
    sent_at = time.monotonic()
    _, said = process.communicate(timeout=120)
    status = json.loads((folder / "status.json").read_text())
    return {
        "s": time.monotonic() - sent_at,
        "exit code": status.get("exit_code", process.returncode),
        "says": status.get("reason") or said.strip().splitlines()[-1:],
    }


def _last_rank(launcher: int) -> int:
    import psutil

    children = psutil.Process(launcher).children(recursive=True)
    ranks = [one for one in children if one.environ().get("LOCAL_RANK") == "1"]
    return int(ranks[0].pid)


def _machine() -> Figures:
    found = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        from cobo_dist.storage.environment import describe_environment

        found |= describe_environment(torch.device("cuda", 0)).versions
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some of the parts")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON file")
    parser.add_argument("--small", action="store_true", help="tiny models and few rounds")
    given = parser.parse_args()
    small = given.small or not torch.cuda.is_available()
    found: Figures = {"machine": _machine(), "small": small, "results": {}}
    print("  ".join(f"{name} {value}" for name, value in found["machine"].items()), flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place), small)
        for part in given.only or PARTS:
            try:
                for title, figures in PARTS[part](bench):
                    found["results"][title] = figures
                    show(title, figures)
            except Exception as error:  # the other parts still have something to say
                found["results"][part] = {"failed": " ".join(str(error).split())[:500]}
                show(part, found["results"][part])
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{time.monotonic() - began:.0f} s in all; {given.out}")


def show(title: str, figures: Figures) -> None:
    """Print one row."""
    words = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    ]
    print(f"{title:44}{'; '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
