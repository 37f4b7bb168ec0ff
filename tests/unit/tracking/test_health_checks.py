"""Statistics of W from round to round, and a warning for each way in which a run fails."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import QUIET, rows

from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.maths.graph import cluster_match, components, link_threshold, means_by_truth
from cobo_dist.maths.weights import Weights
from cobo_dist.storage.schema import WarningRow
from cobo_dist.tracking.graph_stats import GraphStats
from cobo_dist.tracking.health_checks import HealthMonitor

COBO: Any = load_config(None, []).algorithm
LOCAL: Any = load_config(None, ["algorithm.name=local"]).algorithm

# -- GraphStats ---------------------------------------------------------------------------------------

weight = st.sampled_from([0.0, 1.0, 0.5, np.nextafter(0.5, 0)]) | st.floats(0, 1, width=32)


@st.composite
def histories(draw: st.DrawFn) -> tuple[np.ndarray, list[list[tuple[int, int, float]]]]:
    """Draw a symmetric W^0 and some rounds of moves, each pair at most once a round."""
    n = draw(st.integers(2, 6))
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    start = np.ones((n, n))
    for i, j in pairs:
        start[i, j] = start[j, i] = draw(weight)
    rounds = []
    for _ in range(draw(st.integers(1, 5))):
        chosen = draw(st.lists(st.sampled_from(pairs), unique=True))
        rounds.append([(i, j, draw(weight)) for i, j in chosen])
    return start, rounds


def held(weights_nn: np.ndarray, share: float = 0.0) -> Weights:
    """Return W as the coordinator holds it, from a start at 1 for all."""
    n, dtype = len(weights_nn), weights_nn.dtype.type
    weights = Weights(range(n), (0,) * n, 1.0, dtype, symmetric=not share)
    weights.put_rows(np.arange(len(weights_nn)), weights_nn)
    return weights


def count_components(weights_nn: np.ndarray) -> int:
    """Count connected components of the graph of weights >= 1/2 by spreading from each client."""
    unseen, count = set(range(len(weights_nn))), 0
    while unseen:
        count += 1
        front = [unseen.pop()]
        while front:
            here = front.pop()
            near = {k for k in unseen if weights_nn[here, k] >= 0.5}
            unseen -= near
            front += near
    return count


@settings(max_examples=150, deadline=None, derandomize=True)
@given(history=histories())
def test_figures_kept_up_to_date_equal_those_computed_anew(
    history: tuple[np.ndarray, list[list[tuple[int, int, float]]]],
) -> None:
    weights, rounds = history
    graph = GraphStats(held(weights))
    untouched = weights.copy()
    upper = np.triu_indices(len(weights), k=1)
    now = weights.copy()
    for moves in rounds:
        graph.move(
            np.array([i for i, _, _ in moves], dtype=np.int64),
            np.array([j for _, j, _ in moves], dtype=np.int64),
            np.array([w for _, _, w in moves]),
        )
        for i, j, w in moves:
            now[i, j] = now[j, i] = w
        assert graph.figures() == {
            "weights_at_0": (now[upper] == 0).mean(),
            "weights_at_1": (now[upper] == 1).mean(),
            "components": count_components(now),
        }
        assert graph.links == (now[upper] >= 0.5).sum()
        np.testing.assert_array_equal(graph.weights.dense(), now)
    np.testing.assert_array_equal(weights, untouched, "the given W is the caller's")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(history=histories(), seed=st.integers(0, 99))
def test_sums_over_groups_and_entries_equal_those_over_the_matrix(
    history: tuple[np.ndarray, list[list[tuple[int, int, float]]]], seed: int
) -> None:
    """Agreement with clusters, means and components, from groups of any kind."""
    dense, _ = history
    n, rng = len(dense), np.random.default_rng(seed)
    groups, truth = rng.integers(0, 3, n), rng.integers(0, 2, n)
    weights = Weights(range(n), groups, rng.choice([0.0, 0.5, 1.0]), dense.dtype.type)
    weights.put_rows(np.arange(n), dense)
    off = ~np.eye(n, dtype=bool)
    same = truth[:, None] == truth[None, :]
    agrees = (dense >= 0.5) == same
    assert cluster_match(weights, truth) == pytest.approx(agrees[off].mean())
    means = [
        dense[off & which].mean() if (off & which).any() else np.nan for which in (same, ~same)
    ]
    assert means_by_truth(weights, truth) == pytest.approx(means, nan_ok=True)
    assert components(weights) == count_components(dense)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(2, 24), cuts=st.floats(0, 1), seed=st.integers(0, 10_000))
def test_components_of_groups_with_cuts(n: int, cuts: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 2, n)
    dense = (groups[:, None] == groups[None, :]).astype(np.float32)
    weights = Weights(range(n), groups)
    i, j = np.nonzero(np.triu(rng.random((n, n)) < cuts, k=1))
    dense[i, j] = dense[j, i] = 0
    weights.put(np.append(i, j), np.append(j, i), np.zeros(2 * len(i)))
    assert components(weights) == count_components(dense)


@pytest.mark.parametrize(
    ("weights", "figures"),
    [
        (np.ones((4, 4)), (0.0, 1.0, 1)),
        (np.zeros((4, 4)), (1.0, 0.0, 4)),
        (np.eye(4), (1.0, 0.0, 4)),
        (np.full((3, 3), 0.5), (0.0, 0.0, 1)),
        (np.full((3, 3), 0.49), (0.0, 0.0, 3)),
        (np.kron(np.eye(2), np.ones((2, 2))), (4 / 6, 2 / 6, 2)),
        (np.ones((1, 1)), (0.0, 0.0, 1)),
    ],
    ids=["ones", "zeros", "identity", "half", "below_half", "blocks", "one_client"],
)
def test_figures_of_known_graphs(weights: np.ndarray, figures: tuple[float, float, int]) -> None:
    assert tuple(GraphStats(held(weights)).figures().values()) == figures


@settings(max_examples=100, deadline=None, derandomize=True)
@given(n=st.integers(2, 6), rounds=st.integers(1, 4), seed=st.integers(0, 1000))
def test_figures_of_a_simplex_equal_those_computed_anew(n: int, rounds: int, seed: int) -> None:
    """Rows move whole and by themselves; a link is more than an equal share, from either end."""
    rng, share = np.random.default_rng(seed), 1 / (n - 1)
    now = (np.ones((n, n)) - np.eye(n)) * share
    graph = GraphStats(held(now, share), share)
    off = ~np.eye(n, dtype=bool)
    assert (graph.links, graph.components, graph.is_uniform()) == (0, n, True)
    for _ in range(rounds):
        row = int(rng.integers(n))
        others = np.delete(np.arange(n), row)
        weights = rng.dirichlet(np.full(n - 1, 0.3)) if rng.random() < 0.7 else np.eye(n - 1)[0]
        now[row, others] = weights
        graph.move(np.full(n - 1, row), others, weights)
        assert graph.figures() == {
            "weights_at_0": (now[off] == 0).mean(),
            "weights_at_1": (now[off] >= 1 - 1e-6).mean(),
            "components": count_components(np.maximum(now, now.T) / (1.001 * share) / 2),
        }
        assert graph.links == (now[off] >= 1.001 * share).sum()
        assert graph.is_uniform() == bool((np.abs(now[off] - share) < 1e-3 * share).all())
        np.testing.assert_array_equal(graph.weights.dense(), now)


def test_agreement_with_clusters_on_a_simplex() -> None:
    """Clients 0, 1 of one cluster and 2, 3 of the other; client 3 prefers client 0: 2 of 12 are wrong."""
    share = 1 / 3
    w_nn = np.array([[0, 0.5, 0.3, 0.2], [1, 0, 0, 0], [0, 0, 0, 1], [0.6, 0.1, 0.3, 0]])
    assert cluster_match(held(w_nn, share), (0, 0, 1, 1), link_threshold(share)) == pytest.approx(
        10 / 12
    )
    assert cluster_match(held(np.kron(np.eye(2), np.ones((2, 2)))), (0, 0, 1, 1)) == 1.0
    assert link_threshold() == 0.5
    assert share < link_threshold(share) < 1.01 * share, "an equal share is no link"


# -- HealthMonitor -----------------------------------------------------------------------------------------


def play(
    monitor: HealthMonitor,
    rounds: int,
    weights: np.ndarray,
    *,
    alignment: float = 1.0,
    pairs: int = 6,
    losses: list[float] | None = None,
    share: float = 0.0,
) -> list[WarningRow]:
    """Let the monitor see `rounds` rounds with one W and `pairs` drawn pairs of one alignment each."""
    graph, seen = GraphStats(held(weights, share), share), monitor.before()
    for r in range(1, rounds + 1):
        loss = losses[r - 1] if losses else 1.0
        seen += monitor.after(r, loss, np.full(pairs, alignment), graph)
    return seen


def changed_cobo(changed: dict[str, Any]) -> Any:
    """Return the defaults with some keys changed, those of `sampling` beside its others."""
    sampling = COBO.sampling.model_copy(update=changed.get("sampling", {}))
    return COBO.model_copy(update=changed | {"sampling": sampling})


def kinds(warnings: list[WarningRow]) -> list[tuple[str, int]]:
    return [(warning.kind, warning.round) for warning in warnings]


BLOCKS = np.kron(np.eye(2), np.ones((2, 2)))


def test_a_sound_run_is_left_alone() -> None:
    assert play(HealthMonitor(COBO, 4, 100, 0.1), 100, BLOCKS) == []


def test_nothing_is_said_of_a_w_that_does_not_move() -> None:
    """The identity of Local is empty, and the ones of FedAvg are fully connected, on purpose."""
    for weights in (np.eye(4), np.ones((4, 4))):
        assert play(HealthMonitor(LOCAL, 4, 100, 0.1), 100, weights, pairs=0) == []


@pytest.mark.parametrize("alignment", [60.0, -60.0])
def test_gamma_too_large(alignment: float) -> None:
    """Gamma 0.01 times an alignment of 60: each drawn weight moves by 0.6, and all lie at an end."""
    warnings = play(HealthMonitor(COBO, 4, 1000, 0.1), 1000, BLOCKS, alignment=alignment)
    assert kinds(warnings) == [("saturated", 3)], "once, when each of 6 pairs was drawn three times"
    for words in ("4 and 2 of 6", "0.60", "algorithm.gamma (now 0.01)"):
        assert words in warnings[0].message


@pytest.mark.parametrize(
    ("alignment", "weights"),
    [(29.0, BLOCKS), (60.0, np.full((4, 4), 0.9)), (-0.01, np.ones((4, 4)))],
    ids=["small_jumps", "weights_between", "still_at_the_start"],
)
def test_gamma_that_is_not_too_large(alignment: float, weights: np.ndarray) -> None:
    """All at 1 as at the start, or jumps below 0.3 of the range, are no saturation."""
    warnings = play(HealthMonitor(COBO, 4, 1000, 0.1), 999, weights, alignment=alignment)
    assert "saturated" not in dict(kinds(warnings))


def test_gamma_too_large_shows_late_as_well() -> None:
    """Sound for 100 rounds, then jumping: the recent drawings count, not the mean of all."""
    monitor, graph = HealthMonitor(COBO, 4, 1000, 0.1), GraphStats(held(BLOCKS))
    for r in range(1, 101):
        assert monitor.after(r, 1.0, np.full(6, 1.0), graph) == []
    found = [monitor.after(r, 1.0, np.full(6, 60.0), graph) for r in range(101, 111)]
    assert [one.kind for warnings in found for one in warnings] == ["saturated"]


def test_fully_connected() -> None:
    warnings = play(HealthMonitor(COBO, 4, 100, 0.1), 100, np.full((4, 4), 0.5))
    assert kinds(warnings) == [("fully_connected", 100)]
    for words in ("all 6 pairs", "algorithm.gamma (now 0.01)", "algorithm.rho (now 0.2)"):
        assert words in warnings[0].message


def test_empty() -> None:
    warnings = play(HealthMonitor(COBO, 4, 100, 0.1), 100, np.full((4, 4), 0.4))
    assert kinds(warnings) == [("empty", 100)]
    for words in ("no pair is linked", "algorithm.rho (now 0.2)", "algorithm.gamma (now 0.01)"):
        assert words in warnings[0].message


def test_selection_by_differences_has_no_gamma_and_draws_no_pairs() -> None:
    config = COBO.model_copy(update={"selection": "difference"})
    (empty,) = play(HealthMonitor(config, 4, 20, 0.1), 20, np.full((4, 4), 0.4), pairs=0)
    (full,) = play(HealthMonitor(config, 4, 20, 0.1), 20, np.full((4, 4), 0.5), pairs=0)
    assert (empty.kind, full.kind) == ("empty", "fully_connected")
    assert "raise algorithm.difference.tolerance (now 1.6), or run.rounds (now 20)" in empty.message
    assert "lower algorithm.difference.tolerance (now 1.6)" in full.message
    assert "gamma" not in empty.message + full.message


SIMPLEX = COBO.model_copy(update={"domain": "simplex"})
ONE_EACH = np.eye(4)[[1, 0, 3, 2]]
SPREAD = np.array([[0, 0.8, 0.2, 0], [0.9, 0, 0, 0.1], [0.1, 0, 0, 0.9], [0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("weights", "alignment", "kind"),
    [
        (SPREAD, 1.0, None),
        (ONE_EACH, 1.0, None),
        (ONE_EACH, 60.0, "saturated"),
        (SPREAD, 60.0, None),
        ((np.ones((4, 4)) - np.eye(4)) / 3, 1.0, "uniform"),
        (np.eye(4), 1.0, "empty"),
    ],
    ids=["spread", "one_each", "one_each_at_once", "spread_jumping", "uniform", "alone"],
)
def test_a_simplex_is_judged_by_its_own_measure(
    weights: np.ndarray, alignment: float, kind: str | None
) -> None:
    """Half of W at 0 is no worry where rows sum to 1; all of a row on one client by one batch is."""
    warnings = play(
        HealthMonitor(SIMPLEX, 4, 50, 0.1), 50, weights, alignment=alignment, share=1 / 3
    )
    assert [warning.kind for warning in warnings] == ([kind] if kind else [])
    words = {
        "saturated": (
            "4 of 4 clients give all their weight to one other",
            "0.60",
            "gamma (now 0.01)",
        ),
        "uniform": ("the same weight 0.333", "raise algorithm.gamma (now 0.01)"),
        "empty": ("every client trained alone",),
    }
    assert all(word in warnings[0].message for word in words.get(kind or "", ()))


@pytest.mark.parametrize(("rho", "warned"), [(9.9, False), (10.0, True)])
def test_the_step_of_the_penalty_on_a_simplex(rho: float, warned: bool) -> None:
    """Two clients with each other's whole weight: their difference is multiplied by 1 - 2 eta rho."""
    warnings = HealthMonitor(SIMPLEX.model_copy(update={"rho": rho}), 8, 100, 0.1).before()
    assert kinds(warnings) == ([("penalty_step", 0)] if warned else [])
    if warned:
        assert "lower algorithm.rho below 10 or optimizer.lr" in warnings[0].message


