"""Weights that sum to 1 in reports: Figure 4, color scales that fit them, and names of clients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from page_data import levels_of, weights_on
from report_runs import N, Report, assert_drawn, give_shares, write_run

from cobo_dist.cli.report import main
from cobo_dist.errors import ConfigError
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.statistics import moving_average

NAMES = ("ca", "es", "de", "nl")
DARK = np.array([8, 48, 107]) / 255  # the end of the color scale


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """CoBo on the simplex with two seeds, and validation based weights, whose W^0 is the identity."""
    root = tmp_path_factory.mktemp("shares")
    found = {}
    for name, seed, every in (("cobo1", 1, 1), ("cobo2", 2, 20)):
        found[name] = write_run(root / name, "cobo", seed, "language", domain="simplex")
        give_shares(found[name], NAMES, rounds=100, every=every)
    found["valid"] = write_run(root / "valid", "validation_based", 1, "language", finals=[0.5] * N)
    own = 0.25 * np.eye(4) + 0.75 * give_shares(found["valid"], NAMES, rounds=100, every=10)
    own[0] = np.eye(4)
    weights = own.astype(np.float32)
    np.savez(found["valid"] / "W.npz", rounds=np.arange(0, 101, 10), weights=weights, names=NAMES)
    return found


def report_on(out: Path, *folders: Path) -> Report:
    assert main([*map(str, folders), "--out", str(out)]) == 0
    return Report(folders[0].parent, out, "")


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_on(tmp_path_factory.mktemp("alone"), folders["cobo1"])


def series(report: Report, name: str, client: str, partner: str) -> np.ndarray:
    """One line of the figure: round, weight, smoothed, seeds; [k, 4]."""
    return np.array(
        [
            [float(row[key]) for key in ("round", "weight", "smoothed", "seeds")]
            for row in report.rows(name)
            if (row["client"], row["partner"]) == (client, partner)
        ]
    )


def test_moving_average_by_hand() -> None:
    """Memory 1 / ln 2: after one round half of the old value is left, after two a quarter."""
    rounds, values = np.array([0, 1, 3]), np.array([[1.0, 0.0], [0.0, 0.0], [1.0, np.nan]])
    found = moving_average(rounds, values, 1.0 / np.log(2.0))
    np.testing.assert_allclose(found[:, 0], [1.0, 0.5, 0.875])
    np.testing.assert_array_equal(found[:, 1], [0.0, 0.0, np.nan])
    assert values[1, 0] == 0.0, "its input is left as it was"


def test_csv_equals_the_weights(folders: dict[str, Path], alone: Report) -> None:
    """Every ordered pair of clients under their names, as logged and smoothed over T / 25 rounds."""
    assert_drawn(alone.out / "shares.png")
    with np.load(folders["cobo1"] / "W.npz") as stored:
        rounds, weights = stored["rounds"], stored["weights"].astype(np.float64)
    assert len(alone.rows("shares.csv")) == 12 * 101
    for i, client in enumerate(NAMES):
        for j, partner in enumerate(NAMES):
            found = series(alone, "shares.csv", client, partner)
            if i == j:
                assert not len(found)
                continue
            np.testing.assert_array_equal(found[:, 0], rounds)
            np.testing.assert_array_equal(found[:, 1], weights[:, i, j])
            smooth = moving_average(rounds, weights[:, i, j], 4.0)
            np.testing.assert_allclose(found[:, 2], smooth)
            assert smooth.std() > 0


def test_the_page_shows_it_with_a_caption(alone: Report) -> None:
    page = (alone.out / "index.html").read_text(encoding="utf-8")
    assert "(Figure 4)" in page
    assert re.search(
        r"<img alt='[^']*Figure 4[^']*' src='data:image/png", page.replace("&#39;", "")
    )


def test_no_panel_of_the_mean_of_all_weights(tmp_path: Path) -> None:
    """Where weights sum to 1 it is an equal share, whatever they do."""
    folder = write_run(tmp_path / "run", domain="simplex")
    with np.load(folder / "W.npz") as stored:
        rounds, weights = stored["rounds"], stored["weights"]
    np.savez(folder / "W.npz", rounds=rounds, weights=weights / 7)
    report = report_on(tmp_path / "out", folder)
    drawn = {row["quantity"] for row in report.rows("graph.csv")}
    assert drawn == {"weights_at_0", "weights_at_1", "components", "alignment"}


def test_colors_reach_up_to_the_largest_weight(folders: dict[str, Path], alone: Report) -> None:
    """A run's largest weight is dark in its heat map, and 254 in the slider."""
    run = read_run(folders["cobo1"]).weights
    assert run is not None
    assert run.share == pytest.approx(1 / 3)
    assert run.top == pytest.approx(float(run.weights.max()))
    pixels = matplotlib.image.imread(alone.out / "weights.png")[..., :3]
    # At least the color bar ends in it.
    assert (np.abs(pixels - DARK) < 0.01).all(axis=-1).any()
    (entry,) = entries(alone)
    levels = levels_of(entry)
    assert levels.max() == 254
    scaled = levels / 254 * entry["top"]
    ordered = run.weights[:, run.order][:, :, run.order]
    np.testing.assert_allclose(scaled, ordered, atol=0.5 / 254)
    assert entry["end"] == f"{run.top:.2g}, the largest weight of the run"


