"""How fast ranks reach each other: round trips, throughput and clocks, over any transport."""

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
"""Up to so many ranks, all links are measured, one after another."""
PINGS, HEAVY = 10, 3


@dataclass(frozen=True)
class Link:
    """What was measured between two ranks. Seconds, and bytes a second in each direction."""

    first: int
    second: int
    round_trip: float  # of a small message and its answer, the median
    throughput: float  # with MODEL_BYTES both ways at once, the best
    skew: float  # what the second's clock shows beyond the first's


Pair = tuple[int, int]


def choose_links(ranks: int) -> tuple[list[list[Pair]], str]:
    """Return which pairs are measured, and that in words; the pairs of one step share no rank.

    All pairs among few ranks, one a step. Among many, neighbours in the ring of ranks (about half of them
    at the same time, as in a run) and rank 0 with every other (one a step).
    """
    if ranks <= MAX_RANKS_FOR_ALL_LINKS:
        every = list(itertools.combinations(range(ranks), 2))
        return [[pair] for pair in every], "every pair of ranks, one after another"
    ring = [(k, k + 1) for k in range(ranks - 1)]
    star = [[(0, k)] for k in range(2, ranks)]
    steps = [ring[0::2], ring[1::2], *star]
    return steps, (
        "neighbours (rank k with k + 1, half of them at a time) and rank 0 with every other, since "
        f"there are more than {MAX_RANKS_FOR_ALL_LINKS} ranks"
    )


def measure(
    transport: Transport, device: torch.device, nbytes: int = MODEL_BYTES
) -> tuple[list[Link], str]:
    """Measure the links of all ranks together; return them on rank 0 (elsewhere none), and the choice."""
    steps, words = choose_links(transport.world_size)
    mine = []
    boxes = [torch.zeros(nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
    for step in steps:
        for pair in step:
            if transport.rank in pair:
                mine.append(_measure(transport, pair, device, boxes))
        # No one starts the next step while links of this one are measured.
        transport.gather(b"")
        transport.broadcast(b"")
    told = transport.gather(json.dumps([asdict(link) for link in mine if link]).encode())
    return [Link(**one) for record in told for one in json.loads(record)], words


def _measure(
    transport: Transport, pair: Pair, device: torch.device, boxes: Sequence[Tensor]
) -> Link | None:
    """Measure one link; the first rank of the pair keeps the clock and returns the result."""
    first, second = pair
    leads = transport.rank == first
    peer = second if leads else first
    trips, skews = [], []
    for ping in range(PINGS + 2):
        took, theirs, middle = _ping(transport, peer, leads, device)
        if ping >= 2:  # the first ones open the connection
            trips.append(took)
            skews.append(theirs - middle)
    seconds = []
    for _ in range(HEAVY):
        began = time.perf_counter()
        transport.exchange({peer: boxes[0]}, {peer: boxes[1]}, "doctor").wait()
        _settle(device)
        seconds.append(time.perf_counter() - began)
    if not leads:
        return None
    skew = min(zip(trips, skews, strict=True))[1]  # the shortest trip leaves the least doubt
    trips.sort()
    return Link(first, second, trips[len(trips) // 2], boxes[0].numel() / min(seconds), skew)


def _ping(
    transport: Transport, peer: int, leads: bool, device: torch.device
) -> tuple[float, float, float]:
    """Let a clock reading go to the peer and back; return seconds, the peer's clock and the own then."""
    note = torch.zeros(1, dtype=torch.float64, device=device)
    began, clock = time.perf_counter(), time.time()
    if leads:
        transport.exchange({peer: note}, {}, "doctor").wait()
        transport.exchange({}, {peer: note}, "doctor").wait()
    else:
        transport.exchange({}, {peer: note}, "doctor").wait()
        transport.exchange({peer: note.fill_(time.time())}, {}, "doctor").wait()
    _settle(device)
    took = time.perf_counter() - began
    return took, float(note), clock + took / 2


def _settle(device: torch.device) -> None:
    if device.type == "cuda":  # waiting only orders the stream
        torch.cuda.synchronize(device)
