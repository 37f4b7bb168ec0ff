"""Write a problem.npz for task `quadratic` (the paper's Example 2), client ids cluster by cluster.

    python benchmarks/quadratic_problem.py problem.npz [CLUSTERS] [CLIENTS_PER_CLUSTER] [SIZE] [SPREAD]

Centres are standard normal; curvatures lie within 1 +- SPREAD, so that inside a cluster
M_ij = |a_i - a_j| / (a_i + a_j) <= SPREAD.
"""

from __future__ import annotations

import sys

import numpy as np


def main() -> None:
    """Write the file that the arguments describe."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    given = [float(argument) for argument in sys.argv[2:]]
    clusters, each, size = (int(a) for a in (*given[:3], *(4, 3, 10)[len(given) :])[:3])
    spread = given[3] if len(given) > 3 else 0.2
    rng = np.random.default_rng(0)
    n = clusters * each
    np.savez(
        sys.argv[1],
        centers=np.repeat(rng.normal(size=(clusters, size)), each, axis=0),
        curvature=1.0 + spread * rng.uniform(-1.0, 1.0, size=n),
        start=rng.normal(size=size),
    )
    print(f"{sys.argv[1]}: {n} clients in {clusters} clusters of {each}, d = {size}")


if __name__ == "__main__":
    main()
