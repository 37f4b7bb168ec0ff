"""The rendezvous: ranks connect to one store, and shake hands over it before the process group is made.

torch does not check world size and ranks at its start: an error there shows as a time-out, on every rank,
without a name. Here an error is reported once, at once, and with names (`handshake.py`).
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import socket
import threading
import time
from datetime import timedelta
from ipaddress import ip_address

import torch
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cobo_dist.comm.liveness import Liveness
from cobo_dist.comm.startup.consistency import ProcessInfo
from cobo_dist.comm.startup.handshake import Handshake, uses_agent_store
from cobo_dist.comm.startup.interfaces import (
    boot_id,
    gloo_endpoint,
    is_loopback,
    nccl_problem,
    network_namespace,
)
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.errors import ConfigError, HostConfigError, RunFailure

LOST_STORE_SECONDS = 1.0
"""How long a rank that lost the store waits for the news that rank 0 has died."""
REFUSED = "connection refused"
NOT_A_STORE = "what listens there is no run's rank 0 (set MASTER_PORT to a free port)"


class Rendezvous:
    """Brings the ranks together at one store."""

    def __init__(
        self, launch: Launch, seconds: float, device: torch.device, liveness: Liveness
    ) -> None:
        """Prepare to connect.

        Args:
            launch: this process's place in the run.
            seconds: how long ranks wait for one another, connecting to the store included.
            device: where this rank computes; on CUDA, models travel by NCCL.
            liveness: connects this rank to rank 0 while the handshake goes on.
        """
        self.launch, self.seconds, self.device, self.liveness = launch, seconds, device, liveness
        self._listening = -1  # the descriptor at which the store that this rank serves listens

    def connect(self) -> Store:
        """Return the store that all ranks share, once all have arrived and fit together.

        Raises:
            ConfigError: the same on all ranks: rank 0 reports it.
            HostConfigError: only this rank knows or can report it.
            RunFailure: a rank died meanwhile, or a signal stopped it.
        """
        launch, seconds = self.launch, self.seconds
        me = describe(launch, self.device)
        serves = launch.rank == 0 and not uses_agent_store(launch)
        store = self._serve() if serves else _join(launch, me, seconds)
        try:
            attempt = Handshake(store, launch, me, seconds, self.liveness).run()
        except (RuntimeError, ValueError) as error:  # the store is gone, perhaps with rank 0
            if (failure := self.liveness.failure(LOST_STORE_SECONDS)) is not None:
                raise failure from error
            raise _lost_store(launch, _first_line(error)) from error
        return PrefixStore(f"session/{attempt}", store)

    def stop_listening(self) -> None:
        """Accept no further connection: only the ranks of this run use the store from here on.

        torch has no call for this. It waits for callers by the kernel's epoll, which forgets a socket that is
        closed; so the socket's descriptor can be given to a file that nobody can connect to.
        """
        if self._listening >= 0:
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), self._listening, inheritable=False)
            self._listening = -1

    def _serve(self) -> TCPStore:
        """Return the store that this rank serves for all."""
        launch = self.launch
        try:
            self._listening = _listen(launch).detach()  # the store will close it
            return TCPStore(
                launch.address, launch.port, launch.world_size, is_master=True,
                timeout=timedelta(seconds=self.seconds), wait_for_workers=False,
                master_listen_fd=self._listening,
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError, OverflowError) as error:
            raise HostConfigError(_describe_no_store(launch, error)) from error


def describe(launch: Launch, device: torch.device) -> ProcessInfo:
    """Return this process's description of itself."""
    endpoint = gloo_endpoint(os.environ)
    on_gpu = device.type == "cuda"
    return ProcessInfo(
        rank=launch.rank,
        world_size=launch.world_size,
        launcher=launch.launcher,
        host=os.uname().nodename,
        pid=os.getpid(),
        token=secrets.token_hex(8),
        machine=boot_id(),
        network=network_namespace(),
        backend="nccl" if on_gpu else "gloo",
        gpu=str(torch.cuda.get_device_properties(device).uuid) if on_gpu else "",
        address=endpoint.address,
        interface=endpoint.interface,
        interfaces=endpoint.known,
        problem=endpoint.problem or (nccl_problem(os.environ) if on_gpu else ""),
    )


# -- the store ---------------------------------------------------------------------------------------


def _describe_no_store(launch: Launch, error: Exception) -> str:
    """Return why rank 0 cannot serve the store."""
    text = str(error)
    if isinstance(error, OSError):
        text = f"{errno.errorcode.get(error.errno or 0)}: {error.strerror or error}"
    if "EADDRINUSE" in text or "in use" in text:
        why = "another process holds this port (perhaps another run); set MASTER_PORT to a free one"
        if launch.launcher == "mpirun":
            why = "another process took this port just now; start again"
    elif "EACCES" in text:
        why = "this port needs privileges; set MASTER_PORT to one above 1023"
    else:
        why = f"{_first_line(error)}; set MASTER_ADDR to a name or address of rank 0's host"
    return f"rank 0 cannot listen at {launch.place}: {why}"


