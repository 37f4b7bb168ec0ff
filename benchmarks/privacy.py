"""Noised comparisons: accuracy and links against epsilon.

    python benchmarks/privacy.py [--only RULE ...] [--epsilons 1 2 4 8 100] [--seeds 0 1 2] [--sketch 16]
        [--clip 1] [--config FILE] [--rounds N] [--set KEY=VALUE ...] [--out DIR]

CoBo by the config, the quickstart if none is given, with client selection by the paper's update or by
evidence (`preset=evidence`), whose gradients are compared by clipped sketches with noise. The noise is the
least that keeps epsilon of all comparisons below each value, at the config's delta, by the count of
`algorithm.privacy`; models are not covered. Prints, as means over the seeds with half of their 95% confidence
intervals, test accuracy and F1 of the links, beside clipped sketches without noise and beside Local. Runs
that are in --out are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from grid_runs import COMMON, train_once
from markdown_table import markdown
from scipy.optimize import brentq
from study_tables import Result, interval

from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.cobo_privacy import Releases
from cobo_dist.config import Config
from cobo_dist.config.loading import load_config
from cobo_dist.maths import seeds
from cobo_dist.maths.sampling import draw_pairs
from cobo_dist.tasks.registry import build_task

RULES = {"paper": ("preset=paper",), "evidence": ("preset=evidence",)}
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=RULES, metavar="RULE", default=list(RULES))
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1, 2, 4, 8, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sketch", type=int, default=16, help="numbers of a sketch")
    parser.add_argument("--clip", type=float, default=1.0, help="greatest norm of a sketch")
    parser.add_argument("--config", default=str(QUICKSTART), metavar="FILE")
    parser.add_argument("--rounds", type=int, default=0, help="0: as the config says")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings")
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"), metavar="DIR")
    options = parser.parse_args()
    shared = [*COMMON, *options.set]
    rounds = options.rounds or load_config(options.config, shared).run.rounds
    shared.append(f"run.rounds={rounds}")
    private = [f"algorithm.sketch={options.sketch}", f"algorithm.privacy.clip={options.clip}"]

    def runs(name: str, given: list[str]) -> list[Result]:
        found = []
        for seed in options.seeds:
            lr = load_config(options.config, shared).optimizer.lr
            path = train_once(options.config, given, rounds, options.out / name, lr, seed)
            found.append(Result.read(path, name, lr, seed))
        return found

    rows = []
    for rule in options.only:
        for epsilon in (None, *sorted(options.epsilons, reverse=True)):
            given, noise = [*shared, *RULES[rule], *private], 0.0
            if epsilon is not None:
                noise = noise_for(load_config(options.config, given), epsilon)
                given.append(f"algorithm.privacy.noise={noise:.6g}")
            told = "infinite" if epsilon is None else f"{epsilon:g}"
            found = runs(f"{rule}_{told}", given)
            rows.append({
                "selection": rule, "epsilon": told, "noise / clip": f"{noise:.3g}",
                "accuracy %": interval([one.accuracies[-1] for one in found]),
                "F1 of links": interval([one.links_f1 or 0.0 for one in found], ".2f"),
            })  # fmt: skip
    alone = runs("local", [*shared, "algorithm.name=local"])
    rows.append(dict.fromkeys(rows[0], "") | {"selection": "Local"})
    rows[-1]["accuracy %"] = interval([one.accuracies[-1] for one in alone])
    print(markdown(pd.DataFrame(rows)), flush=True)


def noise_for(config: Config, epsilon: float) -> float:
    """Return the noise, in units of the clip, with which a run of the config ends at that epsilon.

    Which pairs meet does not depend on the noise, so the count of comparisons is known before; it is that of
    the config's seed, and other seeds differ a little.
    """
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    n, rounds, algorithm = task.clients, config.run.rounds, config.algorithm
    context = RunContext(
        n, None, config.run.seed, rounds, examples=task.train_sizes(), batch_size=task.batch_size
    )
    releases = Releases(context)
    for t in range(rounds):
        probability = algorithm.sampling.probability(t, n, rounds)
        releases.add(t, draw_pairs(seeds.key(config.run.seed, "pairs", t), n, probability))
    delta = algorithm.privacy.delta
    return float(
        brentq(lambda noise: releases.epsilon(noise, delta) - epsilon, 0.1, 1e5, rtol=1e-3)
    )


if __name__ == "__main__":
    main()
