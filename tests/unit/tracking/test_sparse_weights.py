"""W of many clients: stored as lists in W.npz and checkpoints, read, and drawn by cells of clients."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from page_data import levels_of, weights_on
from pool import RankPool
from problems import models, rows, train, write_quadratic
from report_runs import assert_drawn, write_run
from safetensors.numpy import load, save

from cobo_dist.cli.report import main
from cobo_dist.comm.session import Session
from cobo_dist.maths.true_graph import Truth
from cobo_dist.maths.weights import Weights
from cobo_dist.reports.page.weights_data import unpack
from cobo_dist.reports.reading.series import link_strengths
from cobo_dist.reports.reading.sparse_weights import CELLS, read_listed
from cobo_dist.results.logs import read_weights, weight_rounds
from cobo_dist.storage.array_schema import check_logger_arrays
from cobo_dist.storage.checkpoint_format import Damaged
from cobo_dist.storage.reading import SchemaError
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tracking import weight_snapshots as snapshots
from cobo_dist.tracking.weight_snapshots import WeightSnapshots, row_tensors, take_row

N = 600
CLUSTERS = np.arange(N) % 30


def learned(moves: int, seed: int = 0) -> Weights:
    """W of N clients after some pairs have moved from 1."""
    rng = np.random.default_rng(seed)
    weights = Weights(range(N), (0,) * N)
    keys = np.unique(rng.integers(0, N * N, moves))
    i, j = np.divmod(keys, N)
    i, j = i[i < j], j[i < j]
    w = rng.choice([0.0, 0.3, 0.9], len(i)).astype(np.float32)
    weights.put(np.append(i, j), np.append(j, i), np.append(w, w))
    return weights


def kept(folder: Path, moves: tuple[int, ...]) -> tuple[WeightSnapshots, list[np.ndarray]]:
    """Log some W in rounds 0, 10, ...; return them as matrices."""
    folder.mkdir(exist_ok=True)
    log = WeightSnapshots(RunDir(folder), Truth.constant(CLUSTERS.tolist()), ())
    for number, count in enumerate(moves):
        log.add(10 * number, learned(count))
    return log, [learned(count).dense() for count in moves]


def test_a_report_reads_the_means_of_cells(tmp_path: Path) -> None:
    _, dense = kept(tmp_path, (0, 5_000, 2 * N * N))
    with np.load(tmp_path / "W.npz", allow_pickle=False) as stored:
        rounds, means, cells = read_listed(stored)
    assert rounds.tolist() == [0, 10, 20]
    assert means.shape == (3, CELLS, CELLS)
    assert cells.clients == N
    order = np.argsort(CLUSTERS, kind="stable")
    assert (np.diff(cells.of[order]) >= 0).all(), "clients of a cluster side by side"
    member = (cells.of[None, :] == np.arange(CELLS)[:, None]).astype(float)  # [b, n]
    off = 1.0 - np.eye(N)
    places = member @ off @ member.T
    for mean, matrix in zip(means, dense, strict=True):
        np.testing.assert_allclose(mean, member @ (matrix * off) @ member.T / places, atol=1e-6)
    same = (CLUSTERS[:, None] == CLUSTERS[None, :]).astype(float)
    np.testing.assert_allclose(cells.oracle, member @ (same * off) @ member.T / places, atol=1e-6)
    expected = link_strengths(rounds, np.stack(dense), CLUSTERS)
    assert cells.links.keys() == expected.keys()
    for name, line in expected.items():
        assert cells.links[name] == pytest.approx(line, abs=1e-6)


def test_what_does_not_go_together_is_named(tmp_path: Path) -> None:
    kept(tmp_path, (10,))
    with np.load(tmp_path / "W.npz") as stored:
        arrays = dict(stored)
    for name, other, why in (
        ("0.columns", arrays["0.columns"] + N, "columns"),
        ("0.values", arrays["0.values"][1:], "values"),
        ("0.level", None, "no array `0.level`"),
    ):
        broken = {k: v for k, v in (arrays | {name: other}).items() if v is not None}
        with pytest.raises(SchemaError, match=why):
            read_listed(broken)


def test_a_checkpoint_holds_snapshots_and_w_as_they_were(tmp_path: Path) -> None:
    log, _ = kept(tmp_path / "one", (0, 900))
    before = (tmp_path / "one" / "W.npz").read_bytes()
    arrays = load(save(log.state(learned(2_000))))
    check_logger_arrays(arrays, N)
    log.add(20, learned(1_000))
    other = WeightSnapshots(RunDir(tmp_path / "two"), Truth.constant(None), ())
    (tmp_path / "two").mkdir()
    weights = other.restore(arrays)
    np.testing.assert_array_equal(weights.dense(), learned(2_000).dense())
    assert (tmp_path / "two" / "W.npz").read_bytes() == before
    for broken, n in (
        (arrays, N - 1),
        (arrays | {"graph.columns": arrays["graph.columns"] + N}, N),
        ({k: v for k, v in arrays.items() if k != "graph.apart"}, N),
    ):
        with pytest.raises(SchemaError):
            check_logger_arrays(broken, n)
    written_out = {
        "rounds": np.array([0]), "weights": learned(5).dense()[None], "graph": learned(7).dense(),
    }  # fmt: skip
    check_logger_arrays(written_out, N)  # as earlier versions stored it
    np.testing.assert_array_equal(other.restore(written_out).dense(), written_out["graph"])


@pytest.mark.parametrize("n", [6, 600])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_snapshots_have_the_type_of_the_run(tmp_path: Path, n: int, dtype: str) -> None:
    """As matrices and as lists; snapshots that an earlier version stored in float32 are kept beside them."""
    weights = Weights(range(n), range(n), dtype=np.float64, symmetric=True)
    weights.put(np.array([0, 1]), np.array([1, 0]), np.array([1 / 3, 1 / 3]))
    log = WeightSnapshots(RunDir(tmp_path), Truth.constant(None), (), dtype=dtype)
    if n == 6:
        old = np.eye(n, dtype=np.float32)
        log.restore({"rounds": np.array([0]), "weights": old[None], "graph": weights.dense()})
    else:
        log.add(0, Weights(range(n), range(n)))
    log.add(1, weights)
    assert weight_rounds(tmp_path) == [0, 1]
    assert np.array_equal(read_weights(tmp_path, 0), np.eye(n))
    found = read_weights(tmp_path, 1)
    assert found.dtype == dtype
    assert np.array_equal(found, weights.dense().astype(dtype))


def test_a_row_is_kept_exactly_and_small() -> None:
    path = Path("client")
    cases = {
        "moved": learned(3_000),
        "apart": learned(2 * N * N),
        "alone": Weights(range(N), range(N)),
        "groups": Weights(range(N), CLUSTERS),
    }
    for name, weights in cases.items():
        held = row_tensors(weights, 7)
        size = sum(one.nbytes for one in held.values())
        assert size < 4 * N or name == "apart", name
        np.testing.assert_array_equal(take_row(held, weights, path), weights.dense()[7])
        assert not held, "what is left belongs to others"
        plain = {"weights": torch.from_numpy(weights.dense()[7])}
        np.testing.assert_array_equal(take_row(plain, weights, path), weights.dense()[7])
    good = row_tensors(cases["moved"], 7)
    for broken in (
        good | {"weights.columns": good["weights.columns"] + N},
        good | {"weights.values": good["weights.values"].double()},
        {"weights.rest": good["weights.rest"]},
        {"weights": torch.zeros(N + 1)},
        {},
    ):
        with pytest.raises(Damaged, match="client"):
            take_row(dict(broken), cases["moved"], path)


def as_if_large(session: Session, arguments: list[str]) -> int:
    """Train as with too many clients for a W that is stored as a matrix."""
    with mock.patch.object(snapshots, "MAX_DENSE_CLIENTS", 3):
        return train(session, arguments)


@pytest.mark.slow
def test_a_large_run_goes_on_on_other_ranks(pool: RankPool, tmp_path: Path) -> None:
    """Stopped after half of its rounds on two ranks and resumed on three, it gives the same bits."""
    problem = write_quadratic(tmp_path / "problem.npz")
    common = [
        "task.name=quadratic", f"task.file={problem}", "run.log_weights_every=5", "run.eval_every=5",
        "algorithm.gamma=0.5", "algorithm.sampling.rate=2", "comm.deterministic=true", "data.batch_size=8",
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert pool.run(2, as_if_large, [*common, "run.rounds=20", f"run.dir={whole}"]) == [0, 0]
    first = [*common, "run.rounds=10", f"run.dir={cut}"]
    assert pool.run(2, as_if_large, first) == [0, 0]
    again = [*common, "run.rounds=20", f"run.dir={cut}", "run.resume=auto"]
    assert pool.run(3, as_if_large, again) == [0, 0, 0]
    for name, value in models(whole).items():
        assert np.array_equal(value, models(cut)[name]), name
    with np.load(whole / "W.npz") as one, np.load(cut / "W.npz") as other:
        assert one.files == other.files
        assert "20.values" in one.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name], name)
    columns = ("weights_at_0", "weights_at_1", "components", "loss")
    told = [[[row[k] for k in columns] for row in rows(folder, "round")] for folder in (whole, cut)]
    assert told[0] == told[1]
    assert len({row[0] for row in told[0]}) > 1, "a problem in which W moves"


def test_the_page_says_what_a_pixel_is(tmp_path: Path) -> None:
    """The slider shows cells of clients, and the true clusters likewise."""
    run = write_run(tmp_path / "run")
    for name in ("summary.json", "W.npz"):  # which tell of 8 clients
        (run / name).unlink()
    (run / "metrics.jsonl").write_text("")
    _, dense = kept(run, (0, 5_000))
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert_drawn(tmp_path / "out" / "weights.png")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    (entry,) = weights_on(page)
    assert (entry["n"], entry["rounds"]) == (CELLS, [0, 10])
    assert entry["cells"]["per"] == "A pixel is the mean weight of up to 3 x 3 clients."
    within = [matrix[same_but_own()].mean() for matrix in dense]
    assert [one for one, _ in entry["cells"]["means"]] == pytest.approx(within, abs=1e-6)
    ((first, truth),) = entry["truths"]
    assert (first, len(unpack(truth, CELLS))) == (0, 1)
    assert len(levels_of(entry)) == 2


def same_but_own() -> np.ndarray:
    return (CLUSTERS[:, None] == CLUSTERS[None, :]) & ~np.eye(N, dtype=bool)