def _listen(launch: Launch) -> socket.socket:
    """Return a socket that listens at MASTER_ADDR alone, or else at all addresses of this host.

    A name may mean another address on its own host (127.0.1.1) than on others, and an address may be one
    that a router translates. Then it listens at all addresses.
    """
    try:
        family = socket.AF_INET6 if ip_address(launch.address).version == 6 else socket.AF_INET
        return _listener(family, launch.address, launch.port)
    except ValueError:  # a name
        pass
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    if socket.has_dualstack_ipv6():
        try:
            return _listener(socket.AF_INET6, "::", launch.port)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return _listener(socket.AF_INET, "0.0.0.0", launch.port)


def _listener(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    both = address == "::"
    return socket.create_server((address, port), family=family, backlog=2048, dualstack_ipv6=both)


def _join(launch: Launch, me: ProcessInfo, seconds: float) -> TCPStore:
    """Return the store that rank 0, or torchrun, serves.

    torch only gets a port at which a process listens, since it would print a stack trace otherwise. It
    connects in a thread, since it waits for ever if the process that listens is no store.
    """
    deadline = time.monotonic() + seconds
    while (reason := _probe(launch.address, launch.port, deadline)) and time.monotonic() < deadline:
        # Random pauses: the store looks up the host name of every caller, and a name server that all
        # ranks ask at once lets some of them wait for seconds.
        time.sleep(random.uniform(0.05, 0.25))
    if reason:
        raise _error_type(launch)(_describe_no_answer(launch, me, seconds, reason))
    opened: list[TCPStore] = []
    failures: list[Exception] = []

    def open_store() -> None:
        left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
        try:
            opened.append(
                TCPStore(
                    launch.address, launch.port, launch.world_size, is_master=False, timeout=left,
                    wait_for_workers=False,
                )
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError, OverflowError) as error:
            failures.append(error)

    thread = threading.Thread(target=open_store, daemon=True)
    thread.start()
    thread.join(1.0)
    answered = time.monotonic()
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(0.25)
        if _probe(launch.address, launch.port, deadline) != REFUSED:
            answered = time.monotonic()
        elif time.monotonic() - answered > LOST_STORE_SECONDS:  # torch would go on trying
            raise _lost_store(launch, REFUSED)
    if opened:
        return opened[0]
    reason = _first_line(failures[0]) if failures else NOT_A_STORE
    raise _error_type(launch)(_describe_no_answer(launch, me, seconds, reason))


def _probe(address: str, port: int, deadline: float) -> str:
    """Return why no process listens at the address; empty if one does."""
    try:
        left = min(5.0, max(0.1, deadline - time.monotonic()))
        with socket.create_connection((address, port), timeout=left) as probe:
            if probe.getsockname() == probe.getpeername():  # TCP may connect a free port to itself
                return REFUSED
    except socket.gaierror:
        return f"this host does not know the name {address}"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _describe_no_answer(launch: Launch, me: ProcessInfo, seconds: float, reason: str) -> str:
    own = ""
    if is_loopback(launch.address):
        own = f" ({launch.address} is {me.host} itself: rank 0 must run here)"
    variable = "torchrun's --master-addr" if "TORCHELASTIC_RUN_ID" in os.environ else "MASTER_ADDR"
    return (
        f"rank 0 of {launch.world_size} was not found at {launch.place}{own} within {seconds:g} s: {reason}; "
        f"look whether it was started and what it says; set {variable} to a name or address of rank 0's "
        "host that other hosts can reach"
    )


def _lost_store(launch: Launch, reason: str) -> RunFailure:
    """Return the failure of a rank that has lost the store."""
    who = "torchrun's agent" if uses_agent_store(launch) else f"rank 0 on {launch.address}"
    line = f"{who} died while connecting, or has ended: its store at {launch.place} was lost ({reason})"
    return RunFailure(line, here_only=_reports(launch))


def _error_type(launch: Launch) -> type[ConfigError]:
    """Return the error type for what all ranks of a host find out: its first rank reports it."""
    return HostConfigError if _reports(launch) else ConfigError


def _reports(launch: Launch) -> bool:
    """Return whether this rank prints what all ranks of its host find out.

    Ranks that were started by hand do not know which ranks share their host, so each of them reports.
    """
    by_hand = launch.launcher == "torchrun" and "LOCAL_RANK" not in os.environ
    return launch.local_rank == 0 or launch.rank <= 1 or by_hand


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)
