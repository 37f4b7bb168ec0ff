"""Theorem 1 on quadratic problems with noise: figures and tables. Takes about a minute of one core.

    python benchmarks/theory.py [--only STUDY ...] [--rounds N] [--seeds N] [--figures DIR]

Studies: `rate`, the means over T rounds that the theorem bounds, over T; `rho` and `m`, how they change with
the penalty and with M_ij^2, also past 1/5; `coupling`, the explicit step and the capped coupling;
`conditions`, which curvatures L the shipped configs suit. Each prints a table of means over seeds; all but
the last draw a figure, DIR/theory_STUDY.png. `--rounds` shortens the runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from markdown_table import markdown
from theory_figures import DRAWN
from theory_runs import Problem, Trace, example_2, measured_m_squared, run, two_kinds

from cobo_dist.config import load_config

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = (100, 316, 1000, 3162)
CONFIGS = (  # file, clients, clients of the smallest cluster
    ("quadratic.yaml", 12, 3),
    ("quickstart.yaml", 8, 2),
    ("cpu/cross_silo_cobo.yaml", 8, 2),
    ("cpu/cross_device_cobo.yaml", 80, 6),
    ("paper/cross_silo_cobo.yaml", 8, 2),
    ("paper/cross_device_cobo.yaml", 80, 6),
    ("paper/cross_device_cobo_published.yaml", 80, 6),
)


def main() -> None:
    """Run the studies, print their tables and draw them."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--rounds", type=int, default=max(LENGTHS), help="rounds of a run at most")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--figures", type=Path, default=Path("report/theory"), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.figures.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        table = STUDIES[name](options.rounds, range(options.seeds))
        print(f"{name}\n\n{markdown(table)}\n", flush=True)
        if name in DRAWN:
            DRAWN[name](table, options.figures / f"theory_{name}.png")


