"""What the doctor does on every rank: collect facts, try links and disks, and let rank 0 diagnose."""

from __future__ import annotations

import json
import math
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

from cobo_dist.comm.session import Session, check_backend, open_session
from cobo_dist.comm.startup.devices import choose_device
from cobo_dist.comm.startup.interfaces import gloo_endpoint
from cobo_dist.comm.startup.launch_env import Launch, check_open_files
from cobo_dist.comm.startup.link_benchmark import measure
from cobo_dist.config import Config
from cobo_dist.errors import ConfigError
from cobo_dist.gpu_status import facts as gpu_facts
from cobo_dist.host import core_quota, free_memory, open_files_limit
from cobo_dist.preflight.diagnose import Finding, RankInfo, diagnose
from cobo_dist.preflight.gpus import gpus
from cobo_dist.storage.environment import describe_environment
from cobo_dist.training.preparation import Prepared, prepare, refuse_unusable_folder, set_up_torch

MARKER_WAIT_SECONDS = 2.0
"""How long a rank waits to see rank 0's file: a network disk may show it late."""


def examine(config: Config, launch: Launch) -> list[Finding]:
    """Start as a run would, check everything, leave nothing behind; return the findings, on every rank.

    Raises:
        ConfigError: the ranks cannot connect.
        RunFailure: a rank lost contact with another.
    """
    check_open_files(launch)
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
    # Links are measured between two ranks at a time, and without what comm.check costs.
    comm = config.comm.model_copy(update={"check": False})
    with open_session(launch, comm, device) as session:
        set_up_torch(config.run, launch.cores, config.comm.deterministic, device)
        needed = bytes_needed(
            prepared, config.run.dtype, config.run.keep_checkpoints, launch.world_size
        )
        return probe(session, prepared, config.run_dir, needed, refusals, config.run.autocast)


def probe(
    session: Session,
    prepared: Prepared,
    run_dir: Path,
    needed: tuple[int, int],
    refusals: Sequence[str],
    autocast: str = "none",
) -> list[Finding]:
    """Collect what all ranks report, measure links, and return rank 0's findings on every rank.

    `needed`: bytes of disk and memory, as `bytes_needed`; `refusals`: why this rank would refuse to run.
    """
    transport, place = session.transport, nearest(run_dir)
    marker = transport.broadcast(_leave_marker(place).encode() if transport.rank == 0 else b"")
    try:
        mine = replace(
            _info(session, prepared, place, needed, refusals),
            sees_marker=_sees(Path(marker.decode())),
        )
        records = transport.gather(json.dumps(asdict(mine)).encode())
    finally:
        transport.broadcast(b"")  # rank 0 removes the file only after all have looked for it
        if transport.rank == 0 and marker:
            with suppress(OSError):
                os.unlink(marker)
    links, measured = measure(transport, session.device)
    found: list[Finding] = []
    if transport.rank == 0:
        ranks = [_read(one) for one in records]
        found = [*diagnose(ranks, links, measured, str(run_dir)), *gpus(ranks, autocast)]
    record = transport.broadcast(json.dumps([asdict(one) for one in found]).encode())
    return [Finding(**one | {"more": tuple(one["more"])}) for one in json.loads(record)]


def _info(
    session: Session,
    prepared: Prepared,
    place: Path,
    needed: tuple[int, int],
    refusals: Sequence[str],
) -> RankInfo:
    device, launch = session.device, session.launch
    on_gpu = device.type == "cuda"
    endpoint = gloo_endpoint(os.environ)
    unwritable, free = try_to_write(place)
    disk, memory = needed
    return RankInfo(
        rank=launch.rank,
        host=os.uname().nodename,
        device=str(device),
        gpu=str(torch.cuda.get_device_properties(device).uuid) if on_gpu else "",
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        cores=tuple(sorted(os.sched_getaffinity(0))),
        quota=core_quota(),
        memory=free_memory(launch.local_world_size),
        memory_needed=memory,
        open_files=open_files_limit(),
        threads=torch.get_num_threads(),
        versions=describe_environment(device).versions,
        address=endpoint.address,
        interface=endpoint.interface,
        folder=str(place),
        unwritable=unwritable,
        free=free,
        needed=disk,
        sees_marker=False,
        data=prepared.refusal or "",
        fingerprint=prepared.problem.data if prepared.problem else "",
        refusals=tuple(refusals),
        card=gpu_facts(device),
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


def bytes_needed(
    prepared: Prepared, dtype: str, keep_checkpoints: int, ranks: int
) -> tuple[int, int]:
    """Return about how many bytes all ranks will write, and one keeps in memory; 0 where unknown.

    Files are models, and checkpoints with two moments each; a rank keeps models, gradients and moments.
    """
    if prepared.problem is None:
        return 0, 0
    task = prepared.problem.task
    size = sum(one.numel() for one in task.model().parameters() if one.requires_grad)
    row = size * torch.finfo(getattr(torch, dtype)).bits // 8
    disk = task.clients * row * (1 + 3 * (keep_checkpoints + 1))
    return disk, math.ceil(task.clients / ranks) * row * 4


def _leave_marker(folder: Path) -> str:
    """Make a file that other hosts look for; return its path, empty where nothing can be written."""
    path = folder / f".cobo-doctor-{secrets.token_hex(8)}"
    try:
        path.touch(exist_ok=False)
    except OSError:
        return ""
    return str(path)


def _sees(marker: Path) -> bool:
    """Return whether the file is seen on this host within `MARKER_WAIT_SECONDS`."""
    until = time.monotonic() + MARKER_WAIT_SECONDS
    while not (seen := marker.name != "" and marker.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    return seen
