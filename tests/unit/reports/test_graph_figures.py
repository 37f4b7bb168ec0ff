"""Figures of the graph: what is drawn where, of which clients, and sentences on what is not drawn."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from graphs import block_weights, graph
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report_runs import CLUSTERS, N, Report, write_run
from safetensors.numpy import save_file

from cobo_dist.cli.report import main
from cobo_dist.errors import ConfigError
from cobo_dist.reports.figures import plots
from cobo_dist.reports.figures.client_map import map_of_models, map_of_weights
from cobo_dist.reports.figures.clients import apart, looks_of
from cobo_dist.reports.figures.network import place_clients, plot_network
from cobo_dist.reports.figures.seriated import plot_seriated
from cobo_dist.reports.reading import models, read_run
from cobo_dist.reports.reading.graph import graph_of
from cobo_dist.results.run import Run


def axes() -> tuple[Figure, object]:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_models(folder: Path, clusters: np.ndarray, shape: tuple[int, ...] = (6, 5)) -> None:
    """Models around one center for each cluster; the head of client 0 has a shape of its own."""
    rng = np.random.default_rng(0)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for client, cluster in enumerate(clusters.tolist()):
        center = np.full(shape, 3.0 * cluster, dtype=np.float32)
        tensors = {
            "weight": center + rng.normal(scale=0.1, size=shape).astype(np.float32),
            "scale": np.array(cluster, dtype=np.float32),
            "head": np.zeros(2 + (client == 0), dtype=np.float32),
            "steps": np.array([client], dtype=np.int64),
        }
        save_file(tensors, folder / "models" / f"client_{client:05d}.safetensors")


# -- the network ------------------------------------------------------------------------------------


def test_groups_are_disks_of_their_own_and_lines_are_the_weights() -> None:
    found = graph(block_weights(CLUSTERS, across=0.2), clusters=CLUSTERS)
    xy, centers, radii = place_clients(found)
    nearest = np.hypot(*(xy[:, None] - centers[None, :]).transpose(2, 0, 1)).argmin(axis=1)
    assert len(set(zip(nearest.tolist(), CLUSTERS.tolist(), strict=True))) == 4
    gaps = np.hypot(*(centers[:, None] - centers[None, :]).transpose(2, 0, 1))
    gaps -= radii[:, None] + radii
    assert gaps[~np.eye(4, dtype=bool)].min() > 0, "disks do not touch"
    lines = plot_network(axes()[1], found)
    links = lines[lines["link"] == "true"]
    assert links[["i", "j"]].to_numpy().tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert len(lines) == N * (N - 1) // 2


def test_the_network_is_the_same_each_time_and_leaves_out_absent_clients() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.random((30, 30)).astype(np.float32)
    absent = np.zeros((1, 30), dtype=bool)
    absent[0, 4] = True
    places = [place_clients(graph(matrix, absent=absent))[0] for _ in range(2)]
    np.testing.assert_array_equal(*places)
    assert len(places[0]) == 29
    lines = plot_network(axes()[1], graph(matrix, absent=absent))
    assert 4 not in set(lines["i"]) | set(lines["j"])


def test_of_many_clients_a_disk_is_a_group() -> None:
    clusters = np.arange(240) % 3
    _, ax = axes()
    lines = plot_network(ax, graph(block_weights(clusters, across=0.2), clusters=clusters))
    assert lines[["i", "j"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert lines["weight"].tolist() == pytest.approx([0.2] * 3)
    assert sorted(text.get_text() for text in ax.texts)[:3] == ["80"] * 3


def test_of_very_many_groups_the_largest_are_drawn_and_it_says_so() -> None:
    clusters = np.concatenate([np.zeros(20), np.arange(1, 281)]).astype(int)
    _, ax = axes()
    plot_network(ax, graph(block_weights(clusters, across=0.1)))
    assert len(ax.patches) == 100
    assert any("181 smaller ones are left out" in text.get_text() for text in ax.texts)


def test_looks_are_by_true_cluster_or_by_group_found() -> None:
    matrix = block_weights([0, 0, 1, 2])
    of, looks = looks_of(graph(matrix, clusters=[5, 5, 9, 9]))
    assert of.tolist() == [0, 0, 1, 1]
    assert [look.title for look in looks] == ["cluster 5", "cluster 9"]
    of, looks = looks_of(graph(matrix))
    assert of.tolist() == [0, 0, 1, 1]
    assert [look.title for look in looks] == ["group 0", "alone"]
    many = looks_of(graph(np.eye(42), clusters=np.arange(42)))[1]
    assert len({(look.color, look.shape) for look in many}) == 42


# -- W in order -------------------------------------------------------------------------------------


def test_w_in_order_has_its_blocks_framed() -> None:
    figure, ax = axes()
    frame = plot_seriated(ax, graph(block_weights(CLUSTERS, across=0.2), clusters=CLUSTERS))
    assert len(ax.patches) == 4
    first = frame["i"].to_numpy().reshape(N, N)[:, 0]
    assert (np.diff(CLUSTERS[first]) != 0).sum() == 3
    pairs = frame[["i", "j"]].to_numpy()
    np.testing.assert_allclose(
        frame["weight"], block_weights(CLUSTERS, across=0.2)[pairs[:, 0], pairs[:, 1]]
    )
    figure.draw_without_rendering()


@pytest.mark.parametrize("matrix", [np.ones((5, 5)), np.ones((2, 2)), np.full((5, 5), 0.3)])
def test_figures_of_equal_weights_can_be_drawn(matrix: np.ndarray) -> None:
    found = graph(matrix.astype(np.float32))
    plots.plot_weights(found).draw_without_rendering()
    plots.plot_graph(found).draw_without_rendering()


def test_names_are_shown_as_they_are() -> None:
    names = ("$x_1$", "<b>", "a_b", "\\alpha")
    found = graph(block_weights([0, 0, 1, 1]), names=names)
    figure = plots.plot_graph(found)
    figure.draw_without_rendering()
    assert {text.get_text() for text in figure.axes[0].texts} >= set(names)
    plots.plot_weights(found).draw_without_rendering()


# -- maps -------------------------------------------------------------------------------------------


def test_models_of_two_clusters_are_separated(tmp_path: Path) -> None:
    clusters = np.array([0, 0, 0, 1, 1, 1])
    save_models(tmp_path, clusters)
    panel = map_of_models(tmp_path, graph(block_weights(clusters), clusters=clusters))
    x = panel.xy_m2[:, 0]
    assert np.sign(x).tolist() in ([-1, -1, -1, 1, 1, 1], [1, 1, 1, -1, -1, -1])
    assert float(re.findall(r"\d+", panel.axes[0])[1]) > 90


def test_models_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_models(tmp_path, np.arange(5) % 2, shape=(7, 3))
    ids, whole = models.read_gram(tmp_path, range(5))
    monkeypatch.setattr(models, "_IN_MEMORY", 20)
    assert ids == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(models.read_gram(tmp_path, range(5))[1], whole)
    assert whole[0, 0] > 1.0


def test_clients_without_a_model_are_not_on_the_map(tmp_path: Path) -> None:
    save_models(tmp_path, np.arange(4) % 2)
    (tmp_path / "models" / "client_00001.safetensors").unlink()
    panel = map_of_models(tmp_path, graph(block_weights([0, 1, 0, 1])))
    assert panel.graph.members.tolist() == [0, 2, 3]


def test_what_cannot_be_mapped_is_said(tmp_path: Path) -> None:
    found = graph(block_weights([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match="has models of 0 of 4 clients, and a map needs two"):
        map_of_models(tmp_path, found)
    save_models(tmp_path, np.arange(4))
    with pytest.raises(ConfigError, match=r"have 496 B, and a report reads at most 100 B"):
        map_of_models(tmp_path, found, most=100)
    (tmp_path / "models" / "client_00003.safetensors").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"client_00003.safetensors cannot be read"):
        map_of_models(tmp_path, found)
    with pytest.raises(ConfigError, match="a map of W has nothing to show: all weights 1"):
        map_of_weights(graph(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(ConfigError, match="fewer than three clients"):
        map_of_weights(graph(block_weights([0, 1])))


def test_points_are_moved_apart() -> None:
    rng = np.random.default_rng(0)
    places = np.concatenate([np.zeros((6, 2)), rng.random((6, 2)) * 20 + 5])
    moved = apart(places, 1.0)
    gaps = np.hypot(*(moved[:, None] - moved[None, :]).transpose(2, 0, 1))
    assert gaps[~np.eye(12, dtype=bool)].min() > 0.9
    assert np.hypot(*(moved[6:] - places[6:]).T).max() < 1.0, "others stay about where they are"


# -- the report -------------------------------------------------------------------------------------


def report(folder: Path, *runs: Path) -> Report:
    assert main([*map(str, runs), "--out", str(folder / "out")]) == 0
    return Report(folder, folder / "out", (folder / "out/index.html").read_text(encoding="utf-8"))


def test_a_report_of_one_run_has_a_section_on_the_graph(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    save_models(run, CLUSTERS)
    found = report(tmp_path, run)
    for name in ("network", "tree", "map", "stability"):
        assert (tmp_path / "out" / f"{name}.png").exists()
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "The graph, digits" in page
    assert "4 groups: {0,4} {1,5} {2,6} {3,7}" in page
    (row,) = found.rows("groups.csv")
    assert (row["groups"], row["alone"], row["adjusted_rand"]) == ("4", "0", "1.0")
    assert {row["of"] for row in found.rows("map.csv")} == {"models", "weights"}


def test_a_run_that_links_nobody_has_a_sentence_in_place_of_figures(tmp_path: Path) -> None:
    report(tmp_path, write_run(tmp_path / "run", "local"))
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "No figures of the graph, no weight between two clients is above 0" in page
    assert "no groups: each of the 8 clients is alone" in page
    assert not (tmp_path / "out/network.png").exists()


def test_methods_that_do_not_learn_w_have_no_graph_beside_others(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name) for name in ("local", "fedavg", "cobo")]
    found = report(tmp_path, *runs)
    assert [row["method"] for row in found.rows("groups.csv")] == ["cobo"]
    assert (tmp_path / "out/network_cobo.png").exists()
    assert not list((tmp_path / "out").glob("network_local*"))


def test_graphs_of_three_methods_are_drawn_and_the_others_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{rho}", rho=rho) for rho in (0.1, 0.2, 0.3)]
    runs += [write_run(tmp_path / "other", "ifca", finals=[0.5] * N)]
    report(tmp_path, *runs)
    assert len(list((tmp_path / "out").glob("network_*.png"))) == 3
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "Graphs are drawn of 3 methods; report these alone for theirs: IFCA." in page


# -- from Python ------------------------------------------------------------------------------------


def test_a_run_draws_into_given_axes_or_a_figure_of_its_own(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "run"))
    save_models(run.path, CLUSTERS)
    draws = [run.plot_weights, run.plot_graph, run.plot_map, run.plot_stability, run.plot_curves]
    figure = Figure()
    FigureCanvasAgg(figure)
    for draw, ax in zip(draws, figure.subplots(1, len(draws)), strict=True):
        assert draw(ax=ax) is figure
        assert ax.has_data() or ax.texts
    figure.draw_without_rendering()
    own = run.plot_map()
    assert len(own.axes) == 2, "models and W"
    assert own._repr_png_().startswith(b"\x89PNG")  # what a notebook shows


def test_groups_of_a_run_follow_the_threshold_and_the_round(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "run"))
    assert run.groups().labels.tolist() == CLUSTERS.tolist()
    assert run.clusters().tolist() == CLUSTERS.tolist()
    assert len(run.groups(r=0)) == 1
    assert (len(run.groups(0.2, r=7)), len(run.groups(0.4, r=7))) == (1, 4), "0.3 across, by then"
    with pytest.raises(ConfigError, match=r"W was not logged after round 3; .* has rounds 0, 1, 2"):
        run.groups(r=3)
    with pytest.raises(ConfigError, match="of='model' is no map; take one of models, weights"):
        run.plot_map(of="model")
    with pytest.raises(ConfigError, match=r"has no test/perplexity; it has test/accuracy"):
        run.plot_curves("perplexity")


def test_absent_clients_are_in_no_group(tmp_path: Path) -> None:
    from test_reports_events import write_with_events

    folder = write_with_events(tmp_path / "run")
    weights = read_run(folder).weights
    assert weights is not None
    assert graph_of(weights, 0).members.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert Run(folder).groups().labels.tolist() == [-1, 0, 1, 2, 3, 0, 1, 2]
