"""Seconds foretold: their terms, what they are measured from, and closed forms against the rehearsal."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import write_quadratic

from cobo_dist.cli.plan import main
from cobo_dist.comm.session import Session
from cobo_dist.comm.startup.link_benchmark import measure as measure_links
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.planning.constants import Constants, read_constants, subject_of, write_constants
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.planning.measure import line, measure_in_session, seconds
from cobo_dist.planning.on_paper import OnPaper, side_by_side
from cobo_dist.planning.round_cost import (
    LOOKS,
    MOMENT,
    STEP,
    VISIT,
    Load,
    Mixing,
    Ranks,
    choose_engine,
    fewest_hosts,
    seconds_of,
    share_of_core,
)
from cobo_dist.tasks.registry import build_task

SMALL = ("model.hidden=[18]", "run.rounds=6")
SIZE = 64 * 18 + 18 + 18 * 10 + 10

NUMBERS = {
    "of": {
        "task": "digits", "algorithm": "cobo", "parameters": SIZE, "examples": 32,
        "dtype": "float32", "autocast": "none",
    },
    "cores": 4, "threads": 2,
    "passes": {"one_by_one": {"call": 0.0, "client": 3.0}, "vectorised": {"call": 8.0, "client": 1.0}},
    "memory_bandwidth": 2.0, "products": 5.0,
    "link": {"latency": 0.5, "bandwidth": 10.0},
    "overhead": {"round": 7.0, "client": 0.25, "end": 2.0, "addition": 0.125},
}  # fmt: skip
CONSTANTS = Constants.model_validate(NUMBERS)


def task_of(settings: list[str]):
    config = load_config(None, [*SMALL, *settings])
    dtype = getattr(torch, config.run.dtype)
    return config, build_task(config.task, config.model, config.data, config.run.seed, dtype)


# -- the terms ---------------------------------------------------------------------------------------


def load_of(**mixing: int) -> Load:
    """Two ranks; the second does nothing but its two clients' gradients."""

    def first(value: int) -> np.ndarray:
        return np.array([value, 0])

    costs = {one.name: first(mixing.get(one.name, 0)) for one in fields(Mixing)}
    return Load(
        pairs=4,
        messages={"pairs": first(3), "gradients": first(5)},
        bytes={"pairs": first(100), "gradients": first(40)},
        mixing=Mixing(**costs),
        passes=(np.array([2, 2]), np.array([6, 0])),
        forwards=np.array([3, 0]),
    )


RANKS = Ranks(np.array([2, 2]), "cobo", row=64, number=4, moments=2.0, weights_r=np.array([32, 32]))


def test_each_term_by_hand() -> None:
    load = load_of(messages=2, bytes=60, additions=10, added=70, multiplied=50)
    found = seconds_of(load, RANKS, CONSTANTS, "vectorised")
    moved = 64 * ((STEP["cobo"] + 2 * MOMENT) * 2 + VISIT * 6) + 3 * 4 * 70 + 2 * 200
    moved += LOOKS * 32
    assert found.terms == {
        "gradients": 2 * 8.0 + (2 + 6 + 1) * 1.0,  # two calls; three losses are one gradient
        "rows": moved / 2.0,
        "products": 50 / 5.0,
        "python": 7.0 + 2 * 0.25 + 6 * 2.0 + (10 - 2) * 0.125,
        "messages": 10 * 0.5,
        "bytes": 200 / 10.0,
    }
    assert found.total == sum(found.terms.values())
    fewer = seconds_of(load_of(), RANKS, CONSTANTS, "vectorised")
    # Who mixes nothing looks at no weight.
    assert found.terms["rows"] - fewer.terms["rows"] == (3 * 4 * 70 + 120 + LOOKS * 32) / 2.0


def test_the_slowest_rank_counts() -> None:
    load = load_of()
    turned = replace(load, passes=tuple(one[::-1] for one in load.passes))
    one, other = (seconds_of(each, RANKS, CONSTANTS, "one_by_one") for each in (load, turned))
    # Rank 1 now takes the visits, and rank 0 still sends: the slower one's terms, not the worst of each.
    assert other.terms["messages"] == 0.0
    assert other.terms["gradients"] == 3.0 * 8
    assert one.terms["gradients"] == 3.0 * 9


