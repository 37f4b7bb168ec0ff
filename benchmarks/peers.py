"""A round of FedAvg here, in Flower's simulation and in Apple's pfl, on the same work.

python benchmarks/peers.py [--only WORK ...] [--peer NAME ...] [--repeats 1] [--rounds N] [--install-into
DIR]

All clients take one local step a round, batch 32, float32, from the same x^0 on the same batches with the
same learning rate. So the last models must agree: the largest difference of a parameter is printed beside
the largest change of a parameter in training. Ours makes its batches during the run; the others read theirs
from memory. Each peer is installed from the package index into its own environment at the first start
(minutes). Runs alternate. Printed is the median over repeats of the median over rounds, without the first
rounds. All use 2 cores: ours and pfl as 2 ranks of one thread, pfl also as one process of 2 threads, Flower
as 2 workers of its Ray backend; all use the allocator settings of the launch scripts. For a peer that
cannot be installed or run, one line with the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from floor import KEPT
from made_up import make_images, with_images
from peers.install import REQUIREMENTS, NotInstalled, cache, environment
from peers.work import LEARNING_RATE, WORKS, Problem, Work, read_result, write_problem
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
CORES = 2
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
RUN_SECONDS = 900.0  # at most, for one run
MAX_FOLDER_CHARACTERS = 40  # Ray adds long paths of sockets, which have 107 characters at most
MIN_ROUNDS = 3  # the first round is not timed, nor our last one, in which we evaluate
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={CORES}")


class Failed(Exception):
    """A run failed; the message is one line with the reason."""


@dataclass
class Entry:
    """One way to do the work, and its measured seconds and model."""

    name: str
    peer: str | None  # None: ours
    command: tuple[str, ...]  # what follows python; {problem} and {folder} stand for paths
    threads: str
    python: Path = Path(sys.executable)
    seconds: list[float] = field(default_factory=list)
    model: dict[str, Tensor] = field(default_factory=dict)
    trouble: str = ""


def entries(work: Work, peers: list[str]) -> list[Entry]:
    """Return the entries of the comparison."""
    ours = (*TORCHRUN, "-m", "cobo_dist.train", "run.threads=1")
    two = "2 ranks of 1 thread"
    found = [Entry("cobo_dist", None, ours, two)]
    if work.images:
        found.append(Entry("cobo_dist, bf16", None, (*ours, "run.autocast=bfloat16"), two))
    if "flower" in peers:
        command = ("-m", "peers.flower_side", "{problem}", "{folder}", str(CORES))
        found.append(Entry("Flower", "flower", command, "2 Ray workers of 1 thread"))
    if "pfl" in peers:
        side = ("-m", "peers.pfl_side", "{problem}", "{folder}")
        found.append(Entry("pfl", "pfl", (*side, "2"), "1 process of 2 threads"))
        found.append(Entry("pfl, torchrun", "pfl", (*TORCHRUN, *side, "1"), two))
    return found


def main() -> None:
    """Install, measure and print."""
    given = parse()
    pythons: dict[str, Path] = {}
    for peer in given.peer:
        try:
            pythons[peer] = environment(peer, given.install_into)
        except (NotInstalled, OSError) as reason:
            print(f"{peer} could not be installed: {reason}", flush=True)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{torch.__version__}; FedAvg, batch 32, one local step a round, float32, lr {LEARNING_RATE}\n"
    )
    print(f"{'work':16}{'by':17}{'s a round':>11}{'to ours':>9}{'differs by':>12}   threads")
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        os.environ["FLWR_HOME"] = place
        if len(place) < MAX_FOLDER_CHARACTERS:
            os.environ["RAY_TMPDIR"] = place
        images = make_images(Path(place) / "images.npz", 8_000, 1_000)
        for name in given.only:
            versions |= compare(name, pythons, images, Path(place), given)
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    print(f"\n{packages or 'no peer ran'}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), help="some works")
    parser.add_argument("--peer", nargs="+", choices=REQUIREMENTS, default=list(REQUIREMENTS))
    parser.add_argument("--repeats", type=int, default=1, help="alternating runs of each")
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds of a run; 0: as the work says"
    )
    parser.add_argument(
        "--install-into", type=Path, default=cache(), metavar="DIR", help=f"default {cache()}"
    )
    given = parser.parse_args()
    if given.repeats < 1 or (given.rounds and given.rounds < MIN_ROUNDS):
        parser.error(f"--repeats has to be 1 or more, and --rounds {MIN_ROUNDS} or more")
    return given


def compare(
    name: str, pythons: dict[str, Path], images: Path, place: Path, given: argparse.Namespace
) -> dict[str, str]:
    """Alternate all entries on one work, print the rows, return the versions of the peers that ran."""
    work = WORKS[name]
    rounds = given.rounds or work.rounds
    warm = min(work.warm, rounds // 2)
    path = write_problem(work, images, rounds, place / "problem.pt")
    taking_part = entries(work, list(pythons))
    versions: dict[str, str] = {}
    for _ in range(given.repeats):
        for entry in taking_part:
            entry.python = pythons.get(entry.peer or "", entry.python)
            if entry.trouble:
                continue
            try:
                if entry.peer is None:
                    seconds, entry.model = run_ours(entry, work, images, rounds, place)
                else:
                    seconds, entry.model, found = run_peer(entry, path, place)
                    versions |= found
                entry.seconds.append(statistics.median(seconds[warm:]))
            except Failed as reason:
                entry.trouble = str(reason)
    show(name, taking_part, Problem(path).model)
    path.unlink()
    return versions


def show(name: str, taking_part: list[Entry], start: torch.nn.Module) -> None:
    """Print a row for each entry."""
    ours = taking_part[0]
    begun = {key: one.detach() for key, one in start.named_parameters()}
    for entry in taking_part:
        if entry.trouble:
            print(f"{name:16}{entry.name:17} was not measured: {entry.trouble}", flush=True)
            continue
        mine = statistics.median(entry.seconds)
        ratio = f"{mine / statistics.median(ours.seconds):.2f}" if ours.seconds else "-"
        apart = f"{largest(entry.model, ours.model):.1e}" if ours.model else "-"
        print(f"{name:16}{entry.name:17}{mine:>11.4f}{ratio:>9}{apart:>12}   {entry.threads}")
    if ours.model:
        moved = largest(ours.model, begun)
        print(f"{'':16}largest change of a parameter in training: {moved:.1e}\n", flush=True)


def largest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of a parameter; both must have the same parameters."""
    if one.keys() != other.keys():
        raise ValueError(f"parameters differ: {sorted(one.keys() ^ other.keys())}")
    return max(float((one[key] - other[key]).abs().max()) for key in one)


