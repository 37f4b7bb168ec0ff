"""How ranks find each other: one store, and a roll call over it before the process group is made.

torch's own start takes world size and ranks on trust: what is wrong shows as a time-out, on every rank,
without a name. Here what is wrong is said once, at once, and by name (`gathering.py`).
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

from cobo_dist.comm.startup.consistency import ProcessInfo
from cobo_dist.comm.startup.handshake import Handshake, is_agents
from cobo_dist.comm.startup.interfaces import (
    gloo_endpoint,
    is_loopback,
    machine,
    nccl_problem,
    network_stack,
)
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.errors import ConfigError, HostConfigError

NO_STORE = "what listens there is no run's rank 0 (set MASTER_PORT to a free port)"


def connect(launch: Launch, seconds: float, device: torch.device) -> Store:
    """Return the store that all ranks share, once all are there and can go together.

    Args:
        launch: this process among all.
        seconds: how long ranks wait for one another, the store included.
        device: where this rank computes; on CUDA models will go by NCCL.

    Raises:
        ConfigError: the same on all ranks: rank 0 says why.
        HostConfigError: what only this rank can know or say.
    """
    me = describe(launch, device)
    store = _serve(launch, seconds) if _serves(launch) else _join(launch, me, seconds)
    try:
        number = Handshake(store, launch, me, seconds).call()
    except (RuntimeError, ValueError) as error:  # the store, or rank 0 with it, has gone
        raise _said_by(launch)(
            f"the store at {launch.place} was lost while ranks were gathering: {_first_line(error)}; see "
            "what rank 0 says"
        ) from error
    return PrefixStore(f"session/{number}", store)


def describe(launch: Launch, device: torch.device) -> ProcessInfo:
    """Return how this process sees itself."""
    endpoint = gloo_endpoint(os.environ)
    on_gpu = device.type == "cuda"
    return ProcessInfo(
        rank=launch.rank,
        world_size=launch.world_size,
        launcher=launch.launcher,
        host=os.uname().nodename,
        pid=os.getpid(),
        token=secrets.token_hex(8),
        machine=machine(),
        network=network_stack(),
        backend="nccl" if on_gpu else "gloo",
        gpu=str(torch.cuda.get_device_properties(device).uuid) if on_gpu else "",
        address=endpoint.address,
        interface=endpoint.interface,
        interfaces=endpoint.known,
        problem=endpoint.problem or (nccl_problem(os.environ) if on_gpu else ""),
    )


# -- the store ---------------------------------------------------------------------------------------


def _serves(launch: Launch) -> bool:
    """Whether this rank serves the store."""
    return launch.rank == 0 and not is_agents(launch)


def _serve(launch: Launch, seconds: float) -> TCPStore:
    try:
        return TCPStore(
            launch.address, launch.port, launch.world_size, is_master=True,
            timeout=timedelta(seconds=seconds), wait_for_workers=False,
            master_listen_fd=_listen_only_there(launch),
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError, OverflowError) as error:
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
        raise HostConfigError(f"rank 0 cannot listen at {launch.place}: {why}") from error


def _listen_only_there(launch: Launch) -> int | None:
    """Return the descriptor of a socket that listens at MASTER_ADDR alone; None for all of the host's.

    A name may mean another address on its own host (127.0.1.1) than on others, and an address may be one
    that a router gave to the host: then torch listens at all.
    """
    try:
        family = socket.AF_INET6 if ip_address(launch.address).version == 6 else socket.AF_INET
    except ValueError:
        return None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((launch.address, launch.port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return None
            raise
        listener.listen(2048)
        return listener.detach()  # the store closes it


def _join(launch: Launch, me: ProcessInfo, seconds: float) -> TCPStore:
    """Return the store that rank 0, or torchrun, serves.

    Only a port that somebody listens at is handed to torch, which would complain with its stack; and
    in a thread, since torch waits without end where what listens is no store.
    """
    until = time.monotonic() + seconds
    while (why := _knock(launch.address, launch.port, until)) and time.monotonic() < until:
        # Not in step: the store looks up the name of every caller, and a name server that is asked by all
        # at once lets some of them wait for seconds.
        time.sleep(random.uniform(0.05, 0.25))
    if why:
        raise _said_by(launch)(_no_answer(launch, me, seconds, why))
    opened: list[TCPStore] = []
    failures: list[Exception] = []

    def open_store() -> None:
        left = timedelta(seconds=max(1.0, until - time.monotonic()))
        try:
            opened.append(
                TCPStore(
                    launch.address, launch.port, launch.world_size, is_master=False, timeout=left,
                    wait_for_workers=False,
                )
            )  # fmt: skip
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=open_store, daemon=True)
    thread.start()
    thread.join(max(1.0, until - time.monotonic()))
    if opened:
        return opened[0]
    why = _first_line(failures[0]) if failures else NO_STORE
    raise _said_by(launch)(_no_answer(launch, me, seconds, why))


def _knock(address: str, port: int, until: float) -> str:
    """Return why nobody listens at the address; empty if somebody does."""
    try:
        left = min(5.0, max(0.1, until - time.monotonic()))
        with socket.create_connection((address, port), timeout=left) as knock:
            if knock.getsockname() == knock.getpeername():  # TCP may connect a free port to itself
                return "connection refused"
    except socket.gaierror:
        return f"this host does not know the name {address}"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _no_answer(launch: Launch, me: ProcessInfo, seconds: float, why: str) -> str:
    own = ""
    if is_loopback(launch.address):
        own = f" ({launch.address} is {me.host} itself: rank 0 must run here)"
    return (
        f"rank 0 of {launch.world_size} was not found at {launch.place}{own} within {seconds:g} s: {why}; "
        f"look whether it was started and what it says; {_remedy(launch)}"
    )


def _remedy(launch: Launch) -> str:
    where = "torchrun's --master-addr" if "TORCHELASTIC_RUN_ID" in os.environ else "MASTER_ADDR"
    return f"set {where} to a name or address of rank 0's host that other hosts can reach"


def _said_by(launch: Launch) -> type[ConfigError]:
    """Return the refusal for what all ranks of a host find out alike: its first rank says it.

    Ranks that were started by hand do not know their neighbours, so each of them speaks.
    """
    by_hand = launch.launcher == "torchrun" and "LOCAL_RANK" not in os.environ
    speaks = launch.local_rank == 0 or launch.rank <= 1 or by_hand
    return HostConfigError if speaks else ConfigError


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)