def test_ranks_that_share_cores_take_turns() -> None:
    """Hosts of 4 cores, 2 threads a rank: two ranks a host have cores of their own."""
    assert [share_of_core(CONSTANTS, 4, hosts) for hosts in (1, 2, 3, 4)] == [2.0, 1.0, 1.0, 1.0]
    assert [fewest_hosts(CONSTANTS, ranks) for ranks in (1, 2, 3, 1000)] == [1, 1, 2, 500]
    wide = Ranks(np.full(8, 2), "cobo", 64, 4, 0.0, np.full(8, 32))
    nothing = np.zeros(8, dtype=np.int64)
    load = Load(
        0, {"pairs": nothing}, {"pairs": nothing}, Mixing.none(8), (wide.clients_r,), nothing
    )
    alone, shared = (seconds_of(load, wide, CONSTANTS, "vectorised", hosts) for hosts in (4, 1))
    assert shared.terms == {name: 4.0 * value for name, value in alone.terms.items()}


def test_the_faster_engine_is_taken() -> None:
    assert choose_engine(CONSTANTS, "auto", 3) == "one_by_one"  # 9 s, against 11
    assert choose_engine(CONSTANTS, "auto", 5) == "vectorised"  # 15, against 13
    assert choose_engine(CONSTANTS, "one_by_one", 5) == "one_by_one"
    with pytest.raises(ConfigError, match=r"run\.engine=other is not among"):
        choose_engine(CONSTANTS, "other", 5)


def test_a_line_through_two_points() -> None:
    assert line(2, 3.0, 6, 5.0) == (2.0, 0.5)
    assert line(2, 5.0, 6, 3.0) == (3.0, 0.0), "noise makes no negative seconds"
    assert line(2, 1.0, 6, 5.0) == (0.0, 1.0)
    assert line(2, 0.5, 6, 5.0)[0] == 0.0
    assert line(4, 2.0, 4, 2.0) == (0.0, 0.5)


# -- closed forms --------------------------------------------------------------------------------------

