"""Checks W and the training loss for known ways to fail; each warning names the key to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.storage.schema import HealthState, WarningRow
from cobo_dist.tracking.graph_stats import GraphStats

LARGE_JUMP = 0.3
"""A weight that moves by this share of [0, 1] in one round depends on a single batch."""

SATURATED_SHARE = 0.9
"""W is saturated with this share of its weights at 0 or 1 (simplex: of the clients giving all to one)."""

MIN_DRAWS_PER_PAIR = 3.0
"""A pair that was drawn fewer times in the whole run has too little evidence."""

MAX_RECENT_JUMPS = 2000
"""The most drawn pairs whose jumps are compared with `LARGE_JUMP`."""

RECENT_LOSSES = 20
"""Rounds whose mean loss is compared with that of round 1, and rounds between two comparisons."""


class HealthMonitor:
    """Checks a run before its first round and after every round."""

    def __init__(self, config: Mapping[str, Any], clients: int, rounds: int, eta: float) -> None:
        """Check a run of the algorithm with the keys `config`, which are empty if W does not move.

        `eta` is the step size.
        """
        self.config, self.clients, self.rounds, self.eta = config, clients, rounds, eta
        self.state = HealthState()
        pairs = clients * (clients - 1) // 2
        self._max_jumps = max(20, min(2 * pairs, MAX_RECENT_JUMPS))

    def before(self) -> list[WarningRow]:
        """Check the settings before the first round; return the warnings."""
        if not self.config:
            return []
        if self.config["domain"] == "simplex":
            self._check_simplex()
        elif self.config["start"] == "ones":
            self._check_box()
        return list(self.state.warnings)

    def _check_box(self) -> None:
        step = self.eta * self.config["rho"] * self.clients
        if step >= 2.0:
            self._warn(
                0, "penalty_step",
                f"at W = 1 the penalty's step eta rho n = {self.eta:g} * {self.config['rho']:g} * "
                f"{self.clients} = {step:.2f} is 2 or more and overshoots: models will diverge; "
                f"lower algorithm.rho below {2 / (self.eta * self.clients):.3g} or optimizer.lr",
            )  # fmt: skip

    def _check_simplex(self) -> None:
        step = self.eta * self.config["rho"]
        if step >= 1.0:
            self._warn(
                0, "penalty_step",
                "the penalty makes two clients that give each other all their weight change places "
                f"at a step eta rho of 1, and here it is {self.eta:g} * {self.config['rho']:g} = "
                f"{step:.2f}, which overshoots: models will diverge; lower algorithm.rho below "
                f"{1 / self.eta:.3g} or optimizer.lr",
            )  # fmt: skip
        if self.clients == 2 and self.config["own_weight"] == "excluded":
            self._warn(
                0, "no_choice",
                "each of 2 clients gives the other all its weight, whatever happens; set "
                "algorithm.own_weight=included or algorithm.domain=box to let them part",
            )  # fmt: skip

    def after(
        self, r: int, loss: float, alignments: NDArray[np.float64], graph: GraphStats
    ) -> list[WarningRow]:
        """Check round r by its mean loss, the alignments of its pairs and the graph after it."""
        state, known = self.state, len(self.state.warnings)
        state.losses = [*state.losses, loss][-RECENT_LOSSES:]
        if r == 1:
            state.first_loss = loss
        if len(state.losses) == RECENT_LOSSES and r % RECENT_LOSSES == 0:
            self._check_divergence(r)
        if self.config:
            state.drawn += len(alignments)
            jumps = np.abs(self.config["gamma"] * alignments).tolist()
            state.jumps = [*state.jumps, *jumps][-self._max_jumps :]
            if len(alignments) and state.drawn >= MIN_DRAWS_PER_PAIR * graph.pairs:
                self._check_saturation(r, graph)
            if r == self.rounds:
                self._check_end(r, graph)
        return state.warnings[known:]

    def _check_divergence(self, r: int) -> None:
        now = float(np.mean(self.state.losses))
        first = self.state.first_loss
        if now > 2.0 * first > 0 and not self._seen("diverging"):
            self._warn(
                r, "diverging",
                f"the mean training loss is {now:.3g} after {r} rounds, up from "
                f"{first:.3g} in round 1: models diverge; lower optimizer.lr"
                + (" or algorithm.rho" if self.config else ""),
            )  # fmt: skip

    def _check_saturation(self, r: int, graph: GraphStats) -> None:
        if self._seen("saturated"):
            return
        if graph.share:  # on the simplex, most weights of a row may rightly be 0
            stuck = graph.at_1 >= SATURATED_SHARE * self.clients
            what = f"{graph.at_1} of {self.clients} clients give all their weight to one other"
        else:
            stuck = graph.at_0 + graph.at_1 >= SATURATED_SHARE * graph.pairs
            what = f"weights are stuck at 0 or 1 ({graph.at_0} and {graph.at_1} of {graph.pairs} pairs)"
        jump = float(np.median(self.state.jumps))
        if stuck and jump >= LARGE_JUMP:
            self._warn(
                r, "saturated",
                f"{what}: half of the recently drawn pairs would have moved by {jump:.2f} or more of "
                f"[0, 1] at once, so one batch decides; lower algorithm.gamma (now "
                f"{self.config['gamma']:g})",
            )  # fmt: skip

    def _check_end(self, r: int, graph: GraphStats) -> None:
        if not graph.pairs:
            return
        draws = self.state.drawn / graph.pairs
        if draws < MIN_DRAWS_PER_PAIR:
            self._warn(
                r, "hardly_drawn",
                f"each pair was drawn {draws:.1f} times in {r} rounds, too few to judge it; raise "
                f"algorithm.sampling.rate (now {self.config['sampling']['rate']:g}), run.rounds, or "
                f"use another algorithm.sampling.name than {self.config['sampling']['name']}",
            )  # fmt: skip
        if graph.share and graph.pairs > 1 and graph.is_uniform():
            self._warn(
                r, "uniform",
                f"every client still gives every other the same weight {graph.share:.3g} at the end: "
                f"raise algorithm.gamma (now {self.config['gamma']:g}) if some should count for more",
            )  # fmt: skip
        if graph.links == graph.count and graph.pairs > 1:
            self._warn(
                r, "fully_connected",
                f"all {graph.pairs} pairs are still linked at the end: if clients differ, raise "
                f"algorithm.gamma (now {self.config['gamma']:g}) or lower algorithm.rho (now "
                f"{self.config['rho']:g}), which ties models together",
            )  # fmt: skip
        alone = graph.at_0 == graph.count if graph.share else graph.links == 0
        if alone:
            self._warn(
                r, "empty",
                "no pair is linked at the end, so every client trained alone: if some should help "
                f"each other, raise algorithm.rho (now {self.config['rho']:g}), or lower "
                f"algorithm.gamma (now {self.config['gamma']:g}) and raise data.batch_size if "
                "alignments are mostly noise",
            )  # fmt: skip

    def _seen(self, kind: str) -> bool:
        return any(warning.kind == kind for warning in self.state.warnings)

    def _warn(self, r: int, kind: str, message: str) -> None:
        self.state.warnings.append(WarningRow(round=r, kind=kind, message=message))
