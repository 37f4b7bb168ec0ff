"""Methods in virtual time in one array: an event clock of its own, and a mailbox for each client."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from methods import DenseClients

from cobo_dist.algorithms.communication_graph import partners
from cobo_dist.maths import seeds
from cobo_dist.maths.sampling import draw_pairs


@dataclass
class Mailbox:
    """What others read of one client: a message on its way, and the newest that waits to be sent."""

    delay: float
    read: tuple[
        int, np.ndarray
    ]  # the round at whose start it was the client's model, and the model
    on_its_way: list[tuple[float, tuple[int, np.ndarray]]] = field(default_factory=list)
    waiting: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def send(self, now: float, made: tuple[int, np.ndarray]) -> None:
        if self.on_its_way:
            self.waiting = [made]
        else:
            self.on_its_way = [(now + self.delay, made)]

    def at(self, now: float) -> tuple[int, np.ndarray]:
        while self.on_its_way and self.on_its_way[0][0] <= now + 1e-9:
            arrived, self.read = self.on_its_way.pop()
            if self.waiting:
                self.on_its_way = [(arrived + self.delay, self.waiting.pop())]
        return self.read


def acting(
    seconds: Sequence[float], tick: float, ahead: int | None
) -> Iterator[tuple[int, list[int], list[int]]]:
    """Yield each tick in which clients act, who acts, and whose work began since the one before."""
    n = len(seconds)
    done, begins, units, waits = [0] * n, [0.0] * n, [0] * n, [False] * n
    now, starts = 0, list(range(n))
    while True:
        now += 1
        ends = [begins[i] + (units[i] + 1) * seconds[i] for i in range(n)]
        who = [i for i in range(n) if not waits[i] and math.ceil(ends[i] / tick - 1e-9) <= now]
        if not who:
            continue
        yield now, who, starts
        for i in who:
            done[i] += 1
            units[i] += 1
        starts = []
        for i in range(n):
            too_far = ahead is not None and done[i] - min(done) > ahead
            if waits[i] and not too_far:
                begins[i], units[i] = now * tick, 0
            idle = waits[i] or i in who
            waits[i] = idle and too_far
            if idle and not too_far:
                starts.append(i)


def dense_cobo(
    problem: Path,
    rounds: int,
    seconds: Sequence[float],
    *,
    rho: float,
    gamma: float,
    eta: float,
    tick: float,
    ahead: int | None = None,
    delays: Sequence[float] = (),
    discount: bool = False,
    capped: bool = False,
) -> tuple[np.ndarray, np.ndarray, list[tuple[float, int, float]]]:
    """Return X^T, W^T, and of each round its virtual seconds, the largest staleness and the mean."""
    dense = DenseClients(problem, eta)
    n, x = dense.n, dense.x
    late = bool(delays) and max(delays) > tick
    mail = [Mailbox(delays[i] if delays else 0.0, (0, x[i].copy())) for i in range(n)]
    w_nn, logged = np.ones((n, n)), []
    moments = acting(seconds, tick, ahead)
    for t in range(rounds):
        now, who, _ = next(moments)
        read = [box.at(now * tick) for box in mail]
        ages = np.array([t - made for made, _ in read])
        logged.append((now * tick, int(ages.max()), float(ages.mean())))
        f = 1.0 / np.sqrt(1.0 + ages) if discount else np.ones(n)
        pairs = draw_pairs(seeds.key(0, "pairs", t), n, 1.0 / n)
        for i, j in pairs.tolist():
            if i in who and j in who:
                z = (x[i] + x[j]) / 2
                moved = w_nn[i, j] + gamma * dense.gradient(i, z) @ dense.gradient(j, z)
                w_nn[i, j] = w_nn[j, i] = np.clip(moved, 0.0, 1.0)
        local = x.copy()
        for i in who:
            local[i] = x[i] - eta * dense.gradient(i, x[i])
        others = np.stack([model for _, model in read]) if late else (local if capped else x)
        degrees = (w_nn * f).sum(axis=1) - np.diag(w_nn) * f
        new = x.copy()
        for i in who:
            new[i] = local[i]
            for k in range(n):
                pull = eta * rho
                if capped:
                    pull = min(pull, 1.0 / (1.0 + max(degrees[i], degrees[k])))
                if k != i:
                    at = local[i] if capped else x[i]
                    new[i] += pull * w_nn[i, k] * f[k] * (others[k] - at)
        x = new
        for i in who:
            mail[i].send(now * tick, (t + 1, x[i].copy()))
    return x, w_nn, logged


def dense_adpsgd(
    problem: Path,
    rounds: int,
    seconds: Sequence[float],
    *,
    eta: float,
    ahead: int | None,
    graph: str,
) -> np.ndarray:
    """Return X^T of AD-PSGD: pairs average one after the other, in place."""
    dense = DenseClients(problem, eta)
    n, x, moments = dense.n, dense.x, acting(seconds, 1.0, ahead)
    began = x.copy()
    for t in range(rounds):
        _, who, starts = next(moments)
        began[starts] = x[starts]
        order = seeds.permutation(seeds.key(0, "adpsgd order", t), len(who)).tolist()
        for i in (who[k] for k in order):
            others = partners(graph, i, np.ones(n, dtype=bool))
            draw = float(seeds.uniforms(seeds.key(0, "adpsgd partner", t, i), 1))
            j = int(others[int(draw * len(others))])
            x[i] = x[j] = (x[i] + x[j]) / 2
        for i in who:
            x[i] -= eta * dense.gradient(i, began[i])
    return x


def dense_swift(
    problem: Path,
    rounds: int,
    seconds: Sequence[float],
    *,
    eta: float,
    every: int,
    ring: bool,
    delay: float = 0.0,
    discount: bool = False,
) -> np.ndarray:
    """Return X^T of SWIFT with the policy free."""
    dense = DenseClients(problem, eta)
    n, x, moments = dense.n, dense.x, acting(seconds, 1.0, None)
    mail = [Mailbox(delay, (0, x[i].copy())) for i in range(n)]
    steps = [0] * n
    for t in range(rounds):
        now, who, _ = next(moments)
        read = [box.at(now) for box in mail]
        new = x.copy()
        for i in who:
            if steps[i] % every == 0:
                near = {(i - 1) % n, (i + 1) % n} if ring else set(range(n)) - {i}
                for j in near:
                    made, model = read[j]
                    less = 1.0 / math.sqrt(1.0 + t - made) if discount else 1.0
                    new[i] += less / (len(near) + 1) * (model - x[i])
            new[i] -= eta * dense.gradient(i, x[i])
            steps[i] += 1
        x = new
        for i in who:
            mail[i].send(now, (t + 1, x[i].copy()))
    return x
