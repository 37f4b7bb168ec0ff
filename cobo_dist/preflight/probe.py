"""What the doctor does on every rank: gather facts, try links and disks, and let rank 0 judge."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cobo_dist.comm.session import Session, check_backend, choose_device, open_session
from cobo_dist.comm.startup.interfaces import gloo_endpoint
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.startup.link_benchmark import measure
from cobo_dist.config import Config
from cobo_dist.errors import ConfigError
from cobo_dist.preflight.diagnose import Finding, RankInfo, judge
from cobo_dist.storage.environment import describe_environment
from cobo_dist.tasks.base import Task
from cobo_dist.training.build import Prepared, prepare, refuse_unusable_folder, set_up_torch


def examine(config: Config, launch: Launch) -> list[Finding]:
    """Start as a run would, look at everything, leave nothing behind; return rank 0's findings.

    Ranks other than 0 get the findings' levels and topics too, so that all end with one exit code.

    Raises:
        ConfigError: the ranks cannot connect.
        RunFailure: contact was lost on the way.
    """
    check_backend(config.comm.backend, launch)
    refusals = []
    device = torch.device("cpu")
    try:
        device = choose_device(config.run.device, config.comm.backend, launch)
    except ConfigError as refusal:
        refusals.append(str(refusal))
    prepared = prepare(config, launch, with_folder=False)
    if launch.rank == 0:
        try:
            refuse_unusable_folder(config, launch)
        except ConfigError as refusal:
            refusals.append(str(refusal))
    with open_session(launch, config.comm, device) as session:
        set_up_torch(config, launch, device)
        return _look(config, session, prepared, refusals)


def _look(
    config: Config, session: Session, prepared: Prepared, refusals: Sequence[str]
) -> list[Finding]:
    transport, place = session.transport, nearest(config.run_dir)
    marker = transport.broadcast(_leave_marker(place).encode() if transport.rank == 0 else b"")
    try:
        mine = replace(
            _facts(config, session, prepared, refusals), sees_marker=_sees(Path(marker.decode()))
        )
        told = transport.gather(json.dumps(asdict(mine)).encode())
    finally:
        transport.broadcast(b"")  # nobody takes it away before all have looked
        if transport.rank == 0 and marker:
            with suppress(OSError):
                os.unlink(marker)
    links, words = measure(transport, session.device)
    found: list[Finding] = []
    if transport.rank == 0:
        found = judge([_read(one) for one in told], links, words, str(config.run_dir))
    record = transport.broadcast(json.dumps([asdict(one) for one in found]).encode())
    return [Finding(**one | {"more": tuple(one["more"])}) for one in json.loads(record)]


def _facts(
    config: Config, session: Session, prepared: Prepared, refusals: Sequence[str]
) -> RankInfo:
    device, launch = session.device, session.launch
    on_gpu = device.type == "cuda"
    endpoint = gloo_endpoint(os.environ)
    place = nearest(config.run_dir)
    unwritable, free = try_to_write(place)
    return RankInfo(
        rank=launch.rank,
        host=os.uname().nodename,
        device=str(device),
        gpu=str(torch.cuda.get_device_properties(device).uuid) if on_gpu else "",
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        cores=tuple(sorted(os.sched_getaffinity(0))),
        quota=core_quota(),
        threads=torch.get_num_threads(),
        versions=describe_environment().versions,
        address=endpoint.address,
        interface=endpoint.interface,
        folder=str(place),
        unwritable=unwritable,
        free=free,
        needed=_needed(config, prepared.task),
        sees_marker=False,
        data=prepared.refusal or "",
        fingerprint=prepared.data,
        refusals=tuple(refusals),
    )


def _read(record: bytes) -> RankInfo:
    held = json.loads(record)
    lists = {"cores": tuple(held["cores"]), "refusals": tuple(held["refusals"])}
    return RankInfo(**held | lists)


# -- disks -------------------------------------------------------------------------------------------


def nearest(path: Path) -> Path:
    """Return the nearest folder of the path that exists, absolute."""
    absolute = path.absolute()
    return next(part for part in (absolute, *absolute.parents) if part.is_dir())


def try_to_write(folder: Path) -> tuple[str, int]:
    """Write a little in the folder and remove it; return why that fails (empty if not) and free bytes."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"cobo_dist doctor" * 64)
            file.flush()
            os.fsync(file.fileno())
        return "", shutil.disk_usage(folder).free
    except OSError as error:
        return error.strerror or str(error), 0


def _leave_marker(folder: Path) -> str:
    """Leave a file that other hosts look for; return its path, empty where nothing can be written."""
    path = folder / f".cobo-doctor-{secrets.token_hex(8)}"
    try:
        path.touch(exist_ok=False)
    except OSError:
        return ""
    return str(path)


def _sees(marker: Path, patience: float = 2.0) -> bool:
    """Return whether the file is seen here; a network disk may show it a moment later."""
    until = time.monotonic() + patience
    while not (seen := marker.name != "" and marker.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    return seen


def _needed(config: Config, task: Task | None) -> int:
    """Return about how many bytes all ranks will write: models, and checkpoints with two moments each."""
    if task is None:
        return 0
    size = sum(one.numel() for one in task.model().parameters() if one.requires_grad)
    row = size * torch.finfo(getattr(torch, config.run.dtype)).bits // 8
    return task.clients * row * (1 + 3 * (config.run.keep_checkpoints + 1))


# -- cores -------------------------------------------------------------------------------------------


def core_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many cores' time the control group (a container, a job) grants; 0: no limit known."""
    try:
        if (root / "cpu.max").exists():
            limit, period = (root / "cpu.max").read_text(encoding="ascii").split()[:2]
        else:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text(encoding="ascii").strip()
        return max(0.0, float(limit) / float(period))
    except (OSError, ValueError):  # no such file, or "max"
        return 0.0
