"""A run that is stopped and resumed gives the same models, W and rows, on any number of ranks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml
from methods import settings_of
from pool import RankPool
from problems import QUIET, models, rows, train
from resuming import assert_same, log, stopped

from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.checkpoint.writer import PendingCheckpoint
from cobo_dist.cli.train import main
from cobo_dist.comm.transports.base import LostContact
from cobo_dist.config import load_config
from cobo_dist.config.differences import resume_differences
from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage import schema
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import FileDigest
from cobo_dist.tracking.metrics_buffer import MetricsBuffer
from cobo_dist.training.signals import Signals

ROUNDS = 24
DIGITS = [
    f"run.rounds={ROUNDS}", "run.eval_every=8", "run.log_weights_every=6", "run.checkpoint_every=6",
    "task.test_size=80", "model.hidden=[8]", "data.batch_size=8",
    "model.norm=batch", "comm.deterministic=true", "log.flush_every=4",
]  # fmt: skip
MOMENTUM = ("optimizer.name=ema_momentum", "optimizer.momentum=0.9")
ADAM = ("optimizer.name=adamw", "optimizer.lr=0.003", "optimizer.schedule=one_cycle")
RUNS: dict[str, tuple[str, ...]] = {name: tuple(settings_of(name)) for name in ALGORITHMS} | {
    "cobo": (*MOMENTUM, "algorithm.gamma=0.3"),
    "cobo-simplex": (*ADAM, "algorithm.name=cobo", "algorithm.domain=simplex", "algorithm.gamma=1"),
    "local": ("algorithm.name=local", "optimizer.momentum=0.5"),
    "fedavg": ("algorithm.name=fedavg", "algorithm.buffers=averaged"),
    "finetuned_fedavg": ("algorithm.name=finetuned_fedavg", *MOMENTUM),
    "ditto": ("algorithm.name=ditto", *ADAM),
    "ifca": ("algorithm.name=ifca", "algorithm.client_share=0.5", *MOMENTUM),
    "federated_clustering": ("algorithm.name=federated_clustering", *MOMENTUM),
    "validation_based": ("algorithm.name=validation_based", "algorithm.every=3", *ADAM),
    "fedrep": ("algorithm.name=fedrep", "local.steps=2", *ADAM),
    "fedbabu": ("algorithm.name=fedbabu", "algorithm.fedavg_share=0.5", *ADAM),
    "scaffold": ("algorithm.name=scaffold", "local.steps=2", "participation.count=5"),
    "oracle": ("algorithm.name=oracle", *MOMENTUM),
    "apfl": ("algorithm.name=apfl", *MOMENTUM),
    "pfedme": ("algorithm.name=pfedme", "algorithm.beta=0.7", *MOMENTUM),
    "perfedavg": ("algorithm.name=perfedavg", "algorithm.variant=hessian_free", *MOMENTUM),
    "fedala": (
        "algorithm.name=fedala",
        "algorithm.first_passes=2",
        "algorithm.share=0.3",
        "algorithm.buffers=averaged",
        "participation.count=5",
    ),
    "local-epochs": (
        "algorithm.name=oracle",
        "algorithm.weighting=examples",
        "local.epochs=1",
        "participation.count=5",
        "optimizer.name=adamw",
        "optimizer.lr=0.003",
        "optimizer.schedule=step",
        "optimizer.step_every=5",
        "data.batch_size=50",
    ),
    "cobo-virtual": (
        "algorithm.gamma=0.3",
        "clock=virtual",
        "clock.policy=bounded",
        "clock.spread=0.7",
        "clock.latency=2.5",
        "clock.discount=sqrt",
        *MOMENTUM,
    ),
    "adpsgd-virtual": (
        "algorithm.name=adpsgd",
        "clock=virtual",
        "clock.policy=free",
        "clock.spread=1",
    ),
    "swift-virtual": (
        "algorithm.name=swift",
        "algorithm.every=2",
        "clock=virtual",
        "clock.policy=free",
        "clock.spread=0.7",
        "clock.latency=2.5",
    ),
    "cobo-some": ("algorithm.gamma=0.3", "local.steps=2", "participation.fraction=0.5", *MOMENTUM),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_signal_and_then_resuming_changes_nothing(
    name: str, pool: RankPool, tmp_path: Path
) -> None:
    """Every algorithm, stopped by a signal to one rank of two, goes on on three and then on one."""
    run = [*DIGITS, *RUNS[name]]
    assert pool.run(2, train, [*run, f"run.dir={tmp_path / 'whole'}"]) == [0, 0]
    again = [*run, f"run.dir={tmp_path / 'cut'}", "run.resume=auto"]
    assert pool.run(2, stopped, again, 1, 7, signal.SIGTERM) == [75, 75]
    status = json.loads((tmp_path / "cut" / "status.json").read_text())
    assert status["exit_code"] == 75
    assert "SIGTERM after round" in status["reason"]
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert pool.run(3, stopped, again, 0, 15, signal.SIGUSR1) == [75] * 3
    assert pool.run(1, train, again) == [0]
    assert_same(tmp_path / "whole", tmp_path / "cut")
    rounds = [row["round"] for row in rows(tmp_path / "cut", "round")]
    assert rounds == list(range(1, ROUNDS + 1))
    resumed = json.loads((tmp_path / "cut" / "env.json").read_text())["resumed"]
    assert [one["ranks_before"] for one in resumed] == [2, 3]
    whole, cut = (
        json.loads((tmp_path / which / "summary.json").read_text())["bytes_per_client"]
        for which in ("whole", "cut")
    )
    assert cut == whole


# -- on one rank: what can be wrong --------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints after rounds 18 and 24."""
    folder = tmp_path_factory.mktemp("done") / "run"
    assert main([*QUIET, *DIGITS, *RUNS["ditto"], f"run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A copy of it that looks as if it had been killed before the end."""
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    (folder / "summary.json").unlink()
    (folder / "status.json").unlink()
    return folder


def go_on(folder: Path, *more: str) -> int:
    arguments = [*QUIET, *DIGITS, *RUNS["ditto"], f"run.dir={folder}", "run.resume=auto"]
    return main([*arguments, *more])


FILES = ("client_00003.safetensors", "shared.safetensors", "config.yaml", "logger.json",
         "logger.safetensors", "manifest.json")  # fmt: skip


@pytest.mark.parametrize("harm", ["flipped", "cut", "removed"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    name: str, harm: str, done: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = copy / "checkpoints" / "round-000000024"
    path = last / name
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif harm == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    assert go_on(copy) == 0
    said = capsys.readouterr().out
    assert f"checkpoint round-000000024 is not used: {path}" in said
    assert "goes on after round 18" in said
    assert_same(done, copy)


def test_no_good_checkpoint_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (copy / "checkpoints").iterdir():
        (folder / "client_00000.safetensors").write_bytes(b"")
    before = sorted(path.name for path in (copy / "checkpoints").iterdir())
    assert go_on(copy) == 2
    assert "no checkpoint is good" in capsys.readouterr().err
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == before


def test_a_log_that_lost_rows_makes_an_older_checkpoint_count(
    done: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    keep = next(k for k, line in enumerate(lines) if b'"round": 22' in line)
    path.write_bytes(b"".join(lines[:keep]) + lines[keep][:20])
    assert go_on(copy) == 0
    assert "metrics.jsonl has" in capsys.readouterr().out
    assert_same(done, copy)


def test_rows_after_the_checkpoint_are_written_once(done: Path, copy: Path) -> None:
    """A run that was killed has rows after its last checkpoint, the last one cut; they are replaced."""
    shutil.rmtree(copy / "checkpoints" / "round-000000024")
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "round", "rou')
    assert go_on(copy) == 0
    assert_same(done, copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimizer.lr=0.01", "optimizer.lr 0.003 -> 0.01"),
        ("run.seed=1", "run.seed 0 -> 1"),
        ("algorithm.lambda=0.5", "algorithm.lambda 1.0 -> 0.5"),
        ("run.rounds=12", "already after round 24"),
        ("run.rounds=30", "one_cycle spreads over them"),
    ],
)
def test_another_config_is_refused_with_the_key(
    change: str, words: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copy / "metrics.jsonl").read_bytes()
    assert go_on(copy, change) == 2
    assert words in capsys.readouterr().err
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_a_key_that_the_earlier_version_did_not_have_has_its_default() -> None:
    now = load_config(None, DIGITS)
    old = yaml.safe_load(now.to_yaml())
    assert resume_differences(now, old) == []
    del old["task"]["order"], old["algorithm"]["midpoint_data"]
    assert resume_differences(now, old) == []
    other = load_config(None, [*DIGITS, "task.order=shuffled"])
    assert resume_differences(other, old) == ["task.order clusters -> shuffled"]
    old["task"]["gone"], old["run"]["lost"] = 3, 4
    assert resume_differences(now, old) == ["run.lost 4 -> unset", "task.gone 3 -> unset"]


def test_a_finished_run_is_left_alone(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    assert go_on(done) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_a_run_goes_on_for_more_rounds_and_from_another_folder(tmp_path: Path) -> None:
    """N rounds and N more in another folder equal 2 N rounds; the first folder is unchanged."""
    common = [*QUIET, *DIGITS, *MOMENTUM, "run.eval_every=4", "run.log_weights_every=4"]
    assert main([*common, f"run.dir={tmp_path / 'whole'}"]) == 0
    assert main([*common, f"run.dir={tmp_path / 'half'}", "run.rounds=12"]) == 0
    before = (tmp_path / "half" / "metrics.jsonl").read_bytes()
    more = [f"run.dir={tmp_path / 'more'}", f"run.resume={tmp_path / 'half'}"]
    assert main([*common, *more]) == 0
    assert (tmp_path / "half" / "metrics.jsonl").read_bytes() == before
    ended = [row for row in log(tmp_path / "more") if row["event"] != "warning"]
    assert ended == [row for row in log(tmp_path / "whole") if row["event"] != "warning"]
    for name, value in models(tmp_path / "whole").items():
        assert np.array_equal(value, models(tmp_path / "more")[name]), name


def test_auto_starts_where_there_is_nothing(tmp_path: Path) -> None:
    assert go_on(tmp_path / "fresh") == 0


def test_auto_starts_again_what_was_killed_before_its_first_checkpoint(
    done: Path, copy: Path
) -> None:
    shutil.rmtree(copy / "checkpoints")
    assert go_on(copy) == 0
    assert_same(done, copy)


def test_auto_does_not_replace_another_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "checkpoints")
    assert go_on(copy, "run.seed=7") == 2
    assert "holds another run (run.seed 0 -> 7) and no checkpoint" in capsys.readouterr().err
    assert (copy / "metrics.jsonl").exists()


def test_a_launchers_restart_goes_on_by_itself(
    done: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert go_on(copy, "run.resume=never") == 0
    assert_same(done, copy)


@pytest.mark.parametrize(
    ("key", "value"), [("versions", []), ("round", True), ("data", 5), ("ranks", "2")]
)
def test_a_manifest_with_other_types_is_refused_even_with_its_digest(
    copy: Path, key: str, value: object
) -> None:
    folder = copy / "checkpoints" / "round-000000024"
    path = folder / schema.MANIFEST_FILE
    assert checkpoint.read_manifest(folder).clients == 8
    content = json.loads(path.read_text()) | {key: value}
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path.write_text(json.dumps(content | {"sha256": digest}, indent=1) + "\n")
    with pytest.raises(checkpoint.Damaged, match="is not as it was written"):
        checkpoint.read_manifest(folder)


def test_ranks_that_torchrun_starts_again_as_nodes_come_and_go_go_on_by_themselves(
    done: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torchrun does not count these starts; env.json names the torchrun that started the run."""
    torchrun = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    path = copy / "env.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job": "mine"}))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert go_on(copy, "run.resume=never") == 2
    assert "already holds a run" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert go_on(copy, "run.resume=never") == 0
    assert_same(done, copy)


def test_a_path_below_home_is_a_path(
    done: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves the ~ of `run.resume=~/run` as it is."""
    monkeypatch.setenv("HOME", str(copy.parent))
    assert go_on(copy, f"run.resume=~/{copy.name}") == 0
    assert_same(done, copy)


def test_a_path_that_is_no_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go_on(tmp_path / "run", f"run.resume={tmp_path / 'nowhere'}") == 2
    assert "neither never, auto, a checkpoint nor a run folder" in capsys.readouterr().err
    assert go_on(tmp_path / "run", f"run.resume={300 * 'x'}") == 2
    assert f"run.resume={300 * 'x'} cannot be read: File name too long" in capsys.readouterr().err


def test_only_the_newest_are_kept(done: Path) -> None:
    names = [path.name for path in checkpoint.checkpoints(done / "checkpoints")]
    assert names == ["round-000000024", "round-000000018"]
    assert not list((done / "checkpoints").glob("*.part"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "are free; make room"),
        (
            errno.EDQUOT,
            "and your disk quota is used up (`quota -s` may show it); ask for more, or make room",
        ),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, words: str
) -> None:
    """The disk is full from round 12 on: the run continues with a warning, or ends, as configured."""
    real = checkpoint.write

    def full(path: Path, content: bytes) -> FileDigest:
        if "round-000000006" not in str(path) and path.name.startswith("client_00001"):
            raise OSError(code, os.strerror(code))
        return real(path, content)

    run = [*QUIET, *DIGITS]
    with mock.patch.object(checkpoint, "write", full):
        assert main([*run, f"run.dir={tmp_path / 'on'}"]) == 0
        said = capsys.readouterr().out
        assert "no checkpoint after round 12: rank 0:" in said
        assert words in said
        assert ("are free" in said) == (code == errno.ENOSPC), "a quota counts, not the disk"
        assert "the last good one is" in said
        stop = "run.on_failed_checkpoint=stop"
        assert main([*run, f"run.dir={tmp_path / 'off'}", stop]) == 1
    for name in ("on", "off"):
        held = [path.name for path in (tmp_path / name / "checkpoints").iterdir()]
        assert held == ["round-000000006"]


@pytest.mark.parametrize(("free", "copies"), [(10**9, 1), (10**4, 0)])
def test_a_copy_in_memory_is_made_only_where_it_fits(
    tmp_path: Path, free: int, copies: int
) -> None:
    """The checkpoint has more than 5 kB, and a copy may take half of the rank's memory."""
    asked = []

    def free_memory(ranks: int) -> int:
        asked.append(ranks)
        return free

    write = PendingCheckpoint.write_in_background
    with (
        mock.patch("cobo_dist.checkpoint.writer.free_memory", free_memory),
        mock.patch.object(
            PendingCheckpoint, "write_in_background", autospec=True, side_effect=write
        ) as copied,
    ):
        assert main([*QUIET, *DIGITS, "run.checkpoint_every=0", f"run.dir={tmp_path / 'run'}"]) == 0
    assert copied.call_count == copies
    assert asked == [1], "the ranks of this host"


def test_any_failure_in_the_thread_that_writes_leaves_no_checkpoint(tmp_path: Path) -> None:
    """Such as one that a GPU reports late: a checkpoint without some of its files would look complete."""
    real = checkpoint.pack

    def broken(tensors: dict[str, Any]) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("device-side\nassert")
        return real(tensors)

    run = [*QUIET, *DIGITS, f"run.dir={tmp_path / 'run'}", "run.on_failed_checkpoint=stop"]
    with mock.patch.object(checkpoint, "pack", broken):
        assert main(run) == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (
        "no checkpoint after round 6: rank 0: RuntimeError: device-side assert" in status["reason"]
    )
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "apart"), [(signal.SIGTERM, 5.0), (signal.SIGINT, 1.0)])
def test_a_signal_twice_at_once_is_one_and_later_ends_the_process(
    number: signal.Signals, apart: float
) -> None:
    """A launcher passes on what a cluster or a terminal sends to all; a person asks again after a while."""
    with mock.patch("os._exit") as ended, mock.patch("time.monotonic") as timer:
        with Signals() as signals:
            for now, which in (
                (90.0, signal.SIGUSR1),
                (100.0, number),
                (100.0 + apart, number),
            ):
                timer.return_value = now
                signal.raise_signal(which)
            assert signals.caught == signal.SIGUSR1, "the first"
            ended.assert_not_called()
            timer.return_value = 100.1 + apart
            signal.raise_signal(number)
        ended.assert_called_once_with(128 + number)


def test_a_sigterm_while_a_failure_is_written_down_is_survived(tmp_path: Path) -> None:
    """Launchers end all ranks at once when one has died: rank 0 still reports the reason."""

    def dies(self: MetricsBuffer, *rest: Any) -> None:
        raise LostContact("rank 0 lost contact with rank 1")

    def report(self: RunDir, *rest: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with (
        mock.patch.object(MetricsBuffer, "round", dies),
        mock.patch.object(RunDir, "error_report", report),
    ):
        assert main([*QUIET, *DIGITS, f"run.dir={tmp_path / 'run'}"]) == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["reason"] == "rank 0 lost contact with rank 1; this was in round 1"


def test_what_depends_on_the_number_of_rounds_is_said_by_the_sections(tmp_path: Path) -> None:
    """A key of a plug-in that is named as one of another algorithm is not taken for it."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from cobo_dist import *\n@register.algorithm('mine')\nclass Mine(Algorithm):\n"
        "    class Config(AlgorithmSection):\n        fedavg_share: float = 0.5\n"
        "    def round(self, t): ...\n"
    )
    for given, why in {
        "algorithm.name=finetuned_fedavg": "fedavg_share=0.5: clients train alone",
        "optimizer.schedule=cosine": "optimizer.schedule=cosine spreads",
        "optimizer.schedule=step": "",
        "algorithm.sampling.name=mixed": "algorithm.sampling.name=mixed switches",
        "algorithm.sampling.name=time": "",
        f"plugins={plugin} algorithm.name=mine": "",
    }.items():
        old, new = (load_config(None, [*given.split(), f"run.rounds={t}"]) for t in (10, 20))
        (*found,) = resume_differences(new, yaml.safe_load(old.to_yaml()))
        assert len(found) == bool(why), found
        assert why in "".join(found)


def test_the_config_of_a_moved_run_folder_does_not_start_anew(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(done, moved)
    given = ["--config", str(moved / "config.yaml"), "run.resume=auto"]
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"set run.dir={moved} if the folder was moved" in line
    assert main([*given, f"run.dir={moved}", "--show-run-dir"]) == 0
    assert main(["--config", str(done / "config.yaml"), "run.resume=auto", "--show-run-dir"]) == 0