CASES = {
    "cobo": [],
    "all pairs, in pieces": ["algorithm.sampling.name=all"],
    "simplex": ["algorithm.domain=simplex"],
    "simplex with own": ["algorithm.domain=simplex", "algorithm.own_weight=included", "run.dtype=float64"],
    "zeros": ["algorithm.start=zeros"],
    "local": ["algorithm.name=local"],
    "fedavg with buffers": ["algorithm.name=fedavg", "algorithm.buffers=averaged", "model.norm=batch"],
    "finetuned": ["algorithm.name=finetuned_fedavg"],
    "oracle": ["algorithm.name=oracle"],
    "ditto": ["algorithm.name=ditto", "optimizer.momentum=0.9"],
}  # fmt: skip
WAYS = {"": [], "deterministic": ["comm.deterministic=true"], "bf16": ["comm.dtype=bfloat16"]}
CLUSTERS = ["task.clusters=3", "task.clients_per_cluster=4"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
@mock.patch.multiple("cobo_dist.maths.flat", _MAX_NUMBERS=1, _MIN_COLUMNS=16)
def test_closed_forms_equal_the_rehearsal(case: str, way: str) -> None:
    """12 clients on 1 to 6 ranks: clusters inside ranks, cut by them, and over several."""
    config, task = task_of([*CLUSTERS, *CASES[case], *WAYS[way]])
    for ranks in (1, 2, 3, 5, 6):
        rehearsed = DryRun(config, task, ranks)
        closed = OnPaper(config, task, ranks, task.clients)
        for t in (0, 5):
            expected, found = rehearsed.load(t), closed.load(t)
            assert found.sent() == expected.sent()
            for purpose in ("pairs", "gradients"):
                assert np.array_equal(found.messages[purpose], expected.messages[purpose])
                assert np.array_equal(found.bytes[purpose], expected.bytes[purpose])
            assert same(found.mixing, expected.mixing)
            assert [one.tolist() for one in found.passes] == [
                one.tolist() for one in expected.passes
            ]
            if t == 0:
                for rank in range(ranks):
                    assert closed.memory_of(rank) == rehearsed.memory_of(rank)
        others, expected_others = closed.other_mixings(), rehearsed.other_mixings()
        assert list(others) == list(expected_others)
        assert all(same(others[name], expected_others[name]) for name in others), ranks
        assert np.array_equal(closed.ranks().clients_r, rehearsed.ranks().clients_r)


def same(a: Mixing, b: Mixing) -> bool:
    return all(np.array_equal(getattr(a, one.name), getattr(b, one.name)) for one in fields(Mixing))


def test_one_client_a_rank() -> None:
    config, task = task_of([])
    closed, rehearsed = OnPaper(config, task, 8, 8), DryRun(config, task, 8)
    assert same(closed.load(0).mixing, rehearsed.load(0).mixing)
    others = closed.other_mixings()
    assert all(same(others[name], one) for name, one in rehearsed.other_mixings().items())


def test_clients_on_the_move() -> None:
    """Both count the same parcels: model, two moments, and a row of 8 weights."""
    config, task = task_of(["comm.placement=adaptive", "optimizer.name=adamw"])
    closed, rehearsed = OnPaper(config, task, 3, 8), DryRun(config, task, 3)
    closed.load(0)
    rehearsed.load(0)
    for rank in range(3):
        parts = closed.memory_of(rank)
        assert parts == rehearsed.memory_of(rank)
        (parcels,) = (one.bytes for one in parts if one.name.startswith("clients on the move"))
        assert parcels == 2 * closed.clients_r[rank] * (3 * SIZE * 4 + 8 * 4)


def test_a_million_clients_on_a_thousand_ranks(tmp_path: Path) -> None:
    """One model for each ordered pair of ranks; 500,000 pairs, each with two gradients."""
    config, task = task_of([])
    began = time.process_time()
    plan = OnPaper(config, task, 1000, 10**6)
    load = plan.load(0)
    assert time.process_time() - began < 30
    assert load.pairs == pytest.approx(500_000, rel=0.01)
    assert load.mixing.bytes.tolist() == [999 * SIZE * 4] * 1000
    assert load.passes[0].tolist() == [1000] * 1000
    assert sum(int(one.sum()) for one in load.passes[1:]) == 2 * load.pairs
    assert plan.groups == 4
    # 250 ranks a cluster: each brings its sum to 249 others.
    assert plan.other_mixings()["W = true clusters"].messages.tolist() == [249] * 1000
    assert plan.other_mixings()["any W, at most"].bytes.tolist() == [999 * 1000 * SIZE * 4] * 1000


def test_many_pairs_are_told_by_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 1,000 pairs a round; 3,500 are enough."""
    monkeypatch.setattr("cobo_dist.planning.on_paper.ENOUGH_PAIRS", 3500)
    config, task = task_of(["run.rounds=1000"])
    told = OnPaper(config, task, 4, 2000).told()
    assert len(told) == 3
    assert sum(count for _, count in told) == 1000


def test_clusters_side_by_side() -> None:
    assert side_by_side((0, 0, 2, 1, 1))
    assert side_by_side(None)
    assert not side_by_side((0, 1, 0))


# -- the door ------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "constants.json"
    write_constants(CONSTANTS, file)
    return file


def test_constants_survive_a_file(kept: Path) -> None:
    assert read_constants(kept, CONSTANTS.of) == CONSTANTS


def test_the_door_foretells_seconds(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "ranks=2", "--constants", str(kept)]) == 0
    said = capsys.readouterr().out
    assert "seconds a round                   total  gradients" in said
    assert "engine one_by_one, 2 threads a rank, 1 host of 4 cores)" in said
    config, task = task_of([])
    plan = DryRun(config, task, 2)
    total = seconds_of(plan.load(0), plan.ranks(), CONSTANTS, "one_by_one").total
    (row,) = (line for line in said.splitlines() if line.startswith("round 1 ") and "B" not in line)
    assert float(row.split()[2]) == float(f"{total:.3g}")
    assert main([*SMALL, "ranks=4", "hosts=1", "--constants", str(kept)]) == 0
    assert "2 ranks take turns on a core" in capsys.readouterr().out


def test_the_door_makes_up_clients(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "ranks=3", "clients=301", "--constants", str(kept)]) == 0
    said = capsys.readouterr().out
    assert "301 in 4 clusters, made up in proportion to the task's 8" in said
    assert "3, with 100 or 101 clients each" in said
    assert main([*SMALL, "ranks=2"]) == 0
    assert "measure this one with --measure" in capsys.readouterr().out


def test_large_runs_are_counted_in_closed_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "ranks=4"]) == 0
    rehearsed = capsys.readouterr().out.split("held by")[0]
    monkeypatch.setattr("cobo_dist.cli.plan.LARGE", (7, 16))
    assert main([*SMALL, "ranks=4"]) == 0
    closed = capsys.readouterr().out
    assert closed.split("held by")[0] == rehearsed
    assert "the fullest, with W at W^0" in closed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds no group of constants"),
        ({"link": {"latency": 0.5, "bandwidth": -1.0}}, "link.bandwidth=-1.0"),
        ({"cores": None}, "has cores=None"),
        ({"speed": 3}, "has the unknown key speed"),
        ({"passes": {}}, "passes={}"),
        ({"of": NUMBERS["of"] | {"parameters": 7}}, "measured with parameters 7, but this run has 1360"),
        ({"link": None}, "the constants know no link between ranks, but ranks=2"),
    ],
)  # fmt: skip
def test_constants_that_do_not_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str | dict, words: str
) -> None:
    file = tmp_path / "constants.json"
    file.write_text(change if isinstance(change, str) else json.dumps(NUMBERS | change))
    refused([*SMALL, "ranks=2", "--constants", str(file)], words, capsys)


def refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_what_the_door_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacking = dict(NUMBERS)
    del lacking["overhead"]
    (tmp_path / "lacking.json").write_text(json.dumps(lacking))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    for arguments, words in (
        (["--constants", str(tmp_path / "lacking.json")], "lacks overhead; measure it with"),
        (["--constants", str(tmp_path / "bytes.json")], "is no text"),
        (["--constants", str(tmp_path / "none.json")], "No such file"),
        (["clients=3", "ranks=4"], "4 ranks for 3 clients"),
        (["clients=0"], "clients=0 is no number of clients; give 1 to"),
        (["hosts=many"], "hosts=many is no number of hosts"),
        (["hosts=2"], "hosts= says where seconds are spent; give --measure or --constants"),
        (["clients=100", "algorithm.name=ifca"], "algorithm.name=ifca is planned only with"),
        (["clients=20000", "ranks=2", "algorithm.sampling.name=all"], "draws about 199,990,000 pairs"),
    ):  # fmt: skip
        refused([*SMALL, *arguments], words, capsys)
    problem = write_quadratic(tmp_path / "problem.npz")
    settings = ["task.name=quadratic", f"task.file={problem}", "run.dtype=float64", "clients=9"]
    refused([*settings, "ranks=2"], "clusters that stand side by side", capsys)


# -- measuring -----------------------------------------------------------------------------------------


def measured(session: Session) -> str | None:
    """Measure on these ranks; return JSON where it is known."""
    config = load_config(None, [*SMALL, "run.threads=1"])
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    rows = mock.patch("cobo_dist.planning.measure.ROWS", 1 << 16)
    patience = mock.patch("cobo_dist.planning.measure.PATIENCE", 0.01)
    links = mock.patch(
        "cobo_dist.planning.measure.measure_links", partial(measure_links, nbytes=1 << 16)
    )
    with rows, patience, links:
        found = measure_in_session(config, task, session)
    return None if found is None else found.model_dump_json()


def test_ranks_measure_together(pool: RankPool) -> None:
    first, second = pool.run(2, measured)
    assert second is None
    found = Constants.model_validate_json(first)
    assert found.of == subject_of(*task_of([])[:1], SIZE)
    assert set(found.passes) == {"one_by_one", "vectorised"}
    assert all(one.call + one.client > 0 for one in found.passes.values())
    assert found.link is not None
    assert found.link.latency > 0
    assert found.overhead.round + found.overhead.client > 0
    assert found.overhead.addition > 0
    (alone,) = pool.run(1, measured)
    assert Constants.model_validate_json(alone).link is None


def test_a_call_is_timed() -> None:
    taken = seconds(lambda: time.sleep(0.01), torch.device("cpu"), 0.0)
    assert 0.01 <= taken < 1.0
