"""Measures the constants of a prediction: this model's passes, this machine's rows, bookkeeping and link.

Every rank measures at the same time where its cores are its own, as in a run; otherwise rank 0 alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.cobo import CoBoConfig
from cobo_dist.algorithms.registry import build_algorithm
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session, choose_device, open_session
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.startup.link_benchmark import measure as measure_links
from cobo_dist.comm.transports.base import SoloTransport
from cobo_dist.config import Config
from cobo_dist.maths import mixing
from cobo_dist.maths.blocks import Block
from cobo_dist.planning.constants import Constants, Link, Overhead, Pass, subject_of
from cobo_dist.planning.fake_clients import FakeClients
from cobo_dist.tasks.base import Task
from cobo_dist.training.preparation import set_up_torch

PATIENCE = 0.25
"""Seconds for each number, or as long as three tries take."""
ROWS = 1 << 26  # bytes of the rows that are added: more than a cache holds


def measure_constants(config: Config, task: Task, launch: Launch) -> Constants | None:
    """Measure on all launched ranks; return it on rank 0.

    Raises:
        ConfigError: the ranks cannot connect, or there is no such device.
    """
    device = choose_device(config.run.device, config.comm.backend, launch)
    with open_session(launch, config.comm, device) as session:
        set_up_torch(config.run.threads or launch.cores, config.comm.deterministic, device)
        return measure_in_session(config, task, session)


def measure_in_session(config: Config, task: Task, session: Session) -> Constants | None:
    """Measure on all ranks of a session; return it on rank 0."""
    launch, device, transport = session.launch, session.device, session.transport
    on_gpu = device.type == "cuda"
    cores = torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0))
    threads = 1 if on_gpu else torch.get_num_threads()
    mine: Constants | None = None
    transport.gather(b"")
    transport.broadcast(b"")  # all begin at once
    if launch.rank == 0 or launch.local_world_size * threads <= cores:
        mine = _alone(config, task, device, cores, threads)
    transport.gather(b"")
    links, _ = measure_links(transport, device)
    if launch.rank or mine is None:
        return None
    if not links:
        return mine
    link = Link(
        latency=median(one.round_trip for one in links) / 2,
        bandwidth=median(one.throughput for one in links),
    )
    return mine.model_copy(update={"link": link})


def _alone(config: Config, task: Task, device: torch.device, cores: int, threads: int) -> Constants:
    """Measure what a rank does by itself."""
    dtype: torch.dtype = getattr(torch, config.run.dtype)
    passes, size = _passes(config, task, device, dtype)
    bandwidth, products = _rows(size, dtype, device)
    return Constants(
        of=subject_of(config, size),
        cores=cores,
        threads=threads,
        passes=passes,
        memory_bandwidth=bandwidth,
        products=products,
        link=None,
        overhead=_overhead(config, dtype),
    )


def seconds(call: Callable[[], object], device: torch.device, patience: float) -> float:
    """Return the lower quartile of a call's seconds, after one call that does not count.

    What else runs on a machine makes calls longer, never shorter.
    """
    taken: list[float] = []
    ends = None
    while ends is None or len(taken) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if ends is None:
            ends = time.perf_counter() + patience
        else:
            taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 4]


def line(few: int, at_few: float, many: int, at_many: float) -> tuple[float, float]:
    """Return (start, slope), neither below 0, of the line through two measured points."""
    if many == few:
        return 0.0, at_many / many
    slope = max(0.0, (at_many - at_few) / (many - few))
    return max(0.0, at_many - many * slope), slope


def _passes(
    config: Config, task: Task, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Pass], int]:
    """Time the engines for a few and for more clients, with their batches; return also d."""
    autocast = None if config.run.autocast == "none" else getattr(torch, config.run.autocast)

    def some(count: int, engine: str) -> Callable[[], object]:
        group = ClientBatch(
            range(count), task, config.optimizer, dtype=dtype, device=device, autocast=autocast
        )
        group.use_engine(engine)
        rounds = iter(range(10**9))
        return lambda: group.gradients(next(rounds))

    found = {}
    one = seconds(some(1, task.engines[0]), device, 0.0)
    many = max(1, min(task.clients, int(PATIENCE / max(one, 1e-6))))
    few = max(1, many // 8)
    for engine in task.engines:
        at = [seconds(some(count, engine), device, PATIENCE) for count in (few, many)]
        call, client = line(few, at[0], many, at[1])
        found[engine] = Pass(call=call, client=client)
    size = sum(one.numel() for one in task.model().parameters() if one.requires_grad)
    return found, size


def _rows(size: int, dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Return bytes a second of adding rows, and multiply-adds a second of weighing them."""
    # Written, since pages of zeros that nobody wrote are all the same one, in the cache.
    a, b = (torch.ones(ROWS // dtype.itemsize, dtype=dtype, device=device) for _ in range(2))
    bandwidth = 3 * a.nbytes / seconds(lambda: a.add_(b), device, PATIENCE)
    wide = min(size, 1 << 16)
    w, x = (torch.ones(64, k, dtype=dtype, device=device) for k in (64, wide))
    out = torch.empty(64, wide, dtype=dtype, device=device)
    products = 64 * 64 * wide / seconds(lambda: torch.mm(w, x, out=out), device, PATIENCE)
    return bandwidth, products


def _overhead(config: Config, dtype: torch.dtype) -> Overhead:
    """Time the algorithm's own rounds over stand-ins, whose models are one number: all else is left."""
    few, many = 8, 64
    at_few, _ = _bookkeeping(config, dtype, few, 0.0)
    at_many, _ = _bookkeeping(config, dtype, many, 0.0)
    a_round, client = line(few, at_few, many, at_many)
    end = 0.0
    if isinstance(config.algorithm, CoBoConfig):
        drawn = [_bookkeeping(config, dtype, many, rate) for rate in (1.0, 2.0)]
        (once, pairs), (twice, more) = drawn
        start, end = line(2 * pairs, once, 2 * more, twice)
        a_round = max(0.0, start - many * client)
    return Overhead(round=a_round, client=client, end=end, addition=_addition(dtype))


def _bookkeeping(
    config: Config, dtype: torch.dtype, clients: int, rate: float
) -> tuple[float, int]:
    """Return seconds of round 0 of `clients` stand-ins, pairs drawn at `rate`, and how many those are."""
    algorithm = config.algorithm
    if isinstance(algorithm, CoBoConfig):
        sampling = algorithm.sampling.model_copy(update={"name": "constant", "rate": rate})
        algorithm = algorithm.model_copy(update={"sampling": sampling})
    placement = Placement.contiguous(clients, 1)
    clusters = tuple(client // 4 for client in range(clients))
    over = FakeClients(placement, clusters, False, dtype)
    exchange = Exchange(SoloTransport(), placement, dtype, torch.device("cpu"))
    built = build_algorithm(algorithm, over, exchange, RunContext(clients, clusters, 0, 1 << 30))
    pairs = built.round(0).pairs
    return seconds(lambda: built.round(0), torch.device("cpu"), PATIENCE / 2), pairs


def _addition(dtype: torch.dtype) -> float:
    """Return seconds of adding one short row to another, as mixing adds what arrives."""
    plan = mixing.plan_sums(Block.of(np.ones((64, 2))))
    payload, into = torch.zeros(1, 1, dtype=dtype), torch.zeros(64, 1, dtype=dtype)
    unpack: Callable[[], object] = lambda: mixing.unpack(plan, payload, into)  # noqa: E731
    return seconds(unpack, torch.device("cpu"), PATIENCE / 2) / 64
