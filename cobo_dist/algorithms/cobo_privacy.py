"""What comparisons reveal of a client's data, where gradients are compared by clipped and noised sketches.

It covers comparisons only: models travel as they are.
"""

from __future__ import annotations

import importlib.util

from pydantic import Field

from cobo_dist.algorithms.base import RunContext
from cobo_dist.lazy import Tensor, torch
from cobo_dist.settings import Section


class PrivacyConfig(Section):
    """Noise on what clients compare (`algorithm.sketch`)."""

    clip: float = Field(
        0.0, ge=0, description="greatest norm of a sketch; longer ones are scaled down; 0: any"
    )
    noise: float = Field(
        0.0,
        ge=0,
        description="standard deviation of the Gaussian noise on each number of a sketch, in units of the "
        "clip; `epsilon` is then in metrics.jsonl and summary.json: that of all comparisons for one example "
        "of the client that is compared most. Models are not covered. Needs cobo_dist[privacy]",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="the delta for which epsilon is told")

    def contradiction(self) -> str:
        """Return which keys do not go together, or what is not installed."""
        if self.noise and not self.clip:
            return (
                f"algorithm.privacy.noise={self.noise:g} is in units of algorithm.privacy.clip, which is not "
                "set; set it to about the norm of a gradient"
            )
        if self.noise and importlib.util.find_spec("dp_accounting") is None:
            return "algorithm.privacy.noise needs the package dp-accounting; pip install 'cobo_dist[privacy]'"
        return ""


class Releases:
    """Counts the sketches that one example of each client may have changed.

    A client reads each example once in an epoch of its stream, so in one batch, whose gradient may go into
    several meetings of that round. So an epoch counts the most meetings of one of its rounds. This assumes
    nothing about how batches are drawn, and so gains nothing from it.

    >>> context = RunContext(2, None, seed=0, rounds=4, examples=[4, 8], batch_size=4)
    >>> releases = Releases(context)
    >>> for t in range(4):
    ...     releases.add(t, torch.tensor([[0, 1]]))
    >>> releases.counts_n3[:, 1:].sum(dim=1).tolist()
    [4, 2]
    """

    def __init__(self, context: RunContext) -> None:
        """Start with nothing released."""
        self.examples_n = torch.tensor(context.examples)
        self.batch = context.batch_size
        # Of each client: its epoch, the most meetings of a round in it, and the sum over earlier epochs.
        self.counts_n3 = torch.zeros(context.clients, 3, dtype=torch.int64)

    def add(self, t: int, pairs_m2: Tensor) -> None:
        """Count the meetings of round t, int64 [m, 2]."""
        met_n = torch.bincount(pairs_m2.flatten(), minlength=len(self.counts_n3))
        first_n = t * self.batch // self.examples_n
        last_n = ((t + 1) * self.batch - 1) // self.examples_n
        for step in range(int((last_n - first_n).max()) + 1):  # a batch may reach into later epochs
            epoch_n = (first_n + step).minimum(last_n)
            epoch, most, before = self.counts_n3.unbind(dim=1)
            is_new = epoch_n > epoch
            before += most * is_new
            most *= ~is_new
            epoch.copy_(epoch_n)
            most.copy_(most.maximum(met_n))

    def epsilon(self, noise: float, delta: float) -> float:
        """Return the epsilon of the client whose examples count most, by Renyi accounting.

        If an example is another one, a clipped sketch moves by at most twice the clip.
        """
        from dp_accounting import GaussianDpEvent, NeighboringRelation
        from dp_accounting.rdp import RdpAccountant

        count = int(self.counts_n3[:, 1:].sum(dim=1).max())
        accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
        if count:
            accountant.compose(GaussianDpEvent(noise / 2.0), count)
        return float(accountant.get_epsilon(delta))
