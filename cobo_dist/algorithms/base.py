"""What an algorithm uses and returns: clients that train, an exchange that moves models, results of a round.

Shapes in this package: n clients in all, c on this rank, d parameters of a model, b floating buffers of a
model, m drawn pairs, k of them or k models, e ends of pairs on this rank. t is the round, from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.local_steps import LocalSteps, Optimizer
from cobo_dist.algorithms.signatures import Signatures
from cobo_dist.lazy import Tensor
from cobo_dist.maths.alignment import Statistic
from cobo_dist.maths.compression import Compression
from cobo_dist.maths.participation import Mask, Participation, Timing
from cobo_dist.maths.sketch import Sketch
from cobo_dist.maths.subspaces import Angle
from cobo_dist.maths.true_graph import Truth
from cobo_dist.maths.weights import Weights


def sampled_rounds(rounds: int) -> list[tuple[int, int]]:
    """Return about 100 representative rounds for an algorithm whose rounds are random.

    Early rounds stand for fewer others, because time-dependent sampling changes fastest there.

    >>> sampled_rounds(12)
    [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (10, 1), (11, 1)]
    """
    found, begin = [], 0
    while begin < rounds:
        count = min(rounds - begin, max(1, min(begin // 8, rounds // 40)))
        found.append((begin + count // 2, count))
        begin += count
    return found


Adjust = Callable[[Tensor, Tensor, NDArray[np.int64]], None]
"""Changes the local gradients [k, d] at points [k, d] of the clients in some rows [k] of X, in place."""


class Columns(Protocol):
    """Some columns of rows, by the names of parameters or buffers."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of these parameters or buffers, in the order of the columns."""

    @property
    def size(self) -> int:
        """Their number k."""

    def take(self, rows_cd: Tensor) -> Tensor:
        """Return these columns [c, k], to be read, exchanged or changed: a view where they are neighbors."""

    def put(self, part_ck: Tensor, rows_cd: Tensor) -> None:
        """Write columns that `take` returned, and that changed, back into the rows."""

    def fill(self, rows_cd: Tensor, value: float) -> None:
        """Set these columns of the rows to one number."""


