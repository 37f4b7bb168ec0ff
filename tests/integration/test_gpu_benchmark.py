"""The benchmark for GPUs runs on a CPU with tiny models, so that it works where there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launching import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_runs_small(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--small", "--out", str(out)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["small"]
    failed = {title: one for title, one in found["results"].items() if "failed" in one}
    assert not failed, done.stdout
    results = found["results"]
    assert results["two ranks, digits"]["largest difference"] < 1e-12
    assert results["SIGTERM"]["exit code"] == 75
    assert results["a killed rank of two"]["exit code"] == 1
    for title in ("cross_silo, float32", "cross_device, float32"):
        assert results[title]["s a round"] > 0
        assert title in done.stdout
