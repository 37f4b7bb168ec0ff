"""Time limits of partitions, which sbatch may accept a job beyond and then never start it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from cobo_dist.errors import ConfigError


def refuse_too_long(time: str, partitions: str) -> None:
    """Check that a partition allows the job's time.

    Args:
        time: the job's --time.
        partitions: its --partition, names with commas; empty: the default one.

    Raises:
        ConfigError: none of them does; the message names the longest time. Without sinfo nothing is checked.
    """
    limits = {
        name: limit
        for name, limit in _time_limits().items()
        if (name.rstrip("*") in partitions.split(",") if partitions else name.endswith("*"))
    }
    wanted = minutes_of(time)
    if not limits or wanted is None or any(_allows(limit, wanted) for limit in limits.values()):
        return
    name, longest = max(limits.items(), key=lambda one: minutes_of(one[1]) or 0)
    raise ConfigError(
        f"--time={time} is longer than {longest}, the limit of partition {name.rstrip('*')}: the job might "
        f"wait for ever; add --time={longest} or --partition=NAME; the job then saves, requeues itself and "
        "goes on"
    )


def minutes_of(time: str) -> float | None:
    """Return the minutes of a time as SLURM writes it; None where there is no limit.

    >>> minutes_of("1-00:00:00"), minutes_of("30:00"), minutes_of("90"), minutes_of("infinite")
    (1440.0, 30.0, 90.0, None)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        return None
    days, *parts = (int(one) if one else 0 for one in found.groups())
    if found[1] or found[4]:  # hours first
        return days * 1440.0 + parts[0] * 60 + parts[1] + parts[2] / 60
    return parts[0] + parts[1] / 60


def _allows(limit: str, wanted: float) -> bool:
    most = minutes_of(limit)
    return most is None or wanted <= most


def _time_limits() -> Mapping[str, str]:
    """Return the limit of each partition; the default one's name ends in `*`. Empty without sinfo."""
    command = ["sinfo", "--noheader", "--format=%P|%l"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(
        line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 1
    )
