"""What comparisons reveal: counted against the batches themselves, epsilon against the Gaussian mechanism."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.cobo_privacy import Releases
from cobo_dist.clients.batches import BatchIndices
from cobo_dist.config.loading import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.maths.sampling import draw_pairs

SIZES = (4, 6, 7, 20, 32)
BATCH = 6


@pytest.mark.parametrize("rounds", [1, 7, 60])
def test_no_example_is_in_more_sketches_than_are_counted(rounds: int) -> None:
    n = len(SIZES)
    releases = Releases(RunContext(n, None, 0, rounds, examples=SIZES, batch_size=BATCH))
    numbers = [torch.arange(size) for size in SIZES]
    batches = BatchIndices(0, "midpoint", range(n), numbers, BATCH)
    used = [np.zeros(size, dtype=int) for size in SIZES]
    for t in range(rounds):
        pairs = draw_pairs(seeds.key(0, "pairs", t), n, 0.4)
        releases.add(t, pairs)
        met = np.bincount(pairs.flatten().numpy(), minlength=n)
        for client, batch in enumerate(batches.batch(t)):
            used[client][np.unique(batch.numpy())] += met[client]
    counted = releases.counts_n3[:, 1:].sum(dim=1).numpy()
    most = np.array([one.max() for one in used])
    assert (counted >= most).all()
    epochs = rounds * BATCH / np.array(SIZES)
    assert (counted <= (epochs + 1) * n).all()


def exact_epsilon(mu: float, delta: float) -> float:
    """The least epsilon of a Gaussian mechanism of that mu (Balle and Wang, ICML 2018)."""

    def excess(epsilon: float) -> float:
        found = norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        return float(found - delta)

    return float(brentq(excess, 0.0, 200.0))


@pytest.mark.parametrize("noise", [5.0, 20.0, 80.0])
def test_epsilon_is_that_of_the_gaussian_mechanism(noise: float) -> None:
    """Two sketches of a client differ by twice the clip, and m of them by sqrt(m) times as much."""
    releases = Releases(RunContext(2, None, 0, 50, examples=(10, 10), batch_size=10))
    for t in range(50):
        releases.add(t, torch.tensor([[0, 1]]))
    exact = exact_epsilon(2.0 * np.sqrt(50) / noise, 1e-5)
    assert exact <= releases.epsilon(noise, 1e-5) <= 1.2 * exact + 0.05


def test_nothing_compared_reveals_nothing() -> None:
    assert Releases(RunContext(2, None, 0, 1, examples=(5, 5))).epsilon(1.0, 1e-5) == 0.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["algorithm.privacy.noise=2"], "algorithm.sketch=0"),
        (["algorithm.privacy.noise=2", "algorithm.sketch=64"], "algorithm.privacy.clip"),
        (["algorithm.privacy.clip=1", "preset=robust", "algorithm.sketch=64"], "algorithm.privacy"),
        (
            [
                "algorithm.privacy={clip: 1, noise: 1}", "algorithm.sketch=64",
                "algorithm.midpoint_data=shared",
            ],
            "algorithm.midpoint_data=shared",
        ),
    ],
)  # fmt: skip
def test_what_noise_needs(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(None, settings)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    keys = ["algorithm.privacy={clip: 1, noise: 1}", "algorithm.sketch=64"]
    with pytest.raises(ConfigError, match=r"pip install 'cobo_dist\[privacy\]'"):
        load_config(None, keys)
