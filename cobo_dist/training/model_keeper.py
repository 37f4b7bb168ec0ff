"""Which models a run leaves (`run.keep`): the last, each client's best, or those of a random round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.clients.local_work import Rows
from cobo_dist.maths import seeds
from cobo_dist.run_config import RunConfig


class ModelKeeper:
    """Keeps this rank's models by the rule of `run.keep`; without messages."""

    def __init__(self, run: RunConfig, clients: ClientBatch) -> None:
        """Keep nothing for `last`; `clients` else hold the kept models."""
        self.rule, self.seed, self.clients = run.keep, run.seed, clients
        if self.rule != "last":
            clients.keep_models()

    def after_round(self, r: int) -> None:
        """With `uniform`, keep the models after round r with probability 1/r.

        So after any round, those of each round so far are kept with equal probability: Algorithm 1's output.
        """
        if self.rule == "uniform" and float(seeds.uniforms(self._key(r), 1)) * r < 1.0:
            self._take(r, np.arange(len(self.clients.ids)))

    def after_evaluation(
        self, r: int, results: Mapping[str, Sequence[Mapping[str, float]]]
    ) -> None:
        """With `best`, keep each model whose validation loss is lower than any before.

        `results`: by split, those of this rank's clients.
        """
        kept = self.clients.kept
        if self.rule != "best" or kept is None:
            return
        losses = [one["loss"] for one in results["validation"]]
        losses_c1 = torch.tensor(losses, dtype=torch.float64)[:, None]
        better_c1 = losses_c1 < kept.losses_c1
        kept.losses_c1[better_c1] = losses_c1[better_c1]
        self._take(r, np.flatnonzero(better_c1.numpy()))

    def put_back(self) -> None:
        """Make the kept models those of the clients, once training is over."""
        if self.clients.kept is not None:
            self.clients.kept.put_back(self.clients.x_cd, self.clients.buffers)

    def _take(self, r: int, rows_k: Rows) -> None:
        if self.clients.kept is not None:
            self.clients.kept.take(r, rows_k, self.clients.x_cd, self.clients.buffers)

    def _key(self, r: int) -> int:
        return seeds.key(self.seed, "kept round", r)