def means(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return the mean over seeds of what the theorem bounds, and of W at the end; inf if models diverge."""
    diverged = any(not one.consensus_t[-1] < 1e6 for one in traces)
    return {
        "consensus": math.inf if diverged else np.mean([one.consensus_t.mean() for one in traces]),
        "gradient": math.inf if diverged else np.mean([one.gradient_t.mean() for one in traces]),
        "W within": np.mean([one.within for one in traces]),
        "W across": np.mean([one.across for one in traces]),
    }


def theorem_step(problem: Problem, sigma: float, rounds: int) -> float:
    """Return Theorem 1's step size up to a constant factor: at most 1/(2 sqrt(3) L), and as 1/sqrt(T)."""
    most, variance = 1 / (2 * math.sqrt(3) * problem.smoothness), sigma**2 * len(problem.start_d)
    if not variance:
        return most
    return min(most, math.sqrt(problem.gap() / (problem.smoothness * variance * rounds)))


def rate(most: int, seeds: range) -> pd.DataFrame:
    """Return the means over T rounds for some T, with the theorem's rho and step sizes."""
    problem, rows = example_2(2, 4), []
    rho = math.sqrt(3) * problem.smoothness / problem.c
    for sigma, known in ((0.0, False), (0.3, False), (1.0, False), (1.0, True)):
        for rounds in sorted({min(most, one) for one in LENGTHS}):
            eta = theorem_step(problem, sigma, rounds)
            traces = [
                run(problem, rho=rho, eta=eta, rounds=rounds, sigma=sigma, seed=seed, known=known)
                for seed in (seeds if sigma else seeds[:1])
            ]
            weights = "right" if known else "learned"
            rows.append({"sigma": sigma, "W": weights, "T": rounds, "eta": eta, **means(traces)})
    return pd.DataFrame(rows)


def over_rho(most: int, seeds: range) -> pd.DataFrame:
    """Return the means over 1,000 rounds for some rho, at a step at which the explicit one is stable."""
    problem, eta, rows = example_2(2, 4), 0.02, []
    for sigma in (0.0, 0.3):
        for scaled in (0.1, 0.3, 1.0, math.sqrt(3), 5.0, 15.0):  # rho c / L
            rho = scaled * problem.smoothness / problem.c
            traces = [
                run(problem, rho=rho, eta=eta, rounds=min(most, 1000), sigma=sigma, seed=seed)
                for seed in (seeds if sigma else seeds[:1])
            ]
            rows.append({"sigma": sigma, "rho c / L": scaled, "rho": rho, **means(traces)})
    return pd.DataFrame(rows)


def over_m(most: int, seeds: range) -> pd.DataFrame:
    """Return the means over 1,000 rounds for some M_ij^2, of two families of curvatures, L = 1."""
    rows = []
    values = {False: (0.0, 0.05, 0.2, 0.5, 0.8), True: (0.0, 0.05, 0.2, 0.5, 0.8, 1.2, 2.0, 2.9)}
    for rotated, asked in values.items():
        for sigma in (0.0, 0.3):
            for m_squared in asked:
                problem = two_kinds(m_squared, rotated)
                traces = [
                    run(problem, rho=math.sqrt(3) / problem.c, eta=0.1, rounds=min(most, 1000),
                        sigma=sigma, seed=seed)
                    for seed in (seeds if sigma else seeds[:1])
                ]  # fmt: skip
                rows.append(
                    {
                        "curvatures": "other axes" if rotated else "other sizes",
                        "sigma": sigma,
                        "M^2": measured_m_squared(problem),
                        **means(traces),
                        "W between kinds": np.mean([one.between_kinds for one in traces]),
                    }
                )
    return pd.DataFrame(rows)


def over_coupling(most: int, seeds: range) -> pd.DataFrame:
    """Return the means over 300 rounds for some rho, explicit and capped, with n/c = 10."""
    problem, eta, sigma, rows = example_2(10, 2), 0.1, 0.3, []
    for capped in (False, True):
        for step in (0.25, 0.5, 1.0, 1.8, 2.2, 5.0, 20.0, 100.0):  # eta (L + rho n)
            rho = (step / eta - problem.smoothness) / problem.n
            traces = [
                run(
                    problem,
                    rho=rho,
                    eta=eta,
                    rounds=min(most, 300),
                    sigma=sigma,
                    seed=seed,
                    capped=capped,
                )
                for seed in seeds
            ]
            rows.append(
                {
                    "coupling": "capped" if capped else "explicit",
                    "eta (L + rho n)": step,
                    "rho": rho,
                    "rho c / L": rho * problem.c / problem.smoothness,
                    **means(traces),
                }
            )
    return pd.DataFrame(rows)


def greatest_curvature(eta: float, n: int, c: int) -> float:
    """Return the L below which some rho has both rho c >= sqrt(3) L and eta (L + rho n) < 2.

    >>> round(greatest_curvature(0.2, 80, 8), 2)
    0.55
    """
    return 2 / eta / (1 + math.sqrt(3) * n / c)


def conditions(most: int, seeds: range) -> pd.DataFrame:
    """Return for shipped configs the largest L that their rho suits, and that any rho suits."""
    rows = []
    for file, n, c in CONFIGS:
        config = load_config(str(ROOT / "configs" / file), [])
        rho, eta = config.algorithm.model_dump()["rho"], config.optimizer.lr
        rows.append(
            {
                "config": file,
                "n": n,
                "c": c,
                "eta": eta,
                "rho": rho,
                "eta rho n": eta * rho * n,
                "largest L, this rho": rho * c / math.sqrt(3),
                "largest L, any rho": greatest_curvature(eta, n, c),
                "eta L at that": eta * greatest_curvature(eta, n, c),
            }
        )
    return pd.DataFrame(rows)


STUDIES: dict[str, Callable[[int, range], pd.DataFrame]] = {
    "rate": rate, "rho": over_rho, "m": over_m, "coupling": over_coupling, "conditions": conditions,
}  # fmt: skip

if __name__ == "__main__":
    main()
