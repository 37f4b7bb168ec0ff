"""benchmarks/drift.py: without the swap it is a run of the product, and the swap exchanges data and truth."""

from __future__ import annotations

from pathlib import Path

import drift
import numpy as np
import pandas as pd
import pytest
import torch
from problems import QUIET

import cobo_dist
from cobo_dist.config import load_config

ROUNDS = 8
KEYS = (
    "run.dtype=float64", "run.threads=1", "run.engine=one_by_one", "model.hidden=[8]",
    "algorithm.start=zeros",
)  # fmt: skip
ALL_PAIRS = ("algorithm.sampling.rate=8",)
MORE = {
    "margin 1": ALL_PAIRS,
    "evidence, discount 0.9": ALL_PAIRS,
    "difference": ("algorithm.difference.window=2", "algorithm.difference.step=0.2"),
}


@pytest.mark.parametrize("rule", MORE)
def test_without_the_swap_it_equals_the_product(tmp_path: Path, rule: str) -> None:
    config = load_config(None, [*drift.RULES[rule], *KEYS, *MORE[rule]])
    *_, (x_nd, w_nn) = drift.rounds_of(drift.Clients(config), ROUNDS)
    rounds = [f"run.rounds={ROUNDS}", "run.eval_every=0", f"run.dir={tmp_path / 'run'}"]
    run = cobo_dist.fit(None, [*QUIET, *drift.RULES[rule], *KEYS, *MORE[rule], *rounds])
    off = ~np.eye(8, dtype=bool)
    # W is logged as float32.
    np.testing.assert_allclose(run.W[off], w_nn.numpy()[off], rtol=0, atol=1e-6)
    assert 0.0 < w_nn.numpy()[off].mean() < 1.0, "W has changed"
    for client in range(8):
        own = torch.cat([one.detach().flatten() for one in run.model(client).parameters()])
        np.testing.assert_allclose(own.numpy(), x_nd[client].numpy()[: len(own)], rtol=0, atol=1e-9)


def test_a_swap_exchanges_gradients_and_true_links() -> None:
    clients = drift.Clients(load_config(None, []))
    point = clients.start()[0]
    before = [clients.gradient(3, "midpoint", i, point).clone() for i in (0, 2)]
    truth = np.equal.outer(clients.clusters, clients.clusters)
    weights = torch.from_numpy(truth.astype(np.float32))
    assert clients.wrong_links(weights) == (0, 0)
    clients.swap(0, 2)
    after = [clients.gradient(3, "midpoint", i, point).clone() for i in (0, 2)]
    assert torch.equal(after[0], before[1])
    assert torch.equal(after[1], before[0])
    assert not torch.equal(after[0], before[0])
    # 0-1 and 2-3 are wrong now, 0-3 and 1-2 are missing.
    assert clients.wrong_links(weights) == (2, 2)


def test_it_says_when_all_links_are_right_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients swap after round 3 of 7. Old links are gone in 4, all are right in 6, not in 7."""

    def rounds_of(clients: drift.Clients, rounds: int) -> object:
        truth = torch.from_numpy(np.equal.outer(clients.clusters, clients.clusters)).float()
        order = [2, 1, 0, *range(3, 8)]
        swapped = truth[order][:, order]
        for w_nn in (0 * truth, truth, truth, truth * swapped, truth, swapped, truth):
            yield clients.start(), w_nn

    monkeypatch.setattr(drift, "rounds_of", rounds_of)
    found = drift.drift("margin 0", 7, seed=0)
    assert found == {
        "rule": "margin 0", "seed": 0, "before": 0, "gone": 1, "made": 3, "right": 3, "end": 4,
    }  # fmt: skip
    shown = drift.table(pd.DataFrame([found, found | {"seed": 1, "gone": None, "end": 0}]))
    assert shown.iloc[0].tolist() == ["margin 0", "0, 0", "1, -", "3, 3", "3, 3", "4, 0"]
