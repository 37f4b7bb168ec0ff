"""Run folders of format 1 are read and resumed: stored samples, described in tests/data/README.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from problems import QUIET, models, rows

from cobo_dist.cli.report import main as report
from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.reports.reading import read_run
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage.reading import read_row
from cobo_dist.sweeps.folders import look, read_result
from cobo_dist.tracking import weight_snapshots

SAMPLES = Path(__file__).parents[1] / "data" / "run_v1"


def test_a_report_reads_it(tmp_path: Path) -> None:
    for name in ("whole", "sparse_whole"):
        run = read_run(SAMPLES / name)
        assert (run.algorithm, run.task, run.last_round) == ("cobo", "quadratic", 16)
        assert run.weights is not None
        assert run.weights.rounds.tolist() == [0, 4, 8, 12, 16]
        assert run.summary is not None
        assert run.evals["test", "loss"][None][16] == run.summary.final["loss"]
        assert len(run.rounds["loss"]) == 16
        assert bool(run.profile) == (name == "sparse_whole")
    assert report([str(SAMPLES / "whole"), "--out", str(tmp_path / "out")]) == 0
    assert "cobo" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_every_row_of_it_is_known() -> None:
    for name in ("whole", "sparse_whole"):
        lines = (SAMPLES / name / "metrics.jsonl").read_bytes().splitlines()
        events = [getattr(read_row(line), "event", None) for line in lines]
        assert set(events) <= {"eval", "round", "profile", "traffic"}
        assert events[-1] == "traffic"


def test_a_sweep_reads_it() -> None:
    folder = SAMPLES / "whole"
    wanted = load_config(str(folder / "config.yaml"), [])
    assert look(folder, wanted) == "done"
    assert look(SAMPLES / "stopped", wanted) == "resume"
    summary = json.loads((folder / "summary.json").read_text())
    assert read_result(folder).scores == {("test", "loss"): summary["final"]["loss"]}


@pytest.mark.parametrize(("name", "dense"), [("", 512), ("sparse_", 4)])
def test_it_resumes_bit_by_bit(name: str, dense: int, tmp_path: Path) -> None:
    """The rest of the run gives the models and W that version 0.1.0 gave, and the checkpoint is complete."""
    whole, cut = SAMPLES / f"{name}whole", tmp_path / "cut"
    shutil.copytree(SAMPLES / f"{name}stopped", cut)
    arguments = [
        "--config", str(cut / "config.yaml"), f"run.dir={cut}", "run.resume=auto",
        f"task.file={SAMPLES / 'problem.npz'}", *QUIET,
    ]  # fmt: skip
    with mock.patch.object(weight_snapshots, "MAX_DENSE_CLIENTS", dense):
        assert main(arguments) == 0
    assert models(cut).keys() == models(whole).keys()
    for client, value in models(whole).items():
        assert value.tobytes() == models(cut)[client].tobytes(), client
    with np.load(whole / "W.npz") as one, np.load(cut / "W.npz") as other:
        assert one.files == other.files
        for array in one.files:
            # That version rounded W to float32; the run is in float64.
            rounded = other[array].astype(one[array].dtype)
            assert one[array].tobytes() == rounded.tobytes(), array
    losses = [[row["loss"] for row in rows(folder, "round")] for folder in (whole, cut)]
    assert losses[0] == losses[1]
    assert [row["format"] for row in rows(cut, "start")] == [2], "rows after it are of format 2"
    assert rows(cut, "traffic")
    summary = json.loads((cut / "summary.json").read_text())
    assert summary["bytes_per_client"] is None, "the first rounds were not counted"
    assert json.loads((cut / "env.json").read_text())["resumed"][0]["round"] == 8
    (folder,) = (
        one for one in checkpoint.checkpoints(cut / "checkpoints") if one.name[-2:] == "16"
    )
    assert checkpoint.read_manifest(folder).format == 2
