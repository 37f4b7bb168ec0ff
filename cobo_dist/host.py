"""What this host grants the process: memory, cores and open files, within its control groups.

A container or a batch job is a control group with limits of its own, often inside other groups. The tightest
limit counts. psutil reports the host as a whole.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

CGROUP_ROOT, CGROUP_MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


# -- memory and cores ----------------------------------------------------------------------------------


def free_memory(
    ranks: int = 1, root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP
) -> int:
    """Return the bytes that are free for each of `ranks` ranks on this host: the least of host and groups.

    `root` and `membership`: where the system shows control groups, and the groups of this process.
    """
    free = float(psutil.virtual_memory().available)
    for group in control_groups("memory", root, membership):
        limit = min(_number(group / name) for name in ("memory.max", "memory.high"))
        used, idle = "memory.current", "inactive_file"
        if not (group / used).exists():
            limit = _number(group / "memory.limit_in_bytes")
            used, idle = "memory.usage_in_bytes", "total_inactive_file"
        if limit < float("inf"):
            # Files that were read and are not in use count as used, and are dropped when memory is short.
            free = min(
                free, limit - _number(group / used, 0.0) + _entry(group / "memory.stat", idle)
            )
    return max(0, int(free)) // ranks


def core_quota(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> float:
    """Return how many cores' time the control groups grant; 0: no limit known."""
    granted = []
    for group in control_groups("cpu", root, membership):
        with suppress(OSError, ValueError):  # no such file, or "max"
            if (group / "cpu.max").exists():
                limit, period = (group / "cpu.max").read_text(encoding="ascii").split()[:2]
            else:
                limit = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
                period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
            if float(limit) > 0:
                granted.append(float(limit) / float(period))
    return min(granted, default=0.0)


def control_groups(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, inner ones first, of versions 1 and 2.

    A container may show its own group as the root while the membership has its path on the host. Such a
    path does not exist, and the root counts.
    """
    places = {root: None, root / controller: None}  # ordered, each once
    with suppress(OSError):
        for line in membership.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = root / controller if controllers else root
            inner = base / os.path.normpath(path).lstrip("/")
            places |= dict.fromkeys(one for one in (inner, *inner.parents) if base in one.parents)
    yield from sorted(filter(Path.is_dir, places), key=lambda one: -len(one.parts))


def _number(path: Path, otherwise: float = float("inf")) -> float:
    """Return the number in a file; `otherwise` where there is none, or "max"."""
    try:
        return float(int(path.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return otherwise


def _entry(path: Path, name: str) -> float:
    """Return one number of a file with a name and a number in each line; 0 where it is missing."""
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    return 0.0


# -- open files ----------------------------------------------------------------------------------------


def open_files_limit() -> int:
    """Return how many files and connections this process may have open at once (`ulimit -n`)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_open_files_limit() -> None:
    """Raise the limit of open files as far as the system allows; processes started later inherit it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
