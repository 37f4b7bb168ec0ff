"""The doctor: its diagnosis of what ranks report, the links it measures, and the command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from pool import RankPool
from problems import write_quadratic

from cobo_dist.cli import doctor
from cobo_dist.comm.session import Session
from cobo_dist.comm.startup.link_benchmark import (
    MAX_RANKS_FOR_ALL_LINKS,
    Link,
    choose_links,
    measure,
)
from cobo_dist.config import load_config
from cobo_dist.preflight.diagnose import Finding, RankInfo, diagnose
from cobo_dist.preflight.probe import bytes_needed, core_quota, probe
from cobo_dist.training.preparation import prepare

VERSIONS = {"torch": "2.14", "numpy": "2.4", "cobo_dist": "0.1"}


def info(rank: int, host: str = "a", **more: object) -> RankInfo:
    """A healthy rank: two ranks a host, each with a core of its own."""
    given = {
        "device": "cpu", "gpu": "", "gpus": 0, "cores": (0, 1), "quota": 0.0, "threads": 1,
        "versions": VERSIONS, "address": f"10.0.0.{1 + 'ab'.index(host)}", "interface": "eth0",
        "folder": "/runs", "unwritable": "", "free": 10**12, "needed": 10**9, "sees_marker": True,
        "data": "", "fingerprint": "f",
    }  # fmt: skip
    return RankInfo(rank, host, **{**given, **more})  # type: ignore[arg-type]


HEALTHY = [info(0), info(1), info(2, "b"), info(3, "b")]
LINKS = [
    Link(i, j, 1e-4, 1e9, 0.001 if j > 1 else 0.0)
    for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
]


def test_healthy_ranks_are_fine() -> None:
    found = diagnose(HEALTHY, LINKS, "every pair", "/runs/x")
    assert {one.level for one in found} == {"fine"}
    assert [one.topic for one in found] == [
        "versions", "devices", "network", "threads", "threads", "data", "run folder", "run folder",
        "shared disk", "clocks", "links",
    ]  # fmt: skip
    assert "0-1 (one host): 0.10 ms, 1000 MB/s" in found[-1].more
    assert "1-2 (a to b): 0.10 ms, 1000 MB/s" in found[-1].more


SICK = {
    "torch": ({"versions": VERSIONS | {"torch": "2.9"}}, "wrong", "versions", "torch is 2.14 for rank"),
    "numpy": ({"versions": VERSIONS | {"numpy": "1.26"}}, "warning", "versions", "1.26 for rank(s) 3 on b"),
    "idle GPU": ({"gpus": 4}, "warning", "devices", "rank(s) 3 on b compute on the CPU"),
    "threads": ({"threads": 2}, "warning", "threads", "b: 2 rank(s) with 3 thread(s) in all on 2 core(s)"),
    "quota": ({"quota": 1.0}, "warning", "threads", "b: 2 rank(s) with 2 thread(s) in all on 1 core(s)"),
    "no data": ({"data": "no file"}, "wrong", "data", "rank(s) 3 on b: no file"),
    "other data": ({"fingerprint": "g"}, "wrong", "data", "rank(s) 3 on b read other data than rank 0"),
    "no writing": ({"unwritable": "Read-only"}, "wrong", "run folder", "b cannot write in /runs: Read-only"),
    "not shared": ({"sees_marker": False}, "warning", "shared disk", "b do not see what a writes in /runs/x"),
    "refused": ({"refusals": ("no such device",)}, "wrong", "settings", "rank(s) 3 on b: no such device"),
}  # fmt: skip


@pytest.mark.parametrize("name", SICK)
def test_what_is_wrong_with_a_rank_is_reported_with_a_remedy(name: str) -> None:
    more, level, topic, words = SICK[name]
    facts = [*HEALTHY[:3], dataclasses.replace(HEALTHY[3], **more)]
    bad = [one for one in diagnose(facts, LINKS, "every pair", "/runs/x") if one.level != "fine"]
    assert [(one.level, one.topic) for one in bad] == [(level, topic)]
    assert words in bad[0].text
    assert bad[0].remedy or name == "refused", "a refusal names its remedy itself"


def test_two_ranks_on_one_gpu_are_reported_unless_on_two_hosts() -> None:
    gpus = [
        dataclasses.replace(one, gpu=f"G{one.rank % 2}", device="cuda:0", gpus=2) for one in HEALTHY
    ]
    assert diagnose(gpus, LINKS, "", "x")[1].level == "fine"
    gpus[1] = dataclasses.replace(gpus[1], gpu="G0")
    assert any(
        (one.level, one.text) == ("warning", "rank(s) 0, 1 on a share one GPU")
        for one in diagnose(gpus, LINKS, "", "x")
    )


def test_little_disk_space_clocks_and_slow_links() -> None:
    tight = [dataclasses.replace(one, free=10**8) for one in HEALTHY]
    slow = [
        dataclasses.replace(k, throughput=5e7, skew=9.0) if k in (LINKS[2], LINKS[4]) else k
        for k in LINKS
    ]
    bad = [one for one in diagnose(tight, slow, "", "x") if one.level != "fine"]
    assert [one.topic for one in bad] == ["run folder", "run folder", "clocks", "links"]
    assert "the clock of b is +9000.0 ms off that of a" in bad[2].text
    assert bad[3].text == "links between hosts are slow: 0-3, 1-3"
    assert "GLOO_SOCKET_IFNAME" in bad[3].remedy


@pytest.mark.parametrize(
    "ranks", [1, 2, 3, MAX_RANKS_FOR_ALL_LINKS, MAX_RANKS_FOR_ALL_LINKS + 1, 20, 33]
)
def test_the_choice_of_links(ranks: int) -> None:
    """No rank measures two links at once; few ranks measure all, many the ring and rank 0's star."""
    steps, _ = choose_links(ranks)
    pairs = [pair for step in steps for pair in step]
    assert len(set(pairs)) == len(pairs)
    assert all(first < second for first, second in pairs)
    for step in steps:
        busy = [rank for pair in step for rank in pair]
        assert len(set(busy)) == len(busy)
    ring, star = {(k, k + 1) for k in range(ranks - 1)}, {(0, k) for k in range(1, ranks)}
    assert ring | star <= set(pairs)
    assert len(pairs) == (
        ranks * (ranks - 1) // 2 if ranks <= MAX_RANKS_FOR_ALL_LINKS else 2 * ranks - 3
    )