def test_two_clients_on_a_simplex_have_no_choice() -> None:
    pair = 1.0 - np.eye(2)
    warnings = play(HealthMonitor(SIMPLEX, 2, 50, 0.1), 50, pair, pairs=1, share=1.0)
    assert kinds(warnings) == [("no_choice", 0)]
    assert "algorithm.own_weight=included" in warnings[0].message
    leaning = np.array([[0.3, 0.7], [0.5, 0.5]])
    included = HealthMonitor(SIMPLEX.model_copy(update={"own_weight": "included"}), 2, 50, 0.1)
    assert play(included, 50, leaning, pairs=1, share=0.5) == []


@pytest.mark.parametrize(("pairs", "warned"), [(0, True), (5, True), (6, False)])
def test_hardly_drawn(pairs: int, warned: bool) -> None:
    """6 pairs in 3 rounds: 18 drawings are 3.0 visits a pair, 15 are 2.5."""
    warnings = play(HealthMonitor(COBO, 4, 3, 0.1), 3, BLOCKS, pairs=pairs)
    assert kinds(warnings) == ([("hardly_drawn", 3)] if warned else [])
    if warned:
        visits = pairs * 3 / 6
        assert f"drawn {visits:.1f} times in 3 rounds" in warnings[0].message
        assert "algorithm.sampling.rate (now 1)" in warnings[0].message


