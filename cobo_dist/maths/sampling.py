"""Which pairs of clients are drawn in a round: Algorithm 1, line 11, and the strategies of Table 1.

Every unordered pair is drawn independently with one probability, so the gaps between drawn pairs
(in a fixed numbering of all pairs) are geometric. Drawing the gaps costs O(pairs drawn), and not the
O(n^2) of one random number a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds

Key = Callable[[int], int]
STRATEGIES = ("constant", "time", "mixed", "all", "published")


def pair_probability(
    strategy: str, t: int, n: int, rounds: int, *, rate: float = 1.0, switch_fraction: float = 0.002
) -> float:
    """Return the probability that one unordered pair is drawn at round t (t = 0 is the first).

    `constant`: rate/n. `time`: rate/(t+1). `mixed`: rate/n in the first `switch_fraction` of the
    rounds (0.2% in the paper), rate/(t+1) after. `all`: rate. `published`, as the authors' code:
    2 rate/n in the first 800 rounds, rate/sqrt(t+1) after. Clipped to [0, 1]; `rate=0` draws none.

    Raises:
        ValueError: the strategy is none of `STRATEGIES`.
    """
    if strategy == "constant" or (strategy == "mixed" and t < switch_fraction * rounds):
        base = 1.0 / n
    elif strategy in ("time", "mixed"):
        base = 1.0 / (t + 1)
    elif strategy == "all":
        base = 1.0
    elif strategy == "published":
        base = 2.0 / n if t < 800 else (t + 1) ** -0.5
    else:
        raise ValueError(f"sampling strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    return min(1.0, rate * base)


def draw_pairs(name: int, n: int, probability: float) -> Tensor:
    """Draw each unordered pair of 0..n-1 with `probability`: int64 [m, 2], i < j, in ascending order.

    `name` is a key, such as `seeds.key(seed, "pairs", t)`: all ranks draw the same list without a message.

    >>> draw_pairs(seeds.key(0, "pairs", 5), 8, 0.1).tolist()
    [[0, 7], [1, 2], [1, 5], [1, 7], [3, 6]]
    """
    total = n * (n - 1) // 2
    if probability <= 0.0 or total == 0:
        return torch.empty(0, 2, dtype=torch.int64)
    if probability >= 1.0:
        return unrank_pairs(torch.arange(total), n)
    drawn, last, start = [], -1, 0
    while last < total:
        # Mean plus six standard deviations: one block nearly always passes the end.
        expected = (total - last) * probability
        count = int(expected + 6.0 * math.sqrt(expected) + 16)
        gaps = (seeds.uniforms(name, count, start=start).log() / math.log1p(-probability)).floor()
        # A gap past the end only has to stay past the end; clamping keeps the sums inside int64.
        ranks = (gaps.clamp(max=float(total)).to(torch.int64) + 1).cumsum(0) + last
        drawn.append(ranks[ranks < total])
        last, start = int(ranks[-1]), start + count
    return unrank_pairs(torch.cat(drawn), n)


def add_pairs_of(
    pairs_m2: Tensor, clients_k: Iterable[int], n: int, probability: float, factor: float, key: Key
) -> Tensor:
    """Add pairs, so that those with some clients are drawn with min(1, factor * probability): int64 [m, 2].

    Args:
        pairs_m2: pairs that were drawn with `probability`; they stay.
        clients_k: clients of 0..n-1 whose pairs are drawn more often.
        n: number of clients.
        probability: that of a pair.
        factor: by which it is raised, at least 1.
        key: gives the key of a client's further draws.
    """
    raised = min(1.0, factor * probability)
    if raised <= probability:
        return pairs_m2
    more = (raised - probability) / (1.0 - probability)
    ranks, lower = [pairs_m2[:, 0] * n + pairs_m2[:, 1]], set[int]()
    for client in clients_k:
        drawn = (seeds.uniforms(key(client), n) < more).nonzero()[:, 0]
        # A pair of two such clients is drawn once, by the first of them.
        others = torch.tensor([j for j in drawn.tolist() if j != client and j not in lower])
        others = others.to(torch.int64)
        ranks.append(others.clamp(max=client) * n + others.clamp(min=client))
        lower.add(client)
    unique = torch.unique(torch.cat(ranks))  # ascending
    return torch.stack([unique // n, unique % n], dim=1)


def unrank_pairs(ranks_m: Tensor, n: int) -> Tensor:
    """Return the pairs (i, j), i < j, int64 [m, 2], with the numbers `ranks_m` in row-major order."""
    # Row i has n-1-i pairs and starts at i(2n-1-i)/2: solve for i in floats, then correct in integers.
    b = 2 * n - 1
    i = ((b - (float(b) ** 2 - 8.0 * ranks_m.to(torch.float64)).clamp(min=0).sqrt()) / 2).long()
    i = i - (_row_start(i, n) > ranks_m).long()
    i = i + (_row_start(i + 1, n) <= ranks_m).long()
    return torch.stack([i, ranks_m - _row_start(i, n) + i + 1], dim=1)


def _row_start(i: Tensor, n: int) -> Tensor:
    return i * (2 * n - 1 - i) // 2