def measured(session: Session) -> list[Link]:
    return measure(session.transport, session.device, nbytes=10_000)[0]


def test_links_are_measured_by_both_ends_and_reported_by_rank_0(pool: RankPool) -> None:
    first, *others = pool.run(3, measured)
    assert others == [[], []]
    assert [(link.first, link.second) for link in first] == [(0, 1), (0, 2), (1, 2)]
    for link in first:
        assert 0 < link.round_trip < 10
        assert link.throughput > 0
        assert abs(link.skew) < 1, "one clock"


def probed(session: Session, own: list[list[str]]) -> list[Finding]:
    """Probe as the doctor does, each rank with its own arguments."""
    config = load_config(None, own[session.transport.rank])
    prepared = prepare(config, session.launch, with_folder=False)
    needed = bytes_needed(prepared, config.run.dtype, config.run.keep_checkpoints)
    return probe(session, prepared, config.run_dir, needed, [])


def test_all_ranks_return_the_same_findings_and_leave_nothing(
    pool: RankPool, tmp_path: Path
) -> None:
    common = ["task.name=quadratic", f"run.dir={tmp_path / 'run'}"]
    good = [*common, f"task.file={write_quadratic(tmp_path / 'problem.npz')}"]
    first, second = pool.run(2, probed, [good, [*common, f"task.file={tmp_path / 'none.npz'}"]])
    assert first == second
    wrong = [one for one in first if one.level == "wrong"]
    assert [one.topic for one in wrong] == ["data"]
    assert "rank(s) 1 on" in wrong[0].text
    assert "none.npz" in wrong[0].text
    assert {path.name for path in tmp_path.iterdir()} == {"problem.npz"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On one rank: 0 if nothing is wrong, 1 if the run folder is taken, 2 for an unknown key."""
    problem = write_quadratic(tmp_path / "problem.npz")
    arguments = ["task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path / 'run'}"]
    threads = torch.get_num_threads()
    try:
        assert doctor.main(arguments) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].startswith("cobo_dist doctor: 1 rank(s) by python; task.name=quadratic")
        assert shown[-1].startswith("nothing is wrong, 0 warning(s)")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").touch()
        assert doctor.main(arguments) == 1
        assert "already holds a run" in capsys.readouterr().out.splitlines()[-2]
        assert doctor.main(["run.round=3"]) == 2
        assert capsys.readouterr().err.startswith("error: run.round is not a known key")
    finally:
        torch.set_num_threads(threads)


def test_the_quota_of_a_control_group(tmp_path: Path) -> None:
    assert core_quota(tmp_path) == 0.0
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert core_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert core_quota(tmp_path) == 0.0