@pytest.mark.parametrize(("rho", "warned"), [(2.49, False), (2.5, True), (10.0, True)])
def test_the_step_of_the_penalty(rho: float, warned: bool) -> None:
    """At W = 1, a difference of models is multiplied by 1 - eta rho n: 0.1 * 2.5 * 8 = 2."""
    warnings = HealthMonitor(COBO.model_copy(update={"rho": rho}), 8, 100, 0.1).before()
    assert kinds(warnings) == ([("penalty_step", 0)] if warned else [])
    if warned:
        assert f"{0.1 * rho * 8:.2f}" in warnings[0].message
        assert "algorithm.rho below 2.5" in warnings[0].message
        assert "algorithm.coupling=capped" in warnings[0].message


@pytest.mark.parametrize(
    ("changed", "taking_part", "says"),
    [
        ({"rho": 2.49}, 8, ""),
        ({"rho": 2.5}, 8, "at a client with 7 links of weight 1"),
        ({"rho": 9.9}, 8, "at a client with 2 links of weight 1"),
        ({"rho": 10.0}, 8, "at a client with 1 link of weight 1"),
        ({"rho": 50.0, "sampling": {"name": "all"}}, 8, "0.1 * 50 * 2 = 10.00"),
        ({"rho": 50.0, "selection": "evidence", "gamma": 0.0}, 8, "0.1 * 50 * 2 = 10.00"),
        ({"rho": 50.0, "selection": "difference", "gamma": 0.0}, 8, "0.1 * 50 * 2 = 10.00"),
        ({"rho": 50.0, "penalty": "fixed"}, 8, "0.1 * 50 * 2 = 10.00"),
        ({"rho": 9.9}, 2, ""),
        ({"rho": 9.9}, 3, "at a client with 2 links of weight 1"),
        ({"rho": 50.0}, 1, ""),
        ({"rho": 50.0, "gamma": 0.0}, 8, ""),  # nothing is ever linked
        ({"rho": 50.0, "sampling": {"rate": 0.0}}, 8, ""),
        ({"rho": 1e6, "coupling": "capped"}, 8, ""),
    ],
)
def test_the_step_of_the_penalty_from_zeros(
    changed: dict[str, Any], taking_part: int, says: str
) -> None:
    """A client with m - 1 links: a difference of models is multiplied by 1 - eta rho m."""
    config = changed_cobo({"start": "zeros"} | changed)
    warnings = HealthMonitor(config, 8, 100, 0.1, taking_part).before()
    assert kinds(warnings) == ([("penalty_step", 0)] if says else [])
    if says:
        assert says in warnings[0].message
        safe = 2 / (0.1 * taking_part)
        assert f"algorithm.rho below {safe:.3g} " in warnings[0].message
        assert "algorithm.coupling=capped" in warnings[0].message


