"""Train on a table of your own, whose column `hospital` says whose each example is:

python examples/own_data.py

The table is made up: five hospitals of unequal size measure the same things, and two of them name the two
diagnoses the other way round.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

import cobo_dist

TABLE = Path("runs/patients.csv")
PATIENTS = {"Aalen": 400, "Bern": 60, "Chur": 150, "Davos": 90, "Enna": 200}
SWAPPED = ("Davos", "Enna")


def write_table() -> None:
    """Write one row a patient: hospital, three measurements, diagnosis."""
    rng = np.random.default_rng(0)
    parts = []
    for hospital, count in PATIENTS.items():
        x = rng.normal(size=(count, 3))
        ill = (x @ [1.0, -2.0, 0.5] + 0.3 * rng.normal(size=count) > 0) ^ (hospital in SWAPPED)
        part = pd.DataFrame(x * [5, 20, 1] + [37, 120, 0], columns=["temperature", "pressure", "c"])
        parts.append(part.assign(hospital=hospital, diagnosis=np.where(ill, "ill", "well")))
    TABLE.parent.mkdir(exist_ok=True)
    pd.concat(parts).to_csv(TABLE, index=False)


if os.environ.get("RANK", "0") == "0":
    write_table()
run = cobo_dist.fit(
    {
        "run": {"rounds": 100, "eval_every": 0, "dir": "runs/own_data", "overwrite": True},
        "task": {
            "name": "classification",
            "source": {
                "name": "csv", "file": str(TABLE), "label": "diagnosis", "client": "hospital",
            },
            "partition": {"name": "by_column"},
        },
        "model": {"name": "mlp", "hidden": [16]},
        "algorithm": {"sampling": {"name": "all"}},
        "log": {"progress": "none", "figures": False},
    }
)  # fmt: skip
if os.environ.get("RANK", "0") == "0":
    for name, result in zip(PATIENTS, run.summary["per_client"], strict=True):
        print(f"{name:<6} accuracy {result['accuracy']:.2f}")
    print("clusters", run.clusters())
