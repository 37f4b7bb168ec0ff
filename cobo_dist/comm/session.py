"""A session: process group or MPI, device and transport, opened together and closed on every path."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

# Its functions have the default group at import time as a default argument. torch imports the module itself
# at some time; if that were while ranks are connected, the group and its threads would outlive the session
# and could abort the process as Python ends. So it is imported here, before any group exists.
import torch.distributed.nn.functional
from pydantic import Field
from torch.distributed import Store  # type: ignore[attr-defined]

from cobo_dist.comm.startup.devices import wire_device
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.startup.rendezvous import connect
from cobo_dist.comm.transports.base import SoloTransport, Transport
from cobo_dist.comm.transports.checked_transport import CheckedTransport
from cobo_dist.comm.transports.mpi_transport import open_mpi
from cobo_dist.comm.transports.staged_transport import through_cpu
from cobo_dist.comm.transports.torch_transport import TorchTransport
from cobo_dist.errors import ConfigError, HostConfigError
from cobo_dist.settings import Section


class CommConfig(Section):
    """How ranks communicate."""

    backend: Literal["auto", "nccl", "gloo", "mpi"] = Field(
        "auto",
        description="nccl for CUDA devices, gloo for CPUs; auto takes the one that fits the device. "
        "mpi: the MPI of the mpirun that starts the ranks (extra mpi). gloo and mpi carry models of CUDA "
        "devices through memory of the CPU, so ranks may share a GPU",
    )
    dtype: Literal["model", "bfloat16"] = Field(
        "model",
        description="type in which models and gradients travel: model is run.dtype; bfloat16 halves the "
        "bytes of float32 and rounds what crosses ranks to 8 bits (docs/PERFORMANCE.md)",
    )
    timeout: float = Field(
        600.0, gt=0, le=1e7, description="seconds after which a silent rank counts as lost"
    )
    connect_timeout: float = Field(
        0.0,
        ge=0,
        le=1e7,
        description="seconds that ranks wait for one another at the start; 0: comm.timeout",
    )
    check: bool = Field(
        False,
        description="check what ranks send each other against NCCL's rules, whatever the backend, and end "
        "the run with the rank, peer and batch that break one; costs a little of every round",
    )
    placement: Literal["static", "adaptive"] = Field(
        "static",
        description="which rank has which clients. static: consecutive client numbers; adaptive: as "
        "clusters emerge in W, collaborators move to one rank where that saves more bytes than it costs. "
        "The results are the same",
    )
    placement_every: int = Field(
        50,
        ge=1,
        description="comm.placement=adaptive: rounds between two searches for a better placement",
    )
    deterministic: bool = Field(
        False,
        description="bitwise the same numbers on any number of ranks; slower: one thread, clients "
        "one by one, models added in client order",
    )


@dataclass(frozen=True)
class Session:
    """What one rank has while ranks are connected."""

    launch: Launch
    device: torch.device
    transport: Transport
    backend: str = ""  # what carries models and records, for people to read
    disconnect: Callable[[], None] = lambda: None
    """Close this rank's connections, so that the others notice at once that it will not go on.

    They may be waiting for this rank, which first has to find out what ended the run. Nothing can be sent
    afterwards. On NCCL this does nothing, since closing may take long there.
    """

    def agree(self, refusal: str | None, fingerprint: str = "") -> None:
        """End all ranks together if one of them cannot go on, or has another config.

        Args:
            refusal: why this rank cannot go on; None if it can.
            fingerprint: what must be the same on all ranks.

        Raises:
            ConfigError: the same on all ranks, naming the first rank that refuses.
        """
        mine = json.dumps([refusal, fingerprint, os.uname().nodename]).encode()
        verdict = ""
        records = [json.loads(record) for record in self.transport.gather(mine)]
        for rank, (reason, seen, host) in enumerate(records):
            if reason is not None:
                verdict = reason if rank == 0 else f"rank {rank} on {host}: {reason}"
            elif seen != records[0][1]:
                verdict = (
                    f"rank {rank} on {host} read another config or other data than rank 0 on "
                    f"{records[0][2]}; start all ranks with the same files and arguments"
                )
            if verdict:
                break
        if verdict := self.transport.broadcast(verdict.encode()).decode():
            raise ConfigError(verdict)


def check_backend(backend: str, launch: Launch) -> None:
    """Check that the launcher can serve the backend, before anything is read or connected.

    Raises:
        ConfigError: several ranks are to use MPI, and neither mpirun nor srun started them.
    """
    if backend == "mpi" and launch.world_size > 1 and launch.launcher not in ("mpirun", "srun"):
        raise ConfigError(
            f"comm.backend=mpi needs ranks that mpirun started, but {launch.launcher} started these; "
            f"use mpirun -n {launch.world_size} python -m cobo_dist.train ..., or comm.backend=gloo"
        )


@contextmanager
def open_session(launch: Launch, config: CommConfig, device: torch.device) -> Iterator[Session]:
    """Connect the ranks and yield the session; disconnect however the body ends.

    One rank needs no process group, and MPI uses none. On CUDA, models travel by NCCL and small records by
    gloo on the CPU.

    Raises:
        ConfigError: the ranks cannot connect, or MPI is missing or counts ranks in another way than the
            launcher; the same on all ranks.
        HostConfigError: the same, where only this rank knows the reason.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launch.world_size == 1:
        yield Session(launch, device, SoloTransport(), "none: one rank")
        return
    if config.backend == "mpi":
        with open_mpi(launch, config.timeout) as mpi:
            carrier = through_cpu(mpi, device)
            checked = CheckedTransport(carrier) if config.check else carrier
            yield Session(launch, device, checked, mpi.world.library, mpi.announce_failure)
        return
    carrier_device = wire_device(device, config.backend)
    store = connect(launch, config.connect_timeout or config.timeout, carrier_device)
    store.set_timeout(timedelta(seconds=config.timeout))
    _init_process_group(launch, config.timeout, carrier_device, store)
    transport: Transport = TorchTransport()
    if carrier_device.type == "cpu":
        transport = through_cpu(transport, device)
    if config.check:
        transport = CheckedTransport(transport, store)
    del store  # its threads end with its last reference
    try:
        if carrier_device.type == "cuda":
            yield Session(launch, device, transport, "nccl, and gloo for records")
        else:
            yield Session(launch, device, transport, "gloo", dist.destroy_process_group)
    finally:
        if isinstance(transport, CheckedTransport):
            transport.forget_store()
        if dist.is_initialized():
            dist.destroy_process_group()


def _init_process_group(launch: Launch, seconds: float, device: torch.device, store: Store) -> None:
    """Create the default process group over the store that all ranks share."""
    on_gpu = device.type == "cuda"
    started = time.monotonic()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timedelta(seconds=seconds),
            device_id=device if on_gpu else None,
        )
        if on_gpu:
            # A collective makes the communicator at once. Otherwise the first batch of point-to-point
            # operations would, and it would need all ranks.
            dist.all_reduce(torch.zeros(1, device=device))
            torch.cuda.synchronize(device)
    except (RuntimeError, ValueError) as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise HostConfigError(
            f"rank {launch.rank} of {launch.world_size} ({launch.launcher}) could not connect "
            f"through {launch.address}:{launch.port} within {time.monotonic() - started:.0f} s: "
            f"{reason}; check that GLOO_SOCKET_IFNAME names the right interface, and what other ranks say"
        ) from error