@pytest.mark.parametrize(
    ("changed", "taking_part", "says"),
    [
        ({"rho": 4.0}, 8, "at W = 1 the penalty's step eta rho n = 0.1 * 4 * 8 = 3.20"),
        ({"rho": 4.0, "penalty": "fixed"}, 8, "0.1 * 4 * 8 = 3.20"),
        ({"rho": 4.0, "sampling": {"name": "all"}}, 8, "0.1 * 4 * 8 = 3.20"),
        ({"rho": 4.0, "sampling": {"rate": 0.0}}, 8, "0.1 * 4 * 8 = 3.20"),
        ({"rho": 4.0}, 4, ""),  # a client that does not take part has no links in that round
        ({"rho": 5.0}, 4, "at W = 1 in a round the penalty's step eta rho m = 0.1 * 5 * 4 = 2.00"),
        ({"rho": 50.0}, 1, ""),
        ({"rho": 9.9, "domain": "simplex"}, 8, ""),
        ({"rho": 10.0, "domain": "simplex"}, 2, "0.1 * 10 = 1.00"),
        ({"rho": 10.0, "domain": "simplex", "penalty": "fixed"}, 8, "0.1 * 10 = 1.00"),
        ({"rho": 10.0, "domain": "simplex"}, 1, ""),
    ],
)
def test_the_step_of_the_penalty_from_ones(
    changed: dict[str, Any], taking_part: int, says: str
) -> None:
    warnings = HealthMonitor(changed_cobo(changed), 8, 100, 0.1, taking_part).before()
    assert kinds(warnings) == ([("penalty_step", 0)] if says else [])
    if says:
        assert says in warnings[0].message


