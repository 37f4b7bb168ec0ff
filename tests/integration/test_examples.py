"""Examples run as they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from pool import RankPool
from problems import train

from cobo_dist.cli.train import main
from cobo_dist.storage.reading import read_status

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its last cell says how good a client's model is."""
    nbformat = pytest.importorskip("nbformat", reason="needs the extra test")
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    (said,) = [cell.outputs[0]["text"] for cell in notebook.cells[-2:-1]]
    assert float(said.partition("%")[0]) > 80


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_callback_stops_once_the_clusters_are_settled(
    pool: RankPool, tmp_path: Path, ranks: int
) -> None:
    """A run that is resumed in between stops at the same round."""
    given = [
        f"plugins={EXAMPLES / 'own_callback.py'}", "callbacks=[{name: settled, rounds: 20}]",
        "algorithm.gamma=0.1", "algorithm.sampling.name=all", "comm.deterministic=true",
        "run.checkpoint_every=10", "log.figures=false", "log.progress=none",
    ]  # fmt: skip
    pool.run(ranks, train, [*given, "run.rounds=500", f"run.dir={tmp_path / 'whole'}"])
    status = read_status(tmp_path / "whole")
    assert status is not None
    assert status.reason.startswith("stopped early at round ")
    part = tmp_path / "part"
    assert main([*given, "run.rounds=10", f"run.dir={part}"]) == 0
    assert main([*given, "run.rounds=500", f"run.dir={part}", "run.resume=auto"]) == 0
    again = read_status(part)
    assert again is not None
    assert again.reason == status.reason
