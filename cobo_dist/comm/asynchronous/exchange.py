"""The exchange of ranks that go at their own pace (`comm.mode=asynchronous`).

A rank never waits for a model: it mixes with those that have arrived, and publishes its own. Rounds are
those of the fastest rank: one that falls too far behind goes on with the round that the fastest is in, as
if its clients had missed the rounds between. It leaves out no round in which something is due, so all ranks
log and evaluate the same rounds. They come together where they must agree on one state: at checkpoints, and
where a run stops or ends.

Shapes: c clients on this rank, n in all, d parameters, e ends of pairs on this rank.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.asynchronous.known_models import KnownModels, linked_rows, rows_to_send
from cobo_dist.comm.asynchronous.mailbox import Letter, Mailbox
from cobo_dist.comm.asynchronous.pair_meetings import PairMeetings
from cobo_dist.comm.exchange import Collected, Exchange, PairEnds
from cobo_dist.comm.pair_plan import PairPlan
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.transports.base import LostContact, Transport
from cobo_dist.maths.alignment import Statistic
from cobo_dist.maths.sketch import Sketch
from cobo_dist.maths.weights import Weights
from cobo_dist.phase_timer import PhaseTimer

WAIT_SECONDS = 0.05
"""How long a rank that waits for a letter sleeps at a time; a letter wakes it."""

Floats = NDArray[np.float64]


class AsynchronousExchange(Exchange):
    """An `Exchange` whose `midpoints`, `alignment`, `mix` and `all_gather` answer with what has arrived.

    `alignment` returns other ends than the last `midpoints`: those whose alignment is known by now. What
    needs all ranks at once (`all_reduce`, `gram`, `visits`) it refuses.
    """

    is_asynchronous = True

    def __init__(
        self,
        transport: Transport,
        placement: Placement,
        dtype: torch.dtype,
        device: torch.device,
        *,
        mailbox: Mailbox,
        max_lag: int,
        seconds: float,
        timer: PhaseTimer | None = None,
        wire: torch.dtype | None = None,
    ) -> None:
        """Exchange over a mailbox; `transport` serves where all ranks have come together.

        `max_lag`: rounds that this rank may be behind the fastest. `seconds`: how long a rank that all others
        wait for may keep silent.
        """
        super().__init__(transport, placement, dtype, device, timer=timer, wire=wire)
        self.mailbox, self.wire = mailbox, wire or dtype
        self.max_lag, self.seconds = max_lag, seconds
        self.models = KnownModels(self.ids, dtype, device)
        self.meetings = PairMeetings(placement, transport.rank, self.wire, self._post)
        self.round = 0
        self.in_step = True  # all ranks are together, until the next round
        self._rounds = dict.fromkeys(mailbox.peers, 0)  # the newest round of each peer
        self._numbers_nk: Floats | None = None
        self._awaited = {"models": set(mailbox.peers), "numbers": set(mailbox.peers)}
        self._alignments: list[Letter] = []
        self._size = 0  # parameters of a model
        self._signal = 0
        self._marks: dict[int, int] = {}  # the round after which each peer waits for the others
        self._records: dict[int, deque[bytes]] = {peer: deque() for peer in mailbox.peers}
        self._uncollected: deque[tuple[bytes, Collected]] = deque()

    # -- the pace -----------------------------------------------------------------------------------

    def begin_round(self, r: int) -> None:
        """Tell all ranks that this one begins round r, and read what has arrived."""
        self.round, self.in_step = r, False
        self._tell("progress", newest=True)
        self._read()

    def next_round(self, r: int, due: int) -> int:
        """Return the round after r, or the one that the fastest rank is in, if that is far ahead.

        None beyond the one that is due.
        """
        self._read()
        fastest = max(self._rounds.values(), default=0)
        return min(due, fastest) if fastest > r + 1 + self.max_lag else r + 1

    def asked_to_stop(self, caught: int) -> int:
        """Return a signal that this rank (`caught`) or another one caught; 0: none. Others learn of it."""
        self._read()
        if caught and not self._signal:
            self._signal = caught
            self._tell("stop", {"signal": torch.tensor([caught])})
        return self._signal

    def meet(self, r: int) -> bool:
        """Wait until all ranks are here after round r; return False if one is further, so go on until then.

        When all are here, all letters have arrived and all records are collected, and no meeting of a pair is
        under way any more.

        Raises:
            LostContact: a rank kept silent for too long.
        """
        self.round = r
        self._tell("here")
        began, here = time.monotonic(), False
        with self.timer.span("waiting"):
            while not here:
                self._read()
                furthest = max([r, *self._marks.values()])
                if furthest > r:
                    return False
                here = all(self._marks.get(peer) == r for peer in self.mailbox.peers)
                if not here:
                    self._wait(began, f"waiting after round {r}")
        self.meetings.forget()
        self._marks = {peer: mark for peer, mark in self._marks.items() if mark != r}
        self.in_step = True
        return True

    # -- pairs ----------------------------------------------------------------------------------------

    def send_models(self, x_cd: Tensor, pairs_m2: Tensor) -> None:
        """Ask for meetings of the drawn pairs; `x_cd` must not change before the last `alignment`."""
        self._read()
        self._size = x_cd.shape[1]
        self.meetings.ask(x_cd, pairs_m2.numpy(), self.round)

    def receive_models(self) -> None:
        """Wait for nothing."""

    def midpoints(self, pairs_k2: Tensor) -> tuple[PairEnds, Tensor]:
        """Return the ends whose gradients are wanted now, and their midpoints: also of pairs drawn before."""
        clients, partners, first, z_ed = self.meetings.midpoints(pairs_k2.numpy())
        for ids, rows, r in self.meetings.models():
            self.models.put(ids, rows, r)
        return PairEnds(self.placement.row_n[clients], clients, partners, first), z_ed

    def alignment(
        self, gradients_ed: Tensor, statistic: Statistic, sketch: Sketch | None = None
    ) -> tuple[PairEnds, Floats]:
        """Return the ends of pairs whose alignment is known by now, and it, [e]."""
        with self.timer.span("alignment"):
            found = [self.meetings.alignment(gradients_ed, statistic, sketch)]
            letters, self._alignments = self._alignments, []
            for letter in letters:
                one, other = letter.tensors["pairs"].numpy().T
                known_k = letter.tensors["alignments"].numpy()
                found.append((other, one, np.zeros(len(one), dtype=bool), known_k))
        clients, partners, first, alignment_e = (
            np.concatenate([part[number] for part in found]) for number in range(4)
        )
        first, within = first.astype(bool), self.placement.owner_n[partners] == self.transport.rank
        plan = PairPlan(clients, partners, first, within, {})
        self.client_traffic.send_models(plan, self._size)
        self.client_traffic.alignment(plan, gradients_ed.shape[1])
        return PairEnds(self.placement.row_n[clients], clients, partners, first), alignment_e

    # -- sums -----------------------------------------------------------------------------------------

    def mix(self, weights: Weights, x_cd: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Publish this rank's models to those that give them a weight; yield sums with others' last ones."""
        w_cn, rows = weights.dense(), np.arange(len(self.ids))  # all, where only receivers know W
        for peer in self.mailbox.peers:
            if weights.known_to_senders:
                rows = linked_rows(w_cn, self.placement.owner_n == peer)
            ids = torch.from_numpy(np.asarray(self.ids)[rows])
            sent = {"ids": ids, "models": rows_to_send(x_cd, rows, self.wire)}
            self._post(peer, Letter("models", self.round, sent), "mixing", newest=True)
        self._read_until_all("models")
        self.client_traffic.mix(weights, x_cd.shape[1])
        return self.models.mix(w_cn, x_cd)

    def all_gather(self, numbers_c: NDArray[np.floating]) -> Floats:
        """Return numbers of every client, [n] or [n, k], those of other ranks as they last arrived."""
        numbers_ck = np.asarray(numbers_c, dtype=np.float64).reshape(len(numbers_c), -1)
        if self._numbers_nk is None:
            self._numbers_nk = np.zeros((self.placement.clients, numbers_ck.shape[1]))
        self._numbers_nk[self.ids] = numbers_ck
        sent = {"numbers": torch.from_numpy(numbers_ck.copy())}
        for peer in self.mailbox.peers:
            self._post(peer, Letter("numbers", self.round, sent), "mixing", newest=True)
        self._read_until_all("numbers")
        self.client_traffic.all_gather(numbers_ck.size)
        return self._numbers_nk.reshape(-1, *numbers_c.shape[1:]).copy()

    def all_reduce(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: all ranks would have to be there."""
        raise ValueError(
            "exchange.all_reduce needs all ranks at once, which comm.mode=asynchronous avoids"
        )

    gram = visits = send_back = move = all_reduce

    def staleness(self) -> tuple[float, int]:
        """Return the mean and the greatest age of the models this rank mixes with, in rounds; 0 for none."""
        ages = self.models.ages(self.round) or [0]
        return float(np.mean(ages)), max(ages)

    # -- the coordinator ------------------------------------------------------------------------------

    def collect(self, record: bytes, collected: Collected, purpose: str = "logging") -> None:
        """Bring records to the coordinator, which calls `collected` once that of each rank has arrived."""
        if self.in_step:
            super().collect(record, collected, purpose)
        elif self.is_coordinator:
            self._uncollected.append((record, collected))
            self._call_collected()
        else:
            self._post(0, Letter("record", self.round, {"record": _tensor(record)}), purpose)

    def _call_collected(self) -> None:
        while self._uncollected and all(self._records.values()):
            mine, collected = self._uncollected.popleft()
            collected([mine, *(self._records[peer].popleft() for peer in self.mailbox.peers)])

    # -- letters --------------------------------------------------------------------------------------

    def _post(self, peer: int, letter: Letter, purpose: str, newest: bool = False) -> None:
        self.traffic.sent(purpose, letter.nbytes)
        self.mailbox.post(peer, letter, newest=newest)

    def _tell(
        self, kind: str, tensors: dict[str, Tensor] | None = None, newest: bool = False
    ) -> None:
        for peer in self.mailbox.peers:
            self.mailbox.post(peer, Letter(kind, self.round, tensors or {}), newest=newest)

    def _read(self) -> None:
        """Take what has arrived."""
        for peer, letter in self.mailbox.take():
            self._rounds[peer] = max(self._rounds[peer], letter.round)
            kind, tensors = letter.kind, letter.tensors
            if kind == "models":
                self.models.put(tensors["ids"].numpy(), tensors["models"], letter.round)
                self._awaited["models"].discard(peer)
            elif kind == "numbers":
                numbers_ck = tensors["numbers"].numpy()
                if self._numbers_nk is None:
                    self._numbers_nk = np.zeros((self.placement.clients, numbers_ck.shape[1]))
                self._numbers_nk[self.placement.by_rank[peer]] = numbers_ck
                self._awaited["numbers"].discard(peer)
            elif kind in ("request", "answer"):
                self.meetings.take(peer, letter)
            elif kind == "alignment":
                self._alignments.append(letter)
            elif kind == "stop":
                self._signal = self._signal or int(tensors["signal"][0])
            elif kind == "here":
                self._marks[peer] = letter.round
            elif kind == "record":
                self._records[peer].append(tensors["record"].numpy().tobytes())
        if self.is_coordinator:
            self._call_collected()

    def _read_until_all(self, kind: str) -> None:
        """Read; before the first sums, until each rank has sent its own."""
        began = time.monotonic()
        self._read()
        with self.timer.span("waiting"):
            while self._awaited[kind]:
                self._wait(began, f"waiting for the first {kind}")
                self._read()

    def _wait(self, began: float, activity: str) -> None:
        if (waited := time.monotonic() - began) > self.seconds:
            late = [peer for peer in self.mailbox.peers if self._marks.get(peer) != self.round]
            raise LostContact(
                f"rank {self.transport.rank} lost contact while {activity}: no answer within "
                f"comm.timeout={self.seconds:g} s",
                late, "silent", waited,
            )  # fmt: skip
        self.mailbox.wait(WAIT_SECONDS)


def _tensor(record: bytes) -> Tensor:
    return torch.frombuffer(bytearray(record), dtype=torch.uint8)