@pytest.mark.parametrize(("growth", "warned"), [(1.9, True), (2.1, False), (math.nan, False)])
def test_gamma_is_not_blamed_for_models_that_diverge(growth: float, warned: bool) -> None:
    """Gradients grow with the models, and weights jump with the gradients."""
    losses = [1.0] + [growth] * 11
    warnings = play(HealthMonitor(COBO, 4, 1000, 0.1), 12, BLOCKS, alignment=60.0, losses=losses)
    assert [warning.kind for warning in warnings] == (["saturated"] if warned else [])


@pytest.mark.parametrize("config", [COBO, LOCAL], ids=["cobo", "local"])
def test_diverging_is_said_once(config: Any) -> None:
    """The mean of 20 losses that grow by a tenth a round: 2.86 times the first after 20 rounds."""
    losses = [1.1**r for r in range(60)]
    warnings = play(HealthMonitor(config, 4, 1000, 0.1), 60, BLOCKS, losses=losses)
    assert kinds(warnings) == [("diverging", 20)]
    assert "2.86" in warnings[0].message
    assert "optimizer.lr" in warnings[0].message
    assert ("algorithm.rho" in warnings[0].message) == (config is COBO)


def test_one_bad_batch_is_no_divergence() -> None:
    losses = [1.0] * 19 + [15.0] + [1.0] * 40
    assert play(HealthMonitor(COBO, 4, 1000, 0.1), 60, BLOCKS, losses=losses) == []


