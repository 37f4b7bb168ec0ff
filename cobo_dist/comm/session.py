"""A session: process group or MPI, device and transport, opened together and closed on every path."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Its functions have the default group at import time as a default argument. torch imports the module itself
# at some time; if that were while ranks are connected, the group and its threads would outlive the session
# and could abort the process as Python ends. So it is imported here, before any group exists.
import torch.distributed.nn.functional
from torch.distributed import Store  # type: ignore[attr-defined]

from cobo_dist.comm.config import CommConfig
from cobo_dist.comm.liveness import Liveness
from cobo_dist.comm.nccl_group import is_device_error, leave_group, uses_nccl
from cobo_dist.comm.startup.devices import wire_device
from cobo_dist.comm.startup.keepalive import noticing_lost_hosts
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.startup.rendezvous import Rendezvous
from cobo_dist.comm.startup.start_guard import StartGuard
from cobo_dist.comm.transports.base import SoloTransport, Transport
from cobo_dist.comm.transports.checked_transport import CheckedTransport
from cobo_dist.comm.transports.mpi_transport import open_mpi
from cobo_dist.comm.transports.staged_transport import through_cpu
from cobo_dist.comm.transports.torch_transport import Poll, TorchTransport
from cobo_dist.errors import EXIT_REFUSED, ConfigError, HostConfigError

CAUSE_SECONDS = 2.0
"""How long a rank whose connections broke waits for the news of which rank has ended."""
GRACE_SECONDS = 2.0
"""How long after its time-out rank 0's word may still arrive."""
NCCL_TIMEOUT_SECONDS = 120.0
"""comm.timeout with NCCL, where none is set."""
WATCHDOG_SECONDS = 60.0
"""How much later than comm.timeout torch's watchdog ends a process, which it does without a word."""


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

    liveness: Liveness = field(default_factory=Liveness)
    guard: StartGuard = field(default_factory=StartGuard)
    connect_seconds: float = 0.0
    """How long ranks wait for one another before the first round."""

    def wait_for_all(self, rank_0_seconds: float = 0.0) -> None:
        """Wait until all ranks have read their data. Signals are handled meanwhile.

        `rank_0_seconds`: how long rank 0 may take beside reading data.

        Raises:
            ConfigError: some ranks did not come in time, on rank 0, which tells the others.
            RunFailure: a rank failed meanwhile, or rank 0 gave up.
        """
        grace = GRACE_SECONDS + rank_0_seconds if self.launch.rank else 0.0
        missing = self.liveness.wait_for_all(self.launch.world_size, self.connect_seconds + grace)
        if missing:
            names = ", ".join(f"rank {rank} on {self.liveness.hosts[rank]}" for rank in missing)
            line = (
                f"{names} did not finish reading data within {self.connect_seconds:g} s; look at what "
                "delays it, or raise comm.connect_timeout"
            )
            self.liveness.report(line, EXIT_REFUSED)
            raise ConfigError(line)

    def agree(self, refusal: str | None, read: Mapping[str, str] | None = None) -> None:
        """End all ranks together if one of them cannot go on, or has another config.

        Args:
            refusal: why this rank cannot go on; None if it can.
            read: digests of what must be the same on all ranks, by what it is in words.

        Raises:
            ConfigError: the same on all ranks, naming the first rank that refuses.
        """
        mine = json.dumps([refusal, dict(read or {}), os.uname().nodename]).encode()
        verdict = ""
        records = [json.loads(record) for record in self.transport.gather(mine)]
        for rank, (reason, seen, host) in enumerate(records):
            if reason is not None:
                verdict = reason if rank == 0 else f"rank {rank} on {host}: {reason}"
            elif seen != (first := records[0][1]):
                other = next(one for one in (*first, *seen) if first.get(one) != seen.get(one))
                verdict = (
                    f"rank {rank} on {host} read {other} than rank 0 on "
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
def open_session(
    launch: Launch, config: CommConfig, device: torch.device, guard: StartGuard | None = None
) -> Iterator[Session]:
    """Connect the ranks and yield the session; disconnect however the body ends.

    One rank needs no process group, and MPI uses none. On CUDA, models travel by NCCL and small records by
    gloo on the CPU. `guard` ends this process where a signal, or another rank's end, ends the start.

    Raises:
        ConfigError: the ranks cannot connect, or MPI is missing or counts ranks in another way than the
            launcher; the same on all ranks.
        HostConfigError: the same, where only this rank knows the reason.
        RunFailure: another rank died meanwhile, or a signal stopped it.
    """
    guard = guard or StartGuard()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launch.world_size == 1:
        solo = _checked(SoloTransport(), config)
        yield Session(launch, device, solo, "none: one rank", guard=guard)
        return
    if config.backend == "mpi":
        with open_mpi(launch, config.timeout) as mpi:
            aware = mpi.world.is_cuda_aware
            checked = _checked(mpi if aware else through_cpu(mpi, device), config)
            library = f"{mpi.world.library}{', on memory of GPUs' if aware else ''}"
            session = Session(launch, device, checked, library, mpi.announce_failure, guard=guard)
            session.liveness.hosts = _all_hosts(checked)
            yield session
        return
    seconds = config.connect_timeout or config.timeout
    carrier_device = wire_device(device, config.backend)
    with closing(Liveness(launch.rank)) as liveness:
        rendezvous = Rendezvous(launch, seconds, carrier_device, liveness)
        store = rendezvous.connect()
        guard.attach(liveness, is_last_resort=uses_nccl(carrier_device))
        _init_process_group(launch, config.timeout, carrier_device, store, liveness)
        rendezvous.stop_listening()
        liveness.stop_listening()
        liveness.activity = "before the first round"
        on_nccl = uses_nccl(carrier_device)
        transport: Transport = TorchTransport(Poll(liveness, config.timeout) if on_nccl else None)
        if not on_nccl:
            transport = through_cpu(transport, device)
        del store  # its threads end with its last reference
        failed = True
        try:
            yield Session(
                launch, device, _checked(transport, config),
                "nccl, and gloo for records" if on_nccl else "gloo",
                (lambda: None) if on_nccl else dist.destroy_process_group,
                liveness, guard, seconds,
            )  # fmt: skip
            failed = False
        finally:
            guard.detach()
            leave_group(failed and on_nccl)


def _checked(transport: Transport, config: CommConfig) -> Transport:
    return CheckedTransport(transport) if config.check else transport


def settle_timeout(config: CommConfig, device: torch.device) -> CommConfig:
    """Return the section with the time-out that NCCL gets where none is set."""
    if not uses_nccl(device) or "timeout" in config.model_fields_set:
        return config
    return config.model_copy(update={"timeout": NCCL_TIMEOUT_SECONDS})


def _all_hosts(transport: Transport) -> list[str]:
    """Return the host of each rank, on every rank."""
    hosts = [record.decode() for record in transport.gather(os.uname().nodename.encode())]
    return [str(host) for host in json.loads(transport.broadcast(json.dumps(hosts).encode()))]


def _place(launch: Launch, seconds: float, store: Store) -> dict[str, Any]:
    """Return what every kind of process group is made from."""
    return {
        "store": store,
        "rank": launch.rank,
        "world_size": launch.world_size,
        "timeout": timedelta(seconds=seconds),
    }


def _start_nccl(launch: Launch, seconds: float, device: torch.device, store: Store) -> None:
    """Create the group of NCCL for models and gloo for records."""
    place = _place(launch, seconds, store)
    dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, **place)
    # A collective makes the communicator at once. Otherwise the first batch of point-to-point
    # operations would, and it would need all ranks.
    dist.all_reduce(torch.zeros(1, device=device))
    torch.cuda.synchronize(device)


def _init_process_group(
    launch: Launch, seconds: float, device: torch.device, store: Store, liveness: Liveness
) -> None:
    """Create the default process group over the store that all ranks share."""
    store.set_timeout(timedelta(seconds=seconds))
    started = time.monotonic()
    try:
        if uses_nccl(device):
            _start_nccl(launch, seconds + WATCHDOG_SECONDS, device, store)
        else:
            with noticing_lost_hosts(seconds):
                dist.init_process_group("gloo", **_place(launch, seconds, store))
    except (RuntimeError, ValueError) as error:
        leave_group(uses_nccl(device))
        if is_device_error(error):
            raise
        if (failure := liveness.failure(CAUSE_SECONDS)) is not None:
            raise failure from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        line = (
            f"rank {launch.rank} of {launch.world_size} ({launch.launcher}) could not connect "
            f"through {launch.address}:{launch.port} within {time.monotonic() - started:.0f} s: "
            f"{reason}; check that GLOO_SOCKET_IFNAME names the right interface, and what other ranks say"
        )
        liveness.report(line, EXIT_REFUSED)
        raise HostConfigError(line) from error
