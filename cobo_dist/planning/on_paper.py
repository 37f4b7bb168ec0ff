"""A run of any size, counted in closed form: what `run.forecast` rehearses with all clients.

For the algorithms whose traffic is regular, and clusters that stand side by side in the order of clients, so
that two ranks share at most one. Between two ranks there is then one sum of models to bring where all weights
are alike or where a cluster spans both, and as many models as the smaller one has clients where no two
weights are alike. Pairs are drawn as the run would draw them and counted one by one. Tests hold all of it
equal to the rehearsal.

Shapes: n clients, c clients of a rank, d parameters, R ranks, m pairs, G clusters; arrays [R] by rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cobo_dist.algorithms.cobo import CoBoConfig
from cobo_dist.algorithms.ditto import DittoConfig
from cobo_dist.algorithms.fedavg import AveragingConfig, FedAvgConfig
from cobo_dist.algorithms.finetuned_fedavg import FinetunedFedAvgConfig
from cobo_dist.algorithms.local import LocalConfig
from cobo_dist.algorithms.oracle import OracleConfig
from cobo_dist.config import Config
from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import row_bytes, widest
from cobo_dist.maths.sampling import draw_pairs, pair_probability
from cobo_dist.maths.weights import Weights
from cobo_dist.planning.blocks import Blocks, alike, all_different, clustered, no_blocks, reduced
from cobo_dist.planning.dry_run import telling_rounds
from cobo_dist.planning.meetings import Meetings, count_meetings
from cobo_dist.planning.memory_estimate import Held, Model, Part, parts_of, state_rows
from cobo_dist.planning.round_cost import Ints, Load, Mixing, Ranks, Told
from cobo_dist.tasks.base import Task
from cobo_dist.training.preparation import refuse_unfit

REGULAR = (LocalConfig, FedAvgConfig, FinetunedFedAvgConfig, OracleConfig, DittoConfig, CoBoConfig)
MOST_PAIRS = 20_000_000
"""Pairs of a round that are still drawn and counted."""
ENOUGH_PAIRS = 4_000_000
"""Pairs after which no further rounds are asked: so many hardly differ from the next ones."""


def side_by_side(clusters: Sequence[int] | None) -> bool:
    """Return whether every cluster is a run of clients."""
    labels = np.asarray(clusters if clusters is not None else ())
    return 1 + np.count_nonzero(np.diff(labels)) == len(np.unique(labels)) if len(labels) else True


def is_regular(config: Config, task: Task) -> bool:
    """Return whether the run can be counted in closed form."""
    return isinstance(config.algorithm, REGULAR) and side_by_side(task.clusters)


class OnPaper:
    """A run on R ranks, of as many clients as wished; see `DryRun` for the meaning of its methods."""

    def __init__(self, config: Config, task: Task, ranks: int, clients: int) -> None:
        """Take model, batches and data of the task, and its clusters in proportion.

        Raises:
            ConfigError: more ranks than clients, a task that does not fit the config, or an algorithm or
                clusters without a closed form.
        """
        refuse_unfit(config.algorithm, config.run, task)
        if not isinstance(config.algorithm, REGULAR):
            names = ", ".join(kind.model_fields["name"].default for kind in REGULAR)
            raise ConfigError(
                f"clients={clients}: algorithm.name={config.algorithm.name} is planned only with the "
                f"task's own {task.clients} clients; drop clients=, or choose one of {names}"
            )
        if not side_by_side(task.clusters):
            raise ConfigError(
                f"clients={clients} needs clusters that stand side by side, and those of "
                f"task.name={task.name} alternate; drop clients="
            )
        if ranks > clients:
            raise ConfigError(
                f"{ranks} ranks for {clients} clients: {ranks - clients} ranks would own no client; "
                "plan for fewer ranks or more clients"
            )
        self.config, self.task, self.n = config, task, clients
        self.rounds = max(1, config.run.rounds)
        self.model = Model.of(config, task)
        # Client i is on rank i R // n, so rank r begins at the client ceil(r n / R).
        borders = -(-np.arange(ranks + 1, dtype=np.int64) * clients // ranks)
        self.clients_r: Ints = np.diff(borders)
        self.deterministic = config.comm.deterministic
        self._meetings = Meetings.none(ranks)
        if task.clusters is not None:
            ends = np.flatnonzero(np.diff(np.asarray(task.clusters), append=np.nan)) + 1
            ends = ends.astype(np.int64) * clients // task.clients
            self.cluster_ends: Ints = np.unique(ends[ends > 0])

    @property
    def groups(self) -> int:
        """The number G of clusters; 0 where none are known."""
        return len(self.cluster_ends) if self.task.clusters is not None else 0

    # -- what ranks do ----------------------------------------------------------------------------

    def load(self, t: int) -> Load:
        """Return what every rank does in round t, with W at W^0."""
        algorithm, c = self.config.algorithm, self.clients_r
        nothing = np.zeros_like(c)
        passes, meetings = [c], Meetings.none(len(c))
        if isinstance(algorithm, CoBoConfig):
            meetings = self._meetings = self._meet(t, algorithm)
            passes += meetings.ends
        if isinstance(algorithm, DittoConfig):
            passes.append(c)
        return Load(
            meetings.pairs,
            {"pairs": meetings.model_messages, "gradients": meetings.gradient_messages},
            {"pairs": meetings.model_bytes, "gradients": meetings.gradient_bytes},
            self._mixing(t),
            passes,
            nothing,
        )

    def told(self) -> Told:
        """Return the rounds that stand for all; where many pairs meet, a few do."""
        rounds = telling_rounds(self.config)
        first = self.load(rounds[0][0])
        few = max(1, min(len(rounds), ENOUGH_PAIRS // max(1, first.pairs)))
        kept = [part[0] for part in np.array_split(np.arange(len(rounds)), few)]
        counts = np.add.reduceat([count for _, count in rounds], kept)
        return [(self.load(rounds[k][0]), int(n)) for k, n in zip(kept, counts, strict=True)]

    def other_mixings(self) -> dict[str, Mixing]:
        """Return what CoBo's penalty term costs at other W that it may come to."""
        if not isinstance(self.config.algorithm, CoBoConfig):
            return {}
        c, found = self.clients_r, {}
        sizes = np.diff(self.cluster_ends, prepend=0) if self.groups else np.empty(0)
        # On a simplex a client alone in its cluster would share its row out to all.
        if self.groups and not (self._simplex and sizes.min() < 2):
            found["W = true clusters"] = clustered(
                c,
                self.cluster_ends,
                one_by_one=self.deterministic,
                listed=self._simplex,
                without_own=self._without_own,
            )
        found["any W, at most"] = all_different(c, one_by_one=self.deterministic)
        told, size, wire = self._told_weights(), self.model.size, self.model.wire.itemsize
        return {name: blocks.cost(size, wire) + told for name, blocks in found.items()}

    def ranks(self) -> Ranks:
        """Return what does not change from round to round."""
        dtype = self.model.dtype
        moments = state_rows(self.config.optimizer, 1, dtype)
        name, row = self.config.algorithm.name, self.model.row
        sizes, which = np.unique(self.clients_r, return_inverse=True)  # two at most
        weights_r = np.array([self._weights_of(int(c)) for c in sizes])[which.reshape(-1)]
        return Ranks(self.clients_r, name, row, dtype.itemsize, moments, weights_r)

    # -- mixing -----------------------------------------------------------------------------------

    def _mixing(self, t: int) -> Mixing:
        wire = self.model.wire.itemsize
        blocks = self._blocks(t)
        cost = blocks.cost(self.model.size, wire)
        if self._averages_buffers:
            cost += blocks.cost(self.model.buffers, wire)
        return cost + self._told_weights()

    def _blocks(self, t: int) -> Blocks:
        """Return the blocks of W in round t: of W^0, which is also FedAvg's, Oracle's and Ditto's."""
        algorithm, c = self.config.algorithm, self.clients_r
        if isinstance(algorithm, OracleConfig) and self.groups > 1:
            return clustered(c, self.cluster_ends, one_by_one=self.deterministic)
        together: float = self.rounds
        if isinstance(algorithm, FinetunedFedAvgConfig):
            together = algorithm.fedavg_share * self.rounds
        if isinstance(algorithm, LocalConfig) or t >= together:
            return no_blocks(c, np.zeros_like(c))
        if isinstance(algorithm, CoBoConfig) and algorithm.start == "zeros":
            return no_blocks(c, c)
        if not isinstance(algorithm, CoBoConfig):
            return reduced(c, one_by_one=self.deterministic)
        return alike(
            c,
            one_by_one=self.deterministic,
            listed=self._simplex,
            without_own=self._without_own,
        )

    @property
    def _simplex(self) -> bool:
        algorithm = self.config.algorithm
        return isinstance(algorithm, CoBoConfig) and algorithm.domain == "simplex"

    @property
    def _without_own(self) -> bool:
        return self._simplex and getattr(self.config.algorithm, "own_weight", "") == "excluded"

    @property
    def _weight(self) -> int:
        """Bytes of one weight."""
        doubles = isinstance(self.config.algorithm, CoBoConfig) and self.model.dtype.itemsize == 8
        return 8 if doubles else 4

    def _weights_of(self, c: int) -> int:
        """Return the bytes of c rows of W^0 as they are kept."""
        plain = Weights(range(c), np.zeros(self.n, dtype=np.int64)).nbytes
        listed = c * (self.n - self._without_own) if self._simplex else 0
        return plain + listed * (8 + self._weight)  # each with its place

    @property
    def _mixes_clusters(self) -> bool:
        return isinstance(self.config.algorithm, OracleConfig) and self.groups > 1

    @property
    def _averages_buffers(self) -> bool:
        algorithm = self.config.algorithm
        averaged = isinstance(algorithm, AveragingConfig) and algorithm.buffers == "averaged"
        return averaged and self.model.buffers > 0

    def _told_weights(self) -> Mixing:
        """Every rank tells every other its block of W, where rows stand by themselves."""
        c, nothing = self.clients_r, np.zeros_like(self.clients_r)
        if not self._simplex:
            return Mixing.none(len(c))
        return Mixing(nothing + len(c) - 1, c * (self.n - c) * self._weight, *[nothing] * 3)

    # -- pairs ------------------------------------------------------------------------------------

    def _meet(self, t: int, algorithm: CoBoConfig) -> Meetings:
        sampling, n = algorithm.sampling, self.n
        chance = pair_probability(
            sampling.name, t, n, self.rounds,
            rate=sampling.rate, switch_fraction=sampling.switch_fraction,
        )  # fmt: skip
        expected = chance * n * (n - 1) / 2
        if expected > MOST_PAIRS:
            raise ConfigError(
                f"round {t + 1} draws about {expected:,.0f} pairs of {n:,} clients, and up to "
                f"{MOST_PAIRS:,} are planned (each takes two gradients); set algorithm.sampling.name="
                "constant, or lower algorithm.sampling.rate or clients="
            )
        pairs_m2 = draw_pairs(seeds.key(self.config.run.seed, "pairs", t), n, chance)
        return count_meetings(pairs_m2.numpy(), n, len(self.clients_r), self.model)

    # -- memory -----------------------------------------------------------------------------------

    def memory(self) -> list[Part]:
        """Return what the fullest rank holds after the round asked for last, with W at W^0."""
        c, meetings = self.clients_r, self._meetings
        likely = {int(one.argmax()) for one in (c, meetings.most, meetings.room.total)}
        every = [self.memory_of(rank) for rank in sorted(likely)]
        return max(every, key=lambda parts: sum(part.bytes for part in parts))

    def memory_of(self, rank: int) -> list[Part]:
        """Return what one rank holds after the round asked for last."""
        c, most = int(self.clients_r[rank]), int(self._meetings.most[rank])
        ditto = isinstance(self.config.algorithm, DittoConfig)
        mixed, messages = self._mixing_room(rank)
        held = Held(
            clients=c,
            others=int(ditto),
            taken=c if ditto else most,
            apart=c if ditto else min(most, 1),
            midpoints=most * self.model.row,
            mixed=mixed,
            messages=messages,
            weights=self._weights_of(c),
            weights_row=self.n * self._weight,
        )
        return parts_of(held, self.model, self.config, self.task)

    def _mixing_room(self, rank: int) -> tuple[int, int]:
        """Return the bytes of a rank's sums, and of the buffers of the messages that they come from."""
        blocks, model = self._blocks(0), self.model
        rows = int(blocks.rows[rank])
        sizes = [model.size] + [model.buffers] * self._averages_buffers
        # The same sums for all lie there whole; each client's own, some columns at a time.
        reduces = not isinstance(self.config.algorithm, CoBoConfig) and not self._mixes_clusters
        sizes_at_once = sizes if reduces else [widest(rows, size) for size in sizes]
        # Of one width, they lie in the same rows.
        widths = sizes_at_once if reduces else set(sizes_at_once)
        mixed = sum(rows * row_bytes(width, model.dtype) for width in widths)
        if self.deterministic and rows:
            mixed += max(sizes_at_once) * model.dtype.itemsize  # one more, for a term
        sent, received = int(blocks.sent[rank]), int(blocks.received[rank])
        if sent and reduces:
            sent = int(blocks.packed[rank])  # the same for all: packed once
        room, model_bytes = self._meetings.room, model.size * model.dtype.itemsize
        travels = model.size * model.wire.itemsize
        # A rank that sends what all get has it already.
        boxes = received - sent if reduces and len(self.clients_r) > 1 else received
        nbytes = max(int(room.outgoing[rank]), sent * travels)
        nbytes += max(int(room.incoming[rank]), boxes * travels)
        nbytes += int(room.models[rank] + room.scalars[rank])
        if model.wire != model.dtype:
            nbytes += max(int(room.arrived[rank]), received * model_bytes)
            nbytes += int(blocks.packed[rank]) * model_bytes * (received > 0)
        return mixed, nbytes