@pytest.mark.parametrize("first", [-1.0, 0.0], ids=["negative", "zero"])
def test_a_first_loss_of_zero_or_less_does_not_make_every_loss_divergence(first: float) -> None:
    """`quadratic` with noise starts there: its loss is f(x) + <noise, x>, and x^0 may be optimal."""
    rng = np.random.default_rng(0)
    losses = [first, *rng.normal(0.5, 0.3, size=99).tolist()]
    assert play(HealthMonitor(LOCAL, 4, 1000, 0.1), 100, BLOCKS, losses=losses) == []


def test_one_client_is_no_matter_of_graphs() -> None:
    assert play(HealthMonitor(COBO, 1, 50, 0.1), 50, np.ones((1, 1)), pairs=0) == []


# -- real runs -----------------------------------------------------------------------------------------


@pytest.fixture
def warnings_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Train and return {kind: message}; what is in metrics.jsonl has been said aloud as well."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, code: int = 0) -> dict[str, str]:
        assert main([*QUIET, "run.threads=1", f"run.dir={tmp_path / 'out'}", *arguments]) == code
        found = rows(tmp_path / "out", "warning")
        said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
        assert said == [f"warning (round {row['round']}): {row['message']}" for row in found]
        return {row["kind"]: row["message"] for row in found}

    return run


