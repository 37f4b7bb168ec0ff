"""Checks a run for known ways to fail; each warning names the key to change.

That models diverge is looked for in every run. The rest an algorithm's config section brings along.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.algorithm import AlgorithmSection, Finding, HealthFacts
from cobo_dist.storage.schema import HealthState, WarningRow
from cobo_dist.tracking.graph_stats import GraphStats

MAX_RECENT_JUMPS = 2000
"""The most drawn pairs whose jumps are kept."""

RECENT_LOSSES = 20
"""Rounds whose mean loss is compared with that of round 1, and rounds between two comparisons."""


class HealthMonitor:
    """Checks a run before its first round and after every round."""

    def __init__(
        self,
        algorithm: AlgorithmSection,
        clients: int,
        rounds: int,
        lr: float,
        taking_part: int | None = None,
    ) -> None:
        """Check a run of the algorithm.

        `lr` is the step size, `taking_part` the number of clients in a round; None: all.
        """
        self.algorithm, self.clients, self.rounds, self.lr = algorithm, clients, rounds, lr
        self.taking_part = clients if taking_part is None else taking_part
        self.state = HealthState()
        pairs = clients * (clients - 1) // 2
        self._max_jumps = max(20, min(2 * pairs, MAX_RECENT_JUMPS))

    def before(self) -> list[WarningRow]:
        """Check the settings before the first round; return the warnings."""
        facts = HealthFacts(self.clients, self.rounds, self.lr, self.taking_part)
        return self._warn(0, self.algorithm.check_settings(facts))

    def after(
        self, r: int, loss: float, alignments: NDArray[np.float64], graph: GraphStats
    ) -> list[WarningRow]:
        """Check round r by its mean loss, the alignments of its pairs and the graph after it."""
        state, step = self.state, self.algorithm.weight_step
        state.losses = [*state.losses, loss][-RECENT_LOSSES:]
        if r == 1:
            state.first_loss = loss
        compares = len(state.losses) == RECENT_LOSSES and r % RECENT_LOSSES == 0
        found = self._warn(r, self._divergence(r)) if compares else []
        state.drawn += len(alignments)
        if step:
            jumps = np.abs(step * alignments).tolist()
            state.jumps = [*state.jumps, *jumps][-self._max_jumps :]
        growth = loss / state.first_loss if state.first_loss > 0 else 1.0
        facts = HealthFacts(
            self.clients, self.rounds, self.lr, self.taking_part, r, growth, state.drawn,
            len(alignments), state.jumps, graph,
        )  # fmt: skip
        return found + self._warn(r, self.algorithm.check_round(facts))

    def _divergence(self, r: int) -> Iterable[Finding]:
        now, first = float(np.mean(self.state.losses)), self.state.first_loss
        if now > 2.0 * first > 0:
            yield Finding(
                "diverging",
                f"the mean training loss is {now:.3g} after {r} rounds, up from {first:.3g} in round 1: "
                f"models diverge; lower {' or '.join(('optimizer.lr', *self.algorithm.step_keys))}",
            )

    def _warn(self, r: int, findings: Iterable[Finding]) -> list[WarningRow]:
        """Note the findings that are new, and return them."""
        seen = {warning.kind for warning in self.state.warnings}
        new = [
            WarningRow(round=r, kind=one.kind, message=one.message)
            for one in findings
            if one.kind not in seen
        ]
        self.state.warnings.extend(new)
        return new
