"""The roll call: every process tells rank 0 how it sees itself, before the process group is made.

Rank 0 answers all of them with one verdict, so that what is wrong is said once, at once, and by name. Nobody
ever waits on the store with a time-out of torch's, which prints its stack: keys are looked for until they
are there.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from cobo_dist.comm.startup import reachability as reach
from cobo_dist.comm.startup.consistency import (
    ProcessInfo,
    disagreement,
    leaders,
    missing,
    unreachable,
)
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.errors import ConfigError, HostConfigError

GRACE = 2.0  # seconds beyond the time-out in which rank 0's verdict must be there
OTHERS = 3.0  # seconds in which other ranks may still tell their view, once views contradict
_NUMBER = "roll_call/number"


def is_agents(launch: Launch) -> bool:
    """Whether torchrun's agent serves the store, at the address it exports: for one start after another."""
    return (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and os.environ.get("MASTER_ADDR") == launch.address
        and os.environ.get("MASTER_PORT") == str(launch.port)
    )


class Handshake:
    """Every rank tells its view; rank 0 judges; all hear the verdict.

    torchrun's store outlives restarts, and where nodes come and go its agents count them differently. So
    rank 0 numbers the roll calls, and the others enter themselves in the newest, again if one follows.
    """

    def __init__(self, store: Store, launch: Launch, me: ProcessInfo, seconds: float) -> None:
        self.store, self.launch, self.me, self.seconds = store, launch, me, seconds
        self.until = time.monotonic() + seconds
        self.number = 0  # of the roll call; 0: rank 0 has not begun any

    def call(self) -> int:
        """Return the roll call's number when all ranks are there and can go together.

        Raises:
            ConfigError: they cannot.
            RuntimeError: the store has gone.
        """
        if self.launch.rank == 0:
            self._enter(self.store.add(_NUMBER, 1))
            self._judge()
        else:
            self._enter(0)  # for those who wait for rank 0 in vain
            self._listen()
        return self.number

    def _enter(self, number: int) -> None:
        """Take part in the roll call of this number."""
        self.number = number
        arrival = self.store.add(self._key("arrived"), 1) - 1
        self._tell(f"view/{arrival}", asdict(self.me))

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
            raise ConfigError(trouble)

    def _collect(self) -> tuple[list[ProcessInfo], str]:
        """Return the views of those who came, and why they cannot go together."""
        views: list[ProcessInfo] = []
        trouble, until, pause = "", self.until, 0.005
        while True:
            here = self.store.add(self._key("arrived"), 0)
            while len(views) < here and (told := self._told(f"view/{len(views)}")):
                views.append(ProcessInfo(**told))
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

    def _try_links(self, views: list[ProcessInfo]) -> str:
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
        while (verdict := self._verdict()) is None:
            if (number := self.store.add(_NUMBER, 0)) != self.number:
                self._enter(number)
                called = False
            if not called and (told := self._told("leaders")):
                called = True
                first = [ProcessInfo(**one) for one in told]
                until += GRACE + reach.SECONDS * len(first)
                if self.me.token in [view.token for view in first]:
                    self._reach(first)
            if time.monotonic() > until:
                self._mourn()
            time.sleep(pause)
            pause = min(0.1, 1.5 * pause)
        self.store.add(self._key("heard"), 1)
        if verdict["trouble"]:
            raise ConfigError(verdict["trouble"])
        if self.me.token not in verdict["tokens"]:
            raise HostConfigError(
                f"this rank counts {self.me.world_size} ranks, but the run of {len(verdict['tokens'])} at "
                f"{self.launch.place} goes without it; give all ranks the same WORLD_SIZE, and every "
                "run a MASTER_PORT of its own"
            )

    def _verdict(self) -> Any:
        """Return rank 0's verdict; None as long as there is none for this rank."""
        verdict = self._told("verdict") if self.number else None
        if verdict and self.me.token not in verdict["tokens"] and is_agents(self.launch):
            return None  # of an earlier start
        return verdict

    def _reach(self, first: list[ProcessInfo]) -> None:
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
        here, judged = [], self._told("verdict") or {"tokens": []}
        for number in range(self.store.add(self._key("arrived"), 0)):
            told = self._told(f"view/{number}")
            if told and told["token"] not in judged["tokens"]:
                here.append(ProcessInfo(**told))
        first = self.store.add(self._key(f"mourners/{self.launch.restarts}"), 1) == 1
        raise (HostConfigError if first else ConfigError)(
            missing(here, self.launch.world_size, self.seconds)
        )

    # -- keys -------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"roll_call/{self.number}/{name}"

    def _tell(self, name: str, content: object) -> None:
        self.store.set(self._key(name), json.dumps(content))

    def _told(self, name: str) -> Any:
        """Return what was told under the name, None if nothing yet."""
        key = self._key(name)
        return json.loads(self.store.get(key)) if self.store.check([key]) else None