@pytest.mark.slow
def test_the_quickstart_gives_no_warning(warnings_of: Any) -> None:
    assert warnings_of("run.rounds=400") == {}


@pytest.mark.parametrize(
    ("arguments", "expected", "setting"),
    [
        (("algorithm.gamma=1000", "algorithm.sampling.rate=4"), {"saturated"}, "algorithm.gamma"),
        (
            ("algorithm.gamma=0", "algorithm.sampling.name=all"),
            {"fully_connected"},
            "algorithm.gamma",
        ),
        (
            ("algorithm.gamma=0", "algorithm.sampling.name=all", "algorithm.start=zeros"),
            {"empty"},
            "algorithm.rho",
        ),
        (
            ("algorithm.sampling.rate=0",),
            {"hardly_drawn", "fully_connected"},
            "algorithm.sampling.rate",
        ),
        (
            ("algorithm.rho=3", "run.rounds=5"),
            {"penalty_step", "hardly_drawn", "fully_connected"},
            "algorithm.rho below 2.5",
        ),
    ],
)
def test_a_setting_that_is_off_is_named(
    warnings_of: Any, arguments: tuple[str, ...], expected: set[str], setting: str
) -> None:
    found = warnings_of("run.rounds=40", *arguments)
    assert set(found) == expected
    assert any(setting in message for message in found.values())


@pytest.mark.parametrize("sampling", ["constant", "all"])
def test_a_penalty_that_diverges_from_zeros_is_blamed_on_rho(
    warnings_of: Any, sampling: str
) -> None:
    """It is said before round 1, and nothing else is blamed when the run has failed."""
    found = warnings_of(
        "algorithm.start=zeros", "algorithm.rho=50", "algorithm.gamma=1", "run.rounds=100",
        f"algorithm.sampling.name={sampling}", code=1,
    )  # fmt: skip
    assert "algorithm.rho below 2.5" in found["penalty_step"]
    assert set(found) <= {"penalty_step", "diverging"}


def quadratic(path: Path, centers: np.ndarray, start: np.ndarray) -> tuple[str, str]:
    np.savez(path, centers=centers, curvature=np.ones(len(centers)), start=start)
    return "task.name=quadratic", f"task.file={path}"


def test_models_that_diverge(warnings_of: Any, tmp_path: Path) -> None:
    """Curvature 1 and a step of 2.2: the distance grows by 1.2 a round, the loss by 1.44."""
    problem = quadratic(tmp_path / "problem.npz", np.eye(6)[[0, 0, 1, 1]], np.zeros(6))
    found = warnings_of(*problem, "optimizer.lr=2.2", "algorithm.name=local", "run.rounds=40")
    assert set(found) == {"diverging"}
    mean = 0.5 * np.mean([1.44**r for r in range(20)])
    assert f"{mean:.3g} after 20 rounds, up from 0.5" in found["diverging"]
    assert math.isclose(mean, 0.5 * (1.44**20 - 1) / 0.44 / 20), "the geometric sum"


@pytest.mark.parametrize("seed", [1, 4])
def test_a_noisy_quadratic_that_converges_is_left_alone(
    warnings_of: Any, tmp_path: Path, seed: int
) -> None:
    problem = quadratic(tmp_path / "problem.npz", 0.1 * np.eye(6)[[0, 0, 1, 1]], np.ones(6))
    arguments = ("task.noise=3", "algorithm.name=local", "run.rounds=100", f"run.seed={seed}")
    assert warnings_of(*problem, *arguments) == {}
