"""Examples run as they are shown."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from pool import RankPool
from problems import models, train

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


def test_own_data_finds_the_hospitals_that_swap_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "own_data.py"))
    *accuracies, clusters = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in accuracies] == ["Aalen", "Bern", "Chur", "Davos", "Enna"]
    assert all(float(line.split()[-1]) > 0.85 for line in accuracies)
    assert clusters == "clusters [0 0 0 1 1]"


def test_own_partition_separates_even_from_odd_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a help text, and a refusal of its own."""
    plugin = f"plugins={EXAMPLES / 'own_partition.py'}"
    given = [plugin, "task.name=classification", "task.partition.name=even_odd"]
    assert main([*given, "task.partition.clients=3", f"run.dir={tmp_path / 'odd'}"]) == 2
    assert "task.partition.clients=3 cannot be halved" in capsys.readouterr().err
    quick = ["run.rounds=1", "run.threads=1", "log.figures=false", "log.progress=none"]
    assert main([*given, *quick, "task.partition.clients=6", f"run.dir={tmp_path / 'run'}"]) == 0
    with np.load(tmp_path / "run" / "partition.npz") as arrays:
        assert sorted(set(arrays["client"].tolist())) == list(range(6))
        assert np.array_equal(arrays["client"] >= 3, arrays["label"] % 2 == 1)
    assert (tmp_path / "run" / "plugins" / "own_partition.py").is_file()
    assert main(["--help", "task.partition.even_odd", plugin]) == 0
    assert "task.partition.name=even_odd: Even labels" in capsys.readouterr().out


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


def test_own_model_trains_in_both_engines(pool: RankPool, tmp_path: Path) -> None:
    """Attention over the rows of digits; the number of its heads is checked."""
    given = [
        f"plugins={EXAMPLES / 'own_model.py'}", "task.name=classification", "run.threads=1",
        "task.partition.clients=4", "model.name=row_attention", "model.width=16",
    ]  # fmt: skip
    found = {}
    for engine, ranks in (("one_by_one", 1), ("one_by_one", 2), ("vectorised", 2)):
        folder = tmp_path / f"{engine}-{ranks}"
        settings = [*given, f"run.engine={engine}", "run.rounds=2", f"run.dir={folder}"]
        assert pool.run(ranks, train, settings) == [0] * ranks
        found[folder.name] = models(folder)
    first = found.pop("one_by_one-1")
    for other in found.values():
        for name, one in first.items():
            np.testing.assert_allclose(other[name], one, rtol=1e-4, atol=1e-5, err_msg=name)
    assert main([*given, "model.heads=3", f"run.dir={tmp_path / 'run'}"]) == 2