# -- runs ----------------------------------------------------------------------------------------------


def run_ours(
    entry: Entry, work: Work, images: Path, rounds: int, place: Path
) -> tuple[list[float], dict[str, Tensor]]:
    """Return seconds of every round but the last, everything included, and the last model."""
    folder = place / "run"
    settings = [
        *with_images(work.settings, images), "algorithm.name=fedavg", f"optimizer.lr={LEARNING_RATE}",
        f"run.rounds={rounds}", f"run.dir={folder}", "run.overwrite=true", "run.eval_every=0",
        "run.log_weights_every=0", "run.checkpoint_every=0", "data.eval_examples=1", "log.profile=true",
        "log.figures=false", "log.progress=none",
    ]  # fmt: skip
    call(entry, [*entry.command, *settings])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    spent = {
        line["round"]: sum(ranks[0] for ranks in line["seconds"].values())
        for line in lines
        if line["event"] == "profile"
    }
    model = load_file(folder / "models" / "client_00000.safetensors")
    parameters = {name for name, _ in Problem(place / "problem.pt").model.named_parameters()}
    # The last round has the final evaluation and checkpoint in it.
    return [spent[t] for t in range(1, rounds)], {key: model[key] for key in parameters}


def run_peer(
    entry: Entry, path: Path, place: Path
) -> tuple[list[float], dict[str, Tensor], dict[str, str]]:
    """Return seconds of every round, the last model and the peer's versions."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        values = {"problem": str(path), "folder": folder}
        call(entry, [part.format(**values) for part in entry.command])
        try:
            return read_result(Path(folder))
        except FileNotFoundError:
            raise Failed("it wrote no result") from None


def call(entry: Entry, command: list[str]) -> None:
    """Run python with these arguments until it ends."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | KEPT | QUIET | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if TORCHRUN[1] in command:
        environment["OMP_NUM_THREADS"] = "1"
    running = subprocess.Popen(
        [str(entry.python), *command], env=environment, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        words = running.communicate(timeout=RUN_SECONDS)[1]
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Failed(f"it was not done after {RUN_SECONDS:.0f} s") from None
    if running.returncode:
        raise Failed(reason_in(words))


def reason_in(words: str) -> str:
    """Return the line of the error in a traceback, or the last line."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [
        line for line in lines if ("Error" in line or "error:" in line) and "Child" not in line
    ]
    return ([*lines[-1:], *errors[-1:]] or ["it printed nothing"])[-1]


if __name__ == "__main__":
    main()
