"""Two clients swap clusters at half time: how many rounds until all links of W are right again.

    python benchmarks/drift.py [--only RULE ...] [--rounds 800] [--seeds 0 1 2]

The task is `digits`: 8 clients in 4 clusters of 2. After half of the rounds client 0, of the first cluster,
and client 2, of the second, swap their data. CoBo runs as `cobo_dist.reference`, with the quickstart's
settings and some `algorithm.margin`, as `preset=evidence` with some `algorithm.evidence.discount`, or as
`preset=robust`; the gradients, batches and pairs are those of a run of the product. Prints for each rule,
one number a seed: how many of the 28 pairs are on the wrong side of weight 0.5 before the swap and at the
end, and the rounds from the swap to the first one without a wrong link, without a missing one, and without
either, `-` where there is none. Takes about 7 minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from markdown_table import markdown
from torch import Tensor

from cobo_dist import reference
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.config import Config, load_config
from cobo_dist.maths import seeds
from cobo_dist.maths.sampling import draw_pairs
from cobo_dist.tasks.registry import build_task

SWAPPED = (0, 2)
RULES: dict[str, tuple[str, ...]] = {
    **{f"margin {m:g}": (f"algorithm.margin={m:g}",) for m in (0, 1, 3, 1e9)},
    **{
        f"evidence, discount {d:g}": ("preset=evidence", f"algorithm.evidence.discount={d:g}")
        for d in (0.9, 0.97, 1.0)
    },
    "difference": ("preset=robust",),
}


@dataclass
class Clients:
    """The clients of a config's task, whose data some of them may swap."""

    config: Config
    owner_n: list[int] = field(default_factory=list)  # whose data each client has

    def __post_init__(self) -> None:
        config = self.config
        dtype = getattr(torch, config.run.dtype)
        task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
        self.clusters, self.n = np.asarray(task.clusters), task.clients
        self.examples_n, self.batch_size = (
            torch.tensor(task.train_sizes()).double(),
            task.batch_size,
        )
        self.owner_n = list(range(self.n))
        self.batch = ClientBatch(
            range(self.n), task, config.optimizer, dtype=dtype, device=torch.device("cpu")
        )

    def start(self) -> Tensor:
        """Return x^0 of all clients, [n, d]."""
        return self.batch.x_cd.clone()

    def gradient(self, t: int, stream: str, i: int, point_d: Tensor) -> Tensor:
        """Return the gradient [d] of client i at a point, on batch t of the data that it has now."""
        rows = np.array([self.owner_n[i]])
        return self.batch.gradients_at(point_d[None].clone(), rows, t, stream, in_place=True)[0]

    def swap(self, one: int, other: int) -> None:
        """Let two clients have each other's data from now on."""
        owners = self.owner_n
        owners[one], owners[other] = owners[other], owners[one]

    def wrong_links(self, w_nn: Tensor) -> tuple[int, int]:
        """Return how many pairs of W are linked and should not be, and the reverse, at weight 0.5."""
        cluster_n = self.clusters[self.owner_n]
        upper = np.triu_indices(self.n, k=1)
        should = (cluster_n[:, None] == cluster_n)[upper]
        are = (w_nn.numpy() >= 0.5)[upper]
        return int((are & ~should).sum()), int((should & ~are).sum())


def rounds_of(clients: Clients, rounds: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield models [n, d] and weights [n, n] after each round, from the steps of `cobo_dist.reference`."""
    config = clients.config
    keys: dict[str, Any] = config.algorithm.model_dump()
    n, seed, eta = clients.n, config.run.seed, config.optimizer.lr
    x_nd = clients.start()
    s_nn = torch.full((n, n), float(keys["start"] == "ones"), dtype=x_nd.dtype)
    evidence: reference.Evidence | None = None
    difference: reference.Difference | None = None
    if keys["selection"] == "evidence":
        zeros = (torch.zeros(n, n, dtype=torch.float64) for _ in range(2))
        how = {name: keys["evidence"][name] for name in ("certainty", "share", "discount")}
        evidence = reference.Evidence(*zeros, **how)
    elif keys["selection"] == "difference":
        difference = reference.Difference(
            clients.examples_n, clients.batch_size, **keys["difference"]
        )
    capped = keys["coupling"] == "capped"
    training = reference.capped_training if capped else reference.model_training
    for t in range(rounds):
        probability = config.algorithm.sampling.probability(t, n, rounds)  # type: ignore[attr-defined]
        pairs = [
            (int(i), int(j)) for i, j in draw_pairs(seeds.key(seed, "pairs", t), n, probability)
        ]
        at_midpoint = partial(clients.gradient, t, "midpoint")
        if evidence:
            s_nn = evidence.select(x_nd, s_nn, at_midpoint, pairs)
        elif difference:
            mean_d = x_nd.mean(dim=0)
            s_nn = difference.select(s_nn, torch.stack([at_midpoint(i, mean_d) for i in range(n)]))
        else:
            s_nn = reference.client_selection(
                x_nd, s_nn, at_midpoint, pairs, keys["gamma"], keys["margin"], keys["threshold"]
            )
        x_nd = training(
            x_nd, s_nn.clamp(0, 1), partial(clients.gradient, t, "local"), keys["rho"], eta
        )
        yield x_nd, s_nn.clamp(0, 1)


def drift(rule: str, rounds: int, seed: int) -> dict[str, Any]:
    """Return what happens to the links of one run that swaps two clients at half time.

    `gone`, `made` and `right`: rounds from the swap to the first one without a wrong link, without a missing
    link, and without either; None where there is none.
    """
    clients = Clients(load_config(None, [*RULES[rule], f"run.seed={seed}"]))
    half = rounds // 2
    found: dict[str, int | None] = {"gone": None, "made": None, "right": None}
    before = wrong = (0, 0)
    for r, (_, w_nn) in enumerate(rounds_of(clients, rounds), start=1):
        wrong = clients.wrong_links(w_nn)
        if r == half:
            before = wrong
            clients.swap(*SWAPPED)
        elif r > half:
            so_far = {"gone": not wrong[0], "made": not wrong[1], "right": wrong == (0, 0)}
            found = {
                name: r - half if reached and found[name] is None else found[name]
                for name, reached in so_far.items()
            }
    return {"rule": rule, "seed": seed, "before": sum(before), **found, "end": sum(wrong)}


COLUMNS = {
    "before": "wrong before the swap",
    "gone": "rounds until old links are gone",
    "made": "until new ones are made",
    "right": "until all are right",
    "end": "wrong at the end",
}


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each rule, with the numbers of its seeds one after the other."""
    rows = [
        {"rule": rule}
        | {title: ", ".join(map(_whole, part[key])) for key, title in COLUMNS.items()}
        for rule, part in frame.groupby("rule", sort=False)
    ]
    return pd.DataFrame(rows)


def _whole(number: float | None) -> str:
    return "-" if number is None or pd.isna(number) else f"{number:.0f}"


def main() -> None:
    """Run all rules and seeds and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=RULES, default=list(RULES), metavar="RULE")
    parser.add_argument("--rounds", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [drift(rule, options.rounds, seed) for rule in options.only for seed in options.seeds]
    print(markdown(table(pd.DataFrame(found))))


if __name__ == "__main__":
    main()
