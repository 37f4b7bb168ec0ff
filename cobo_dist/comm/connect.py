"""How ranks find each other: one store, and a roll call over it before the process group is made.

torch's own start takes world size and ranks on trust: what is wrong shows as a time-out, on every rank,
without a name. Here every process first tells rank 0 how it sees itself; rank 0 answers all of them with
one verdict, so that what is wrong is said once, at once, and by name. Nobody ever waits on the store with
a time-out of torch's, which prints its stack: keys are looked for until they are there.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import threading
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cobo_dist.errors import HostRefusal, Refusal

from . import reach
from .interfaces import gloo_endpoint, is_loopback, machine, nccl_problem, network_stack
from .launch import Launch
from .rollcall import View, disagreement, leaders, missing, unreachable

GRACE = 2.0  # seconds beyond the time-out in which rank 0's verdict must be there
NO_STORE = "what listens there is no run's rank 0 (set MASTER_PORT to a free port)"
OTHERS = 3.0  # seconds in which other ranks may still tell their view, once views contradict


def connect(launch: Launch, seconds: float, device: torch.device) -> Store:
    """Return the store that all ranks share, once all are there and can go together.

    Args:
        launch: this process among all.
        seconds: how long ranks wait for one another, the store included.
        device: where this rank computes; on CUDA models will go by NCCL.

    Raises:
        Refusal: the same on all ranks: rank 0 says why.
        HostRefusal: what only this rank can know or say.
    """
    me = describe(launch, device)
    store = _serve(launch, seconds) if _serves(launch) else _join(launch, me, seconds)
    try:
        _RollCall(store, launch, me, seconds).call()
    except (RuntimeError, ValueError) as error:  # the store, or rank 0 with it, has gone
        raise _said_by(launch)(
            f"the store at {_place(launch)} was lost while ranks were gathering: {_first_line(error)}; see "
            "what rank 0 says"
        ) from error
    return PrefixStore(f"session/{launch.restarts}", store)


def describe(launch: Launch, device: torch.device) -> View:
    """Return how this process sees itself."""
    endpoint = gloo_endpoint(os.environ)
    on_gpu = device.type == "cuda"
    return View(
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
    """Whether this rank serves the store; under torchrun its agent does, at the address it exports."""
    agent = (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and os.environ.get("MASTER_ADDR") == launch.address
        and os.environ.get("MASTER_PORT") == str(launch.port)
    )
    return launch.rank == 0 and not agent


def _serve(launch: Launch, seconds: float) -> TCPStore:
    try:
        return TCPStore(
            launch.address, launch.port, launch.world_size, is_master=True,
            timeout=timedelta(seconds=seconds), wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        text = str(error)
        if "EADDRINUSE" in text or "in use" in text:
            why = "another process holds this port (perhaps another run); set MASTER_PORT to a free one"
            if launch.launcher == "mpirun":
                why = "another process took this port just now; start again"
        elif "EACCES" in text:
            why = "this port needs privileges; set MASTER_PORT to one above 1023"
        else:
            why = f"{_first_line(error)}; set MASTER_ADDR to a name or address of rank 0's host"
        raise HostRefusal(f"rank 0 cannot listen at {_place(launch)}: {why}") from error


def _join(launch: Launch, me: View, seconds: float) -> TCPStore:
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


def _no_answer(launch: Launch, me: View, seconds: float, why: str) -> str:
    own = ""
    if is_loopback(launch.address):
        own = f" ({launch.address} is {me.host} itself: rank 0 must run here)"
    return (
        f"rank 0 of {launch.world_size} was not found at {_place(launch)}{own} within {seconds:g} s: {why}; "
        f"look whether it was started and what it says; {_remedy(launch)}"
    )


def _remedy(launch: Launch) -> str:
    where = "torchrun's --master-addr" if "TORCHELASTIC_RUN_ID" in os.environ else "MASTER_ADDR"
    return f"set {where} to a name or address of rank 0's host that other hosts can reach"


def _said_by(launch: Launch) -> type[Refusal]:
    """Return the refusal for what all ranks of a host find out alike: its first rank says it.

    Ranks that were started by hand do not know their neighbours, so each of them speaks.
    """
    by_hand = launch.launcher == "torchrun" and "LOCAL_RANK" not in os.environ
    speaks = launch.local_rank == 0 or launch.rank <= 1 or by_hand
    return HostRefusal if speaks else Refusal


def _place(launch: Launch) -> str:
    return f"{launch.address}:{launch.port}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


# -- the roll call -----------------------------------------------------------------------------------


class _RollCall:
    """Every rank tells its view; rank 0 judges; all hear the verdict."""

    def __init__(self, store: Store, launch: Launch, me: View, seconds: float) -> None:
        self.store, self.launch, self.me, self.seconds = store, launch, me, seconds
        self.until = time.monotonic() + seconds
        self.prefix = f"roll_call/{launch.restarts}"  # torchrun's store outlives a restart

    def call(self) -> None:
        """Return when all ranks are there and can go together.

        Raises:
            Refusal: they cannot.
            RuntimeError: the store has gone.
        """
        arrival = self.store.add(self._key("arrived"), 1) - 1
        self._tell(f"view/{arrival}", asdict(self.me))
        if self.launch.rank == 0:
            self._judge()
        else:
            self._listen()

    # -- rank 0 -----------------------------------------------------------------------------------

    def _judge(self) -> None:
        views, trouble = self._collect()
        if not trouble:
            trouble = self._try_links(views)
        tokens = [view.token for view in views]
        self._tell("verdict", {"trouble": trouble, "tokens": tokens})
        if trouble:
            # Rank 0 takes the store along when it leaves; the others must have heard first.
            until = time.monotonic() + 2 * GRACE
            while (
                self.store.add(self._key("heard"), 0) < len(views) - 1 and time.monotonic() < until
            ):
                time.sleep(0.02)
            raise Refusal(trouble)

    def _collect(self) -> tuple[list[View], str]:
        """Return the views of those who came, and why they cannot go together."""
        views: list[View] = []
        trouble, until, pause = "", self.until, 0.005
        while True:
            here = self.store.add(self._key("arrived"), 0)
            while len(views) < here and (told := self._told(f"view/{len(views)}")):
                views.append(View(**told))
                if not trouble and (trouble := disagreement(views)):
                    until = min(until, time.monotonic() + OTHERS)
                pause = 0.005
            if len(views) >= max(view.world_size for view in views or [self.me]):
                return views, disagreement(views)
            if time.monotonic() >= until:
                why = disagreement(views)
                return views, why or missing(views, self.launch.world_size, self.seconds)
            time.sleep(pause)
            pause = min(0.1, 1.5 * pause)

    def _try_links(self, views: list[View]) -> str:
        """Let one rank of each host call the others; return what the first that failed says."""
        first = leaders(views)
        if len(first) < 2:
            return ""
        self._tell("leaders", [asdict(view) for view in first])
        self._reach(first)
        until = time.monotonic() + GRACE + reach.SECONDS * len(first)
        for view in first:
            while (told := self._told(f"reached/{view.rank}")) is None:
                if time.monotonic() > until:
                    return (
                        f"{view} fell silent while hosts were calling each other; see what it says"
                    )
                time.sleep(0.02)
            for rank, why in told.items():
                return unreachable(view, next(v for v in first if v.rank == int(rank)), why)
        return ""

    # -- all ranks --------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Wait for rank 0's verdict and keep to it."""
        until, pause, called = self.until + GRACE, 0.005, False
        while (verdict := self._told("verdict")) is None:
            if not called and (told := self._told("leaders")):
                called = True
                first = [View(**one) for one in told]
                until += GRACE + reach.SECONDS * len(first)
                if self.me.token in [view.token for view in first]:
                    self._reach(first)
            if time.monotonic() > until:
                self._mourn()
            time.sleep(pause)
            pause = min(0.1, 1.5 * pause)
        self.store.add(self._key("heard"), 1)
        if verdict["trouble"]:
            raise Refusal(verdict["trouble"])
        if self.me.token not in verdict["tokens"]:
            raise HostRefusal(
                f"this rank counts {self.me.world_size} ranks, but the run of {len(verdict['tokens'])} at "
                f"{_place(self.launch)} goes without it; give all ranks the same WORLD_SIZE, and every "
                "run a MASTER_PORT of its own"
            )

    def _reach(self, first: list[View]) -> None:
        """Call the other leaders and tell rank 0 who could not be reached."""
        failures: dict[int, str] = {}
        try:
            with reach.answering(self.me.address, self.me.token) as port:
                self._tell(f"port/{self.me.rank}", port)
                places = {}
                until = time.monotonic() + GRACE
                for view in first:
                    while (told := self._told(f"port/{view.rank}")) is None:
                        if time.monotonic() > until:
                            break
                        time.sleep(0.02)
                    if told is not None and view.token != self.me.token:
                        places[view.rank] = (view.address, int(told), view.token)
                failures = reach.fails_to_reach(places)
                self._tell(f"reached/{self.me.rank}", failures)
                # Others may not have called yet.
                until = time.monotonic() + reach.SECONDS
                while time.monotonic() < until and any(
                    self._told(f"reached/{view.rank}") is None for view in first
                ):
                    time.sleep(0.02)
        except OSError as error:
            why = f"cannot listen at its own address: {(error.strerror or str(error)).lower()}"
            self._tell(f"reached/{self.me.rank}", {self.me.rank: why})

    def _mourn(self) -> None:
        """End without rank 0, which never judged: under torchrun the store is there without it."""
        here = []
        for number in range(self.store.add(self._key("arrived"), 0)):
            if told := self._told(f"view/{number}"):
                here.append(View(**told))
        first = self.store.add(self._key("mourners"), 1) == 1
        raise (HostRefusal if first else Refusal)(
            missing(here, self.launch.world_size, self.seconds)
        )

    # -- keys -------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def _tell(self, name: str, content: object) -> None:
        self.store.set(self._key(name), json.dumps(content))

    def _told(self, name: str) -> Any:
        """Return what was told under the name, None if nothing yet."""
        key = self._key(name)
        return json.loads(self.store.get(key)) if self.store.check([key]) else None
