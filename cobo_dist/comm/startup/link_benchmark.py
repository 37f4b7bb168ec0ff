"""The link benchmark: round trips, throughput and clock differences between ranks, over any transport."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cobo_dist.comm.transports.base import Transport

MODEL_BYTES = 26_000_000
"""About one ResNet-9 of the paper in float32."""
MAX_RANKS_FOR_ALL_LINKS = 8
"""Up to this number of ranks, all links are measured, one after another."""
ROUND_TRIPS, WARM_UP_TRIPS = 10, 2
MODEL_TRANSFERS = 3


@dataclass(frozen=True)
class Link:
    """What was measured between two ranks."""

    first: int
    second: int
    round_trip: float  # seconds for a small message and its answer, the median
    throughput: float  # bytes a second each way, with MODEL_BYTES both ways at once, the best
    skew: float  # seconds by which the second's clock is ahead of the first's


Pair = tuple[int, int]


def choose_links(ranks: int) -> tuple[list[list[Pair]], str]:
    """Return which pairs are measured, by step, and a description; the pairs of one step share no rank.

    Among few ranks: all pairs, one a step. Among many: neighbors (about half of them at the same time, as
    in a run), and rank 0 with every other rank (one a step).
    """
    if ranks <= MAX_RANKS_FOR_ALL_LINKS:
        every = list(itertools.combinations(range(ranks), 2))
        return [[pair] for pair in every], "every pair of ranks, one after another"
    ring = [(k, k + 1) for k in range(ranks - 1)]
    star = [[(0, k)] for k in range(2, ranks)]
    steps = [ring[0::2], ring[1::2], *star]
    return steps, (
        "neighbors (rank k with k + 1, half of them at a time) and rank 0 with every other, since "
        f"there are more than {MAX_RANKS_FOR_ALL_LINKS} ranks"
    )


def measure(
    transport: Transport, device: torch.device, nbytes: int = MODEL_BYTES
) -> tuple[list[Link], str]:
    """Measure links, on all ranks together; return them on rank 0 (elsewhere none), and which they are."""
    steps, description = choose_links(transport.world_size)
    mine = []
    buffers = [torch.zeros(nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
    for step in steps:
        for pair in step:
            if transport.rank in pair:
                mine.append(_measure(transport, pair, device, buffers))
        # No rank starts the next step while links of this one are measured.
        transport.gather(b"")
        transport.broadcast(b"")
    records = transport.gather(json.dumps([asdict(link) for link in mine if link]).encode())
    return [Link(**one) for record in records for one in json.loads(record)], description


def _measure(
    transport: Transport, pair: Pair, device: torch.device, buffers: Sequence[Tensor]
) -> Link | None:
    """Measure one link; the first rank of the pair measures time and returns the result."""
    first, second = pair
    leads = transport.rank == first
    peer = second if leads else first
    trips, skews = [], []
    for trip in range(WARM_UP_TRIPS + ROUND_TRIPS):
        took, peer_clock, own_clock = _ping(transport, peer, leads, device)
        if trip >= WARM_UP_TRIPS:  # the first ones open the connection
            trips.append(took)
            skews.append(peer_clock - own_clock)
    seconds = []
    for _ in range(MODEL_TRANSFERS):
        started = time.perf_counter()
        transport.exchange({peer: buffers[0]}, {peer: buffers[1]}, "doctor").wait()
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    if not leads:
        return None
    skew = min(zip(trips, skews, strict=True))[1]  # the shortest trip bounds the error best
    trips.sort()
    return Link(first, second, trips[len(trips) // 2], buffers[0].numel() / min(seconds), skew)


def _ping(
    transport: Transport, peer: int, leads: bool, device: torch.device
) -> tuple[float, float, float]:
    """Send a message to the peer and back; return its seconds, and the peer's and this clock halfway."""
    reading = torch.zeros(1, dtype=torch.float64, device=device)
    started, clock = time.perf_counter(), time.time()
    if leads:
        transport.exchange({peer: reading}, {}, "doctor").wait()
        transport.exchange({}, {peer: reading}, "doctor").wait()
    else:
        transport.exchange({}, {peer: reading}, "doctor").wait()
        transport.exchange({peer: reading.fill_(time.time())}, {}, "doctor").wait()
    _synchronize(device)
    took = time.perf_counter() - started
    return took, float(reading), clock + took / 2


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":  # `wait` only orders the stream
        torch.cuda.synchronize(device)
