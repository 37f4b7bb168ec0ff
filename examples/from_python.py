"""Train from Python, on as many ranks as a launcher starts, and read the results:

python examples/from_python.py
torchrun --standalone --nproc_per_node=2 examples/from_python.py
"""

import os

import cobo_dist

run = cobo_dist.fit(
    {
        "run": {"rounds": 100, "eval_every": 50, "dir": "runs/from_python", "overwrite": True},
        "task": {"name": "digits", "clusters": 2},
        "log": {"progress": "none", "figures": False},
    }
)
if os.environ.get("RANK", "0") == "0":
    print(run.metrics[run.metrics.client.isna()][["round", "split", "loss", "accuracy"]])
    print("clusters", run.clusters())
