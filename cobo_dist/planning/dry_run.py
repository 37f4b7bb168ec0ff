"""A dry run: what a run would send and keep in memory, without running it.

The real algorithm runs its rounds with fake clients, and a counting exchange takes the place of the real
one. So this module knows nothing of how an algorithm communicates. The drawn pairs are those of the run. W
keeps its initial value, because alignments are 0; what `mix` sends at other W is counted apart.

Up to `MAX_COUNTED_RANKS` ranks are all counted. Of more ranks a random sample is counted, by the same code.

Shapes: n clients, R ranks, S of them counted, T rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.registry import build_algorithm
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.placement_search import propose
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.config import Config
from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.maths.compression import message_bytes
from cobo_dist.maths.flat import row_bytes
from cobo_dist.maths.graph import link_threshold
from cobo_dist.maths.weights import Weights
from cobo_dist.planning.counting_exchange import CountingExchange
from cobo_dist.planning.fake_clients import FakeClients
from cobo_dist.planning.memory_estimate import MemoryItem, MemoryUse, ModelSize, memory_items
from cobo_dist.tasks.base import Task
from cobo_dist.training.preparation import participation_of, raised_pairs, refuse_unfit

MAX_COUNTED_RANKS = 32
"""Ranks that are counted; of more ranks so many are sampled."""
MAX_COMPARISONS = 5_000_000
"""Comparisons of clients in one round, on average, that a dry run takes on."""
MAX_DRAWS = 100
"""Draws of the clients that take part that a plan counts, where not all do."""
MAX_WORK = 6_000_000
"""Clients and comparisons over all representative rounds; beyond it fewer rounds are counted."""


@dataclass(frozen=True)
class RoundTraffic:
    """What ranks send in one round, or in a mean round: [purposes, S], purposes as in `TRAINING`.

    `clients_qd`: what a client would send as a machine of its own, mean over clients: [2, 2], for pairs and
    for mixing, up and down.
    """

    ranks: int  # R
    pairs: float
    messages_ps: NDArray[np.float64]
    bytes_ps: NDArray[np.float64]
    clients_qd: NDArray[np.float64]

    @property
    def bytes_per_client(self) -> tuple[float, float]:
        """Bytes of a client up and down, as in summary.json."""
        up, down = self.clients_qd.sum(axis=0).tolist()
        return up, down

    @property
    def messages(self) -> dict[str, float]:
        """Messages of all R ranks by purpose: exact where all are counted, else estimated."""
        return self._of_all_ranks(self.messages_ps)

    @property
    def bytes(self) -> dict[str, float]:
        """Bytes of all R ranks by purpose: exact where all are counted, else estimated."""
        return self._of_all_ranks(self.bytes_ps)

    @property
    def total(self) -> float:
        """Bytes of all R ranks."""
        return sum(self.bytes.values())

    def _of_all_ranks(self, counts_ps: NDArray[np.float64]) -> dict[str, float]:
        scale = self.ranks / counts_ps.shape[1]
        return dict(zip(TRAINING, (scale * counts_ps.sum(axis=1)).tolist(), strict=True))

    def with_mixing(self, other: RoundTraffic) -> RoundTraffic:
        """Return the same round with the mixing of another."""
        mixing = np.array([purpose == "mixing" for purpose in TRAINING])[:, None]
        return replace(
            self,
            messages_ps=np.where(mixing, other.messages_ps, self.messages_ps),
            bytes_ps=np.where(mixing, other.bytes_ps, self.bytes_ps),
            clients_qd=np.stack([self.clients_qd[0], other.clients_qd[1]]),
        )


class DryRun:
    """A dry run of a config on R ranks."""

    def __init__(self, config: Config, task: Task, ranks: int, clients: int = 0) -> None:
        """Build the algorithm with fake clients.

        Args:
            config: the config of the run.
            task: its task; model, batches and data are taken from it.
            ranks: number R of ranks.
            clients: number n of clients; 0 for the task's own. The task's clusters grow in proportion.

        Raises:
            ConfigError: more ranks than clients, a task that does not fit the config, or rounds with too
                many comparisons to count.
        """
        refuse_unfit(config, task)
        self.config, self.task = config, task
        self.n, self.rounds = clients or task.clients, max(1, config.run.rounds)
        self.truth = task.truth
        if self.n != task.clients:
            self.truth = task.truth.of_clients(np.arange(self.n) * task.clients // self.n)
        self.clusters = self.truth.clusters_at(0)
        config.participation.refuse_unfit(self.n)
        self.participation = participation_of(config, self.n)
        sizes = task.train_sizes()
        examples = [sizes[i * task.clients // self.n] for i in range(self.n)]
        context = RunContext(
            self.n, self.clusters, config.run.seed, self.rounds, self.participation, examples,
            task.batch_size, self.truth, *raised_pairs(config, self.n), config.comm.compresses,
        )  # fmt: skip
        self.representatives = self._choose_rounds(context)
        self.placement = Placement.contiguous(self.n, ranks)
        self.counted = sample_ranks(config.run.seed, ranks)
        self.model = ModelSize.of(config, task)
        if self.participation.timing is not None:
            self.participation.timing.set_message_bytes(
                message_bytes(config.comm.compresses, self.model.size, self.model.wire.itemsize)
            )
        self.clients = FakeClients(
            self.placement, self.counted, self.clusters, self.model, self.participation, task
        )
        self.exchange = self._exchange(self.placement)
        self.algorithm = build_algorithm(config.algorithm, self.clients, self.exchange, context)

    def _choose_rounds(self, context: RunContext) -> list[tuple[int, int, float]]:
        """Return the representative rounds; fewer where there are many clients.

        Each is t, the round whose clients take part, and how many rounds it stands for.
        """
        algorithm = self.config.algorithm
        different = algorithm.representative_rounds(self.rounds)
        if self.truth.switches and different == [(0, self.rounds)]:
            different = self._by_clusters()
        rounds = self._with_draws(different)
        comparisons = [algorithm.comparisons(t, context) for t, _, _ in rounds]
        most = int(np.argmax(comparisons))
        if comparisons[most] > MAX_COMPARISONS:
            raise ConfigError(
                f"round {rounds[most][0] + 1} of algorithm.name={algorithm.name} compares "
                f"{self.n:,} clients about {comparisons[most]:,.0f} times, and a plan counts up to "
                f"{MAX_COMPARISONS:,} times; lower clients=, or let fewer pairs of clients meet"
            )
        work = len(rounds) * self.n + sum(comparisons)
        parts = np.array_split(
            np.arange(len(rounds)), max(1, min(len(rounds), int(len(rounds) * MAX_WORK / work)))
        )
        return [
            (*rounds[part[len(part) // 2]][:2], sum(rounds[k][2] for k in part)) for part in parts
        ]

    def _by_clusters(self) -> list[tuple[int, int]]:
        """Return the rounds in which clients change cluster, and one that stands for the others in between.

        In the former, clients that move may get models.
        """
        begins = [*(r - 1 for r in self.truth.switches), self.rounds]
        parts = [(0, begins[0])]
        for begin, end in pairwise(begins):
            parts += [(begin, 1), (begin + 1, end - begin - 1)]
        return [(t, count) for t, count in parts if count]

    def _with_draws(self, rounds: list[tuple[int, int]]) -> list[tuple[int, int, float]]:
        """Return rounds with a draw of clients each: all rounds of a short run, else a sample of draws."""
        if not self.participation.is_partial:
            return [(t, t, count) for t, count in rounds]
        if self.rounds <= MAX_DRAWS:
            return [(t, t, 1) for t in range(self.rounds)]
        # An algorithm whose rounds are random gives many rounds, each with a draw of its own.
        draws = max(1, MAX_DRAWS // len(rounds))
        return [
            (t, t if draws == 1 else self.rounds * k // draws, count / draws)
            for t, count in rounds
            for k in range(draws)
        ]

    def _exchange(self, placement: Placement) -> CountingExchange:
        return CountingExchange(
            placement,
            self.clients.sizes,
            self.model.dtype,
            ranks=self.counted,
            deterministic=self.config.comm.deterministic,
            wire=self.model.wire,
            compression=self.config.comm.compresses,
        )

    @property
    def counts_all_ranks(self) -> bool:
        """Whether counts are exact for all ranks."""
        return len(self.counted) == self.placement.ranks

    # -- traffic ----------------------------------------------------------------------------------

    def round(self, r: int, drawn: int | None = None) -> RoundTraffic:
        """Return what round r = 1 .. T sends; rounds are asked for in ascending order.

        The clients that take part are those of round `drawn` = 0 .. T-1; None: its own.

        As long as the run's W keeps its initial value, these are the counts of the run. An algorithm that
        looks for clusters is taken to find the true ones.
        """
        self.participation.stands_for = drawn
        return self._count(self.exchange, lambda: self.algorithm.round(r - 1).pairs)

    def traffic(self) -> dict[str, RoundTraffic]:
        """Return round 1, the mean round, and the mean round with models mixed at other W, by name."""
        first = self.round(1)
        found = [
            (first if t == drawn == 0 else self.round(t + 1, drawn), count / self.rounds)
            for t, drawn, count in self.representatives
        ]
        mean = RoundTraffic(
            self.placement.ranks,
            sum(one.pairs * share for one, share in found),
            sum((one.messages_ps * share for one, share in found), np.zeros_like(first.bytes_ps)),
            sum((one.bytes_ps * share for one, share in found), np.zeros_like(first.bytes_ps)),
            sum((one.clients_qd * share for one, share in found), np.zeros_like(first.clients_qd)),
        )
        others = {f"  {name}": mean.with_mixing(at) for name, at in self.other_mixing().items()}
        return {"round 1": first, f"mean of {self.rounds:,} rounds": mean, **others}

    def other_mixing(self) -> dict[str, RoundTraffic]:
        """Return what `mix` sends at other W that the run may reach, and after clients migrate."""
        found = {}
        for name, weights in self.algorithm.possible_weights().items():
            found[name] = self.mixing_at(weights)
            if placement := self._migrated(weights):
                found[f"{name}, moved"] = self.mixing_at(weights, placement)
        return found

    def mixing_at(
        self, weights: Weights | None, placement: Placement | None = None
    ) -> RoundTraffic:
        """Return what one `mix` sends at some W, or, if None, at a W with no two equal weights."""
        exchange = self._exchange(placement or self.placement)  # whose buffers are not the run's
        x_nd = self.clients.x_cd

        def mix() -> float:
            if weights is None:
                exchange.mix_unlike(self.algorithm.weights, x_nd)
            else:
                exchange.mix(weights, x_nd)
            return 0.0

        return self._count(exchange, mix)

    def _migrated(self, weights: Weights | None) -> Placement | None:
        """Return where clients would migrate at some W (comm.placement); None if they stay.

        The search looks at all pairs of ranks, so it needs a run whose ranks are all counted.
        """
        adaptive = self.config.comm.placement == "adaptive"
        if weights is None or not adaptive or not self.counts_all_ranks:
            return None
        level = link_threshold(self.config.algorithm.equal_share(self.n))
        found = propose(
            weights, self.placement, level, self.algorithm.sums,
            deterministic=self.config.comm.deterministic,
        )  # fmt: skip
        return found.placement if found else None

    def _count(self, exchange: CountingExchange, act: Callable[[], float]) -> RoundTraffic:
        before, clients_before = exchange.traffic(), exchange.client_traffic()
        pairs = act()
        sent = exchange.traffic() - before
        clients_qd = (exchange.client_traffic() - clients_before) / self.n
        messages_ps, bytes_ps = (
            one.astype(np.float64) for one in (sent.messages_ps, sent.bytes_ps)
        )
        return RoundTraffic(self.placement.ranks, pairs, messages_ps, bytes_ps, clients_qd)

    # -- memory -----------------------------------------------------------------------------------

    def memory(self) -> list[MemoryItem]:
        """Return what the fullest of the counted ranks keeps after the rounds asked for so far.

        What depends on the machine is left out: activations of a batch, evaluation, and the program itself.
        """
        ranks = [self.memory_of(int(rank)) for rank in self.counted]
        return max(ranks, key=lambda items: sum(item.bytes for item in items))

    def memory_of(self, rank: int) -> list[MemoryItem]:
        """Return what one counted rank keeps after the rounds asked for so far."""
        s = int(np.flatnonzero(self.counted == rank)[0])
        kept: Mapping[str, int] = {
            name: int(held[s].sum()) for name, held in self.exchange.buffers.items()
        }
        count, midpoints = len(self.placement.by_rank[rank]), kept.get("midpoints", 0)
        mixed = sum(
            held for name, held in kept.items() if name.startswith(("mixed ", "sums ", "term"))
        )
        matrices = self.algorithm.matrices().values()
        use = MemoryUse(
            clients=count,
            others=self.clients.others,
            optimizers=1 + self.clients.optimizers,
            bytes_beside=sum(
                row_bytes(self.clients.sizes.get(rows.shape[1], 0), self.model.dtype)
                for rows in self.algorithm.state().rows.values()
                if rows.dim() == 2
            ),
            gradients_elsewhere=int(self.clients.gradients_s[s]),
            rows_elsewhere=int(self.clients.apart_s[s]),
            midpoint_bytes=midpoints,
            mixed_bytes=mixed,
            message_bytes=sum(kept.values()) - mixed - midpoints,
            weight_bytes=sum(one.bytes_of(count) for one in matrices),
            weight_row_bytes=sum(self.n * one.dtype.itemsize for one in matrices),
        )
        return memory_items(use, self.model, self.config, self.task)


def sample_ranks(seed: int, ranks: int) -> NDArray[np.int64]:
    """Return the ranks that are counted, ascending: all, or a sample that depends on the seed alone.

    >>> sample_ranks(0, 3)
    array([0, 1, 2])
    """
    if ranks <= MAX_COUNTED_RANKS:
        return np.arange(ranks)
    order = seeds.permutation(seeds.key(seed, "ranks", ranks), ranks).numpy()
    return np.sort(order[:MAX_COUNTED_RANKS])