class Clients(Protocol):
    """This rank's clients."""

    ids: tuple[int, ...]
    size: int  # d
    x_cd: Tensor
    g_cd: Tensor  # the gradients just computed
    b_cd: Tensor  # floating buffers (BatchNorm's statistics)
    lr: float  # optimizer.lr, the peak of eta(t)
    several_steps: bool  # whether clients may take more than one local step a round

    @property
    def local_steps_c(self) -> NDArray[np.int64]:
        """Local steps of each client in a round in which it takes part."""

    def eta(self, t: int) -> float:
        """Return the step size of round t."""

    def gradients(
        self,
        t: int,
        rows_e: NDArray[np.int64] | None = None,
        on_rows_ready: Callable[[slice], None] | None = None,
        adjust: Adjust | None = None,
        *,
        only: Columns | None = None,
        work: slice = slice(None),
    ) -> Tensor:
        """Compute g_i(x_i) for every client that takes part, or for those in some rows; return their losses.

        Without rows, losses are [c], and NaN for clients that do not take part: nobody reads them.
        With several local steps, clients take them from x_i, and `g_cd` holds the sums of their directions.
        `on_rows_ready` is called once for each slice of rows whose gradients are ready, and may change these
        rows of X. `adjust(points, gradients, rows)` may change each local gradient [k, d] of the clients in
        `rows` [k] before the optimizer sees it: FedProx adds mu (points - anchor).
        `only`: train this one of the parts that `separate` named; the others rest. `work`: which of the local
        steps, or with local.epochs of the epochs, to do; the others are left to further calls in the round.
        """

    def gradients_at(
        self,
        points_ed: Tensor,
        rows_e: NDArray[np.int64],
        t: int,
        stream: str,
        *,
        in_place: bool = False,
        local_work: bool = False,
    ) -> Tensor:
        """Return g_i at other points [e, d], each on the data of the client in row `rows_e`.

        `in_place`: the gradients may overwrite the points. `local_work`: they train a model of no client, so
        with several local steps each is the sum of the gradients along the steps from its point.
        """

    def local_steps(self, t: int) -> LocalSteps:
        """Return round t's local steps of the clients that take part, for an algorithm to take itself."""

    def data_steps(self, t: int, share: float, rows_e: NDArray[np.int64]) -> LocalSteps:
        """Return steps on a share of the examples of each client in some rows, drawn for round t.

        In whole batches, at least one. Equal calls read the same batches.
        """

    def losses_at(
        self, points_kd: Tensor, buffers_kd: Tensor, rows_e: NDArray[np.int64], t: int
    ) -> Tensor:
        """Return the losses [e, k] of k models on round t's batches of some clients, in evaluation mode.

        float64, on the device of the models: reading them waits for it, so read many at once.
        """

    def validation_losses_at(
        self,
        points_kd: Tensor,
        buffers_kd: Tensor,
        t: int,
        batch_size: int,
        rows_e: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Return the losses [c, k] of k models on validation batches of all clients, or of some [e, k]."""

    def input_signatures(self, vectors: int, by_class: bool, angle: Angle) -> Signatures:
        """Return `vectors` principal directions of each client's training inputs, of each class or of all.

        Distances are the smallest or the mean principal angle of what they span, in degrees.
        """

    def prediction_signatures(self, examples: int, top: int) -> Signatures:
        """Return the `top` largest numbers of what each client's model predicts for so many shared examples.

        All clients know these examples, without labels: they are taken from validation data in turn.
        Distances are sums of absolute differences.
        """

    def direction(self, rows: slice = slice(None)) -> Tensor:
        """Return the local optimizer's direction [c, d] for the gradients just computed, or for some.

        0 for clients that did not take part. With several local steps it is their sum: x_i - eta times it
        is the model after them. It may read
        the models (weight decay), so call it before they change.
        """

    @property
    def loaded(self) -> bool:
        """Whether the clients start from models of another run (`run.init_from`), which are in `x_cd`.

        False where a run is resumed. An algorithm with other models than the clients' starts these from them.
        """

    def start_rows(self, count: int) -> Tensor:
        """Return starting models [count, d]: x^0 first, the others from other seeds.

        With `loaded` they are the same.
        """

    def start_buffers(self, count: int) -> Tensor:
        """Return the buffers [count, b] of starting models."""

    def columns(self, *patterns: str, others: bool = False, buffers: bool = False) -> Columns:
        """Return the columns of X of the parameters that match a pattern; with `others`, of all the others.

        A pattern is a glob, such as `*lora_B*`, a name, or the beginning of names up to a dot, such as
        `head`. `buffers`: columns of `b_cd`, by the names of buffers.

        Raises:
            ConfigError: a pattern matches nothing.
        """

    def separate(self, *parts: Columns) -> None:
        """Give parts that are all of X together an optimizer each, so that one may train while others rest.

        What rests is as if it had no gradient: neither its parameters nor its moments change.
        """

    def layers(self) -> tuple[str, ...]:
        """Return the names of the model's layers, from its inputs to its outputs, for `columns`."""

    def new_optimizer(self, rows_kd: Tensor) -> Optimizer:
        """Return an optimizer for models [k, d] that are not the clients'."""


class PairEnds(Protocol):
    """This rank's ends of drawn pairs: client `ids` (in row `rows` of X) with client `partners`. All [e]."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of the client in X."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """Id of the client."""

    @property
    def partners(self) -> NDArray[np.int64]:
        """Id of the partner."""

    @property
    def first(self) -> NDArray[np.bool_]:
        """Whether the client is the pair's lower one."""


class Exchange(Protocol):
    """Moves models, and sums of models, between the ranks."""

    def send_models(self, x_cd: Tensor, pairs_m2: Tensor) -> None:
        """Start to send models to the partners in the drawn pairs."""

    def receive_models(self) -> None:
        """Wait until the partners' models have arrived."""

    def midpoints(self, pairs_k2: Tensor) -> tuple[PairEnds, Tensor]:
        """Return the ends of some of those pairs and the midpoints (x_i + x_j)/2 there [e, d]."""

    def alignment(
        self, gradients_ed: Tensor, statistic: Statistic, sketch: Sketch | None = None
    ) -> tuple[PairEnds, NDArray[np.float64]]:
        """Return the ends of the pairs of the last `midpoints`, and a statistic [e] of their two gradients.

        `sketch`: of these few numbers in place of the gradients. Ranks that run at their own pace
        (`comm.mode`) get the ends whose statistic is known by now.
        """

    def mix(self, weights: Weights, x_cd: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the columns of X, each with sum_k w_ik x_k there [c, columns].

        The caller may change the sums and these columns of X before it takes the next slice. Where the
        weights are `symmetric`, ranks need not send each other their rows of W.
        """

    def all_reduce(self, weights_kn: NDArray[np.floating], x: Tensor) -> Tensor:
        """Return k weighted sums of all clients' rows [k, d], the same on every rank.

        `x` has this rank's rows [c, d], or [k, c, d] with rows of their own for each sum. The caller may
        change the sums.
        """

    def all_gather(self, numbers_c: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return numbers of every client, [c] or [c, k] on each rank and [n] or [n, k] of all, everywhere."""

    def gram(
        self, a_cd: Tensor, b_cd: Tensor | None = None, sketch: Sketch | None = None
    ) -> NDArray[np.float64]:
        """Return the inner products <a_i, b_j> [c, n] of this rank's rows with all clients', in float64.

        Without `b_cd` they are <a_i, a_j>, equal to the last bit for (i, j) and (j, i). `sketch`: of these
        few numbers in place of the rows.
        """

    def visits(
        self, *rows_cd: Tensor, among_n: NDArray[np.bool_] | None = None, numbers: int = 0
    ) -> Iterator[tuple[NDArray[np.int64], tuple[Tensor, ...]]]:
        """Bring every model to every rank once; yield ids [k] in groups, with their rows of each matrix.

        The caller must take all groups, may change the rows, and may call only `send_back` in between.

        Args:
            rows_cd: this rank's models, and what else belongs to them, such as their buffers.
            among_n: the clients whose models visit, the same on all ranks; None: all.
            numbers: what a rank keeps for each visitor, which bounds a group; at least its columns.
        """

    def send_back(self, answers_ked: Tensor) -> tuple[NDArray[np.int64], Tensor]:
        """Send answers to the k visitors of a group to their owners; return the answers to this rank's own.

        Args:
            answers_ked: of this rank's clients that take part, e, in the order of their rows.

        Returns:
            This rank's rows [h] whose models visit, and the answers [h, m, d] of all m clients that take
            part, in client order. The caller may change them until the next group.
        """


@dataclass(frozen=True)
class WeightUpdates:
    """The weights of one rank that changed in a round, and the alignments of its pairs.

    `weights` [k] are the new w_ij of client i = `first` and j = `second`. A symmetric W has one entry for
    each pair. `alignments` are those of the pairs whose lower client is on this rank.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weights: NDArray[np.floating]
    alignments: NDArray[np.float64]


@dataclass(frozen=True)
class RoundResult:
    """What one round reports: losses [c], the number of drawn pairs (on all ranks), and how W changed.

    `selections` lists the weights that changed; `weights_replaced` says that all of W is new. `numbers` are
    the method's own, the same on all ranks: they are logged with the round, and the last ones in the summary.
    `met_m2` lists the pairs of clients that met, the same on every rank; None: the algorithm has none.
    """

    losses_c: Tensor
    pairs: int = 0
    selections: list[WeightUpdates] = field(default_factory=list)
    weights_replaced: bool = False
    numbers: Mapping[str, float] = field(default_factory=dict)
    met_m2: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class AlgorithmState:
    """What an algorithm keeps beside its clients and W, to save it or to fill it in place.

    `rows`: of this rank's clients, each tensor [c, ...]. `shared`: the same on every rank. `pairs`: of pairs
    of clients, each with this rank's rows of a matrix [c, n], in compressed form as W.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[str, Weights] = field(default_factory=dict)


@dataclass(frozen=True)
class Newcomers:
    """Clients that join before a round, k of them; all ranks have the same.

    `company_kn` marks the clients whose models a newcomer's own was made of: one, those of a component, or
    all members. A client that returns keeps its model and its weights. `weights` is `membership.weights`.
    """

    ids_k: NDArray[np.int64]
    returns_k: NDArray[np.bool_]
    company_kn: NDArray[np.bool_]
    weights: str = "ones"

    def first_weights(self, n: int) -> NDArray[np.float64]:
        """Return the weights [k, n] that newcomers and all others begin with, both ways."""
        if self.weights != "component":
            return np.full((len(self.ids_k), n), float(self.weights == "ones"))
        w_kn = self.company_kn.astype(np.float64)
        same_kk = (self.company_kn[:, None] == self.company_kn).all(axis=2)
        w_kn[:, self.ids_k] = same_kk & self.company_kn.any(axis=1)
        return w_kn

    def entries(
        self, ids: Sequence[int], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return rows, columns and values of the first weights in the rows of W of some clients, [e] each.

        Those of clients that return, and the diagonal, are left out.
        """
        w_kn, ids_c = self.first_weights(n), np.asarray(ids, dtype=np.int64)
        new_j = self.ids_k[~self.returns_k]
        place_n = np.full(n, -1)
        place_n[new_j] = np.flatnonzero(~self.returns_k)
        old_rows = np.flatnonzero(place_n[ids_c] < 0)
        new_rows = np.repeat(np.flatnonzero(place_n[ids_c] >= 0), n)
        columns = np.resize(np.arange(n), len(new_rows))
        apart = ids_c[new_rows] != columns
        new_rows, columns = new_rows[apart], columns[apart]
        w_oj = w_kn[place_n[new_j]][:, ids_c[old_rows]].T
        rows = np.concatenate([np.repeat(old_rows, len(new_j)), new_rows])
        others = np.concatenate([np.tile(new_j, len(old_rows)), columns])
        w_e = np.concatenate([w_oj.reshape(-1), w_kn[place_n[ids_c[new_rows]], columns]])
        return rows, others, w_e


@dataclass(frozen=True)
class RunContext:
    """The facts of the run that an algorithm needs."""

    clients: int  # n
    clusters: tuple[int, ...] | None  # the true cluster of each client, where the task knows it
    seed: int
    rounds: int
    participation: Participation | None = None  # of clients in rounds; None: of all in every round
    examples: Sequence[int] = ()  # for training, of each client
    batch_size: int = 1  # training examples in one gradient of a client
    truth: Truth | None = (
        None  # clusters of each round, where the task knows them; None: `clusters` in all
    )
    raised: Mask | None = None  # newcomers whose pairs are drawn more often in a round, [n]
    raised_factor: float = 1.0  # by which factor
    compression: Compression | None = None  # of models that clients read through `NeighborModels`

    def clusters_at(self, t: int) -> tuple[int, ...] | None:
        """Return the true cluster of each client in round t, [n]; None where the task knows none.

        Clients may change cluster (`task.drift`): `clusters` are those before round 0.
        """
        return self.clusters if self.truth is None else self.truth.clusters_at(t + 1)

    @property
    def all_take_part(self) -> bool:
        """Whether all clients take part in every round."""
        return self.participation is None or not self.participation.is_partial

    def taking_part(self, t: int) -> NDArray[np.bool_]:
        """Return whether each client takes part in round t, [n]: the same on every rank.

        A client that does not computes and sends nothing, and keeps its model unless it is given one.
        """
        if self.participation is None:
            return np.ones(self.clients, dtype=bool)
        return self.participation(t)

    def members(self, t: int) -> NDArray[np.bool_]:
        """Return whether each client is in the run in round t, [n]: the same on every rank.

        A client that is not has not joined yet or has left. A member may miss a round.
        """
        if self.participation is None:
            return np.ones(self.clients, dtype=bool)
        return self.participation.members(t)

    def heard(self, t: int) -> NDArray[np.float64]:
        """Return what each client's model counts for those that take part in round t, [n] in [0, 1].

        0: it is not heard. Where all wait for each other, it is 1 for those that take part and 0 for the
        others. In virtual time with other policies all members are heard, and old models may count less.
        """
        if self.participation is None:
            return np.ones(self.clients)
        return self.participation.heard(t)

    @property
    def timing(self) -> Timing | None:
        """When rounds are in virtual time; None: there is none."""
        return None if self.participation is None else self.participation.timing

    def client_weights(self, t: int, weighting: str) -> NDArray[np.float64]:
        """Return what each client counts in an average after round t, [n]: 0 if it does not take part.

        `weighting`: `equal`, 1 each; `examples`, the number of its training examples.
        """
        part_n = self.taking_part(t).astype(np.float64)
        return part_n if weighting == "equal" else part_n * np.asarray(self.examples, np.float64)
