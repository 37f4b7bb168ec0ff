"""What the host and its control groups grant: memory, cores, open files."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cobo_dist import host
from cobo_dist.errors import ConfigError, RunFailure

GiB = 1 << 30


@pytest.fixture(autouse=True)
def large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 64 GiB free, whatever this one has."""
    free = type("Memory", (), {"available": 64 * GiB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)


def group(folder: Path, **files: object) -> None:
    """Make a control group; `__` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def membership(root: Path, text: str) -> Path:
    path = root / "membership"
    path.write_text(text)
    return path


def test_without_control_groups_the_host_counts(tmp_path: Path) -> None:
    assert host.free_memory(root=tmp_path, membership=tmp_path / "none") == 64 * GiB
    assert host.free_memory(4, root=tmp_path, membership=tmp_path / "none") == 16 * GiB
    assert host.core_quota(tmp_path, tmp_path / "none") == 0.0


def test_memory_of_nested_groups_of_version_2(tmp_path: Path) -> None:
    """A job of 8 GiB holds a step without a limit, and that one a task of 20 GiB."""
    stat = f"anon 1\ninactive_file {GiB}\nactive_file 7"
    group(tmp_path / "job", memory__max=8 * GiB, memory__current=3 * GiB, memory__stat=stat)
    group(tmp_path / "job/step", memory__max="max", memory__current=GiB, memory__stat=stat)
    group(tmp_path / "job/step/task", memory__max=20 * GiB, memory__current=GiB)
    mine = membership(tmp_path, "0::/job/step/task\n")
    assert host.free_memory(root=tmp_path, membership=mine) == 6 * GiB
    assert host.free_memory(3, root=tmp_path, membership=mine) == 2 * GiB
    group(tmp_path / "job/step", memory__high=2 * GiB)
    assert host.free_memory(root=tmp_path, membership=mine) == 2 * GiB


def test_memory_of_nested_groups_of_version_1(tmp_path: Path) -> None:
    """As docker has it: version 1 beside an empty version 2, no limit being a huge number."""
    unlimited, memory = 9223372036854771712, tmp_path / "memory"
    group(memory, memory__limit_in_bytes=unlimited, memory__usage_in_bytes=0)
    group(
        memory / "docker/ab", memory__limit_in_bytes=613 << 20, memory__usage_in_bytes=500 << 20,
        memory__stat=f"inactive_file 5\ntotal_inactive_file {10 << 20}",
    )  # fmt: skip
    mine = membership(tmp_path, "9:name=systemd:/\n4:memory:/docker/ab\n0::/\n")
    assert host.free_memory(root=tmp_path, membership=mine) == 123 << 20


def test_a_container_whose_group_is_shown_as_the_root(tmp_path: Path) -> None:
    """The membership has the path on the host, which does not exist inside."""
    group(tmp_path, memory__max=GiB, memory__current=2 * GiB, cpu__max="50000 100000")
    for path in ("/docker/ab", "/../..", "/"):
        mine = membership(tmp_path, f"0::{path}\n")
        assert host.free_memory(root=tmp_path, membership=mine) == 0, "never negative"
        assert host.core_quota(tmp_path, mine) == 0.5


def test_the_cores_of_nested_groups(tmp_path: Path) -> None:
    group(tmp_path / "job", cpu__max="150000 100000")
    group(tmp_path / "job/step", cpu__max="max 100000")
    assert host.core_quota(tmp_path, membership(tmp_path, "0::/job/step\n")) == 1.5
    group(tmp_path / "cpu/slurm", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
    mine = membership(tmp_path, "5:cpu,cpuacct:/slurm\n")
    assert host.core_quota(tmp_path, mine) == 2.0
    group(tmp_path / "cpu/slurm", cpu__cfs_quota_us=-1)
    assert host.core_quota(tmp_path, mine) == 0.0


@pytest.fixture
def few_open_files() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_of_open_files_is_raised(few_open_files: int) -> None:
    assert host.open_files_limit() == 256
    host.raise_open_files_limit()
    assert host.open_files_limit() == few_open_files


@pytest.mark.parametrize("kind", [ConfigError, RunFailure])
def test_too_many_open_files_names_the_limit(
    few_open_files: int, kind: type[ConfigError | RunFailure]
) -> None:
    said = str(kind(f"out: {os.strerror(errno.EMFILE)}; name another run.dir"))
    assert "Too many open files (`ulimit -n` is 256: raise it" in said
    assert "too many open files (`ulimit" in str(kind("rank 1: too many open files"))
    assert str(kind(said)) == said, "an error that is passed on says it once"
    whole_system = f"out: {os.strerror(errno.ENFILE)}"
    assert str(kind(whole_system)) == whole_system