def entries(report: Report) -> list[dict[str, Any]]:
    """The data of the slider on the page."""
    return weights_on((report.out / "index.html").read_text(encoding="utf-8"))


def test_several_methods_and_seeds(folders: dict[str, Path], tmp_path: Path) -> None:
    """A figure for each method: the mean of its seeds at the rounds that all of them logged."""
    report = report_on(tmp_path / "out", *folders.values())
    cobo = next(report.out.rglob("shares*cobo.csv"))
    name = str(cobo.relative_to(report.out))
    found = series(report, name, "ca", "es")
    assert found[:, 0].tolist() == [0, 20, 40, 60, 80, 100]
    assert set(found[:, 3]) == {2.0}
    both = []
    for folder in (folders["cobo1"], folders["cobo2"]):
        with np.load(folder / "W.npz") as stored:
            both.append(stored["weights"][np.isin(stored["rounds"], found[:, 0]), 0, 1])
    np.testing.assert_allclose(found[:, 1], np.mean(both, axis=0, dtype=np.float64))
    assert_drawn(cobo.with_suffix(".png"))


def test_validation_based_weights_begin_with_the_first_average(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The identity, from before it, is left out; a row's equal share counts its own model."""
    report = report_on(tmp_path / "out", folders["valid"])
    found = series(report, "shares.csv", "de", "nl")
    assert found[0, 0] == 10
    weights = read_run(folders["valid"]).weights
    assert weights is not None
    assert weights.share == 0.25
    assert weights.top < 0.75, "its own weight of 1 is in no heat map"


@pytest.mark.parametrize(("count", "drawn"), [(12, True), (13, False)])
def test_many_clients_are_left_out_with_a_reason(tmp_path: Path, count: int, drawn: bool) -> None:
    folder = write_run(tmp_path / "run", domain="simplex")
    give_shares(folder, tuple(f"client number {i}" for i in range(count)), rounds=30)
    out = report_on(tmp_path / "out", folder).out
    assert (out / "shares.png").exists() == drawn
    page = (out / "index.html").read_text(encoding="utf-8")
    assert (f"drawn for up to 12 clients, and CoBo has {count}" in page) != drawn


def test_weights_in_the_box_have_no_such_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", domain="box")
    weights = read_run(folder).weights
    assert weights is not None
    assert (weights.share, weights.top, weights.labels) == (0.0, 1.0, list("01234567"))
    report = report_on(tmp_path / "out", folder)
    assert not list(report.out.rglob("shares*"))
    (entry,) = entries(report)
    assert (entry["top"], entry["end"]) == (1.0, "1")


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"domain": "simplex"}, 1 / 7),
        ({"domain": "simplex", "own_weight": "excluded"}, 1 / 7),
        ({"domain": "simplex", "own_weight": "included"}, 1 / 8),
        ({"domain": "box", "own_weight": "excluded"}, 0.0),
    ],
)
def test_an_equal_share(tmp_path: Path, settings: dict[str, str], share: float) -> None:
    weights = read_run(write_run(tmp_path / "run", **settings)).weights
    assert weights is not None
    assert weights.share == pytest.approx(share)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a", "b"], r"has shape \(2,\), not \[n\] with n = 8 clients"),
        ([[1, 2]], "has type int64, not str"),
        (list(range(N)), "has type int64, not str"),
        ([["a"] * N], r"has shape \(1, 8\), not \[n\] with n = 8 clients"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, names: list[Any], why: str) -> None:
    folder = write_run(tmp_path / "run")
    with np.load(folder / "W.npz") as stored:
        arrays = dict(stored)
    np.savez(folder / "W.npz", **arrays, names=np.array(names))
    with pytest.raises(ConfigError, match=rf"W\.npz: `names` {why}"):
        read_run(folder)
