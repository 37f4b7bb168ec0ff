"""The handshake: every process describes itself to rank 0, before the process group is made.

Rank 0 checks the descriptions and sends one verdict to all, so that an error is reported once, at once, and
with the names of ranks and hosts. No process waits on the store with torch's own time-out, which prints a
stack trace: it polls for keys instead.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from cobo_dist.comm.liveness import CONNECT_SECONDS as LIVENESS_SECONDS
from cobo_dist.comm.liveness import Liveness
from cobo_dist.comm.startup.consistency import (
    ProcessInfo,
    describe_missing,
    describe_unconnected,
    describe_unreachable,
    find_conflict,
    host_leaders,
)
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.startup.reachability import CONNECT_SECONDS, find_unreachable, listening
from cobo_dist.errors import EXIT_REFUSED, ConfigError, HostConfigError, RunFailure

VERDICT_GRACE_SECONDS = 2.0
"""How long after the time-out rank 0's verdict may still arrive."""
CONFLICT_GRACE_SECONDS = 3.0
"""How long rank 0 waits for the other descriptions, once those it has contradict each other."""
POLL_SECONDS = 0.02
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.005, 0.1  # between polls of the store, which grow longer
_ATTEMPT_KEY = "handshake/attempt"


def uses_agent_store(launch: Launch) -> bool:
    """Whether torchrun's agent serves the store, at the address it exports, through all restarts."""
    return (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and os.environ.get("MASTER_ADDR") == launch.address
        and os.environ.get("MASTER_PORT") == str(launch.port)
    )


class Handshake:
    """Every rank writes its description; rank 0 checks them; all read the verdict.

    torchrun's store survives restarts, and where nodes come and go its agents count restarts differently. So
    rank 0 numbers the attempts. The other ranks join the newest one, and join again if a newer one begins.
    """

    def __init__(
        self, store: Store, launch: Launch, me: ProcessInfo, seconds: float, liveness: Liveness
    ) -> None:
        self.store, self.launch, self.me, self.seconds = store, launch, me, seconds
        self.liveness = liveness
        self.deadline = time.monotonic() + seconds
        self.attempt = 0  # 0: rank 0 has not begun any

    def run(self) -> int:
        """Return the number of the attempt, once all ranks are there and fit together.

        Raises:
            ConfigError: they do not.
            RunFailure: a rank died meanwhile, or a signal stopped it.
            RuntimeError: the store is gone.
        """
        if self.launch.rank == 0:
            place = self._listen()
            self._join(self.store.add(_ATTEMPT_KEY, 1))
            self._write("liveness", place)
            self._decide()
        else:
            # A store that rank 0 serves sees one attempt. At torchrun's, ranks that wait for rank 0 in vain
            # can so name one another.
            self._join(0 if uses_agent_store(self.launch) else 1)
            self._await_verdict()
        return self.attempt

    def _join(self, attempt: int) -> None:
        self.attempt = attempt
        arrival = self.store.add(self._key("arrived"), 1) - 1
        self._write(f"process/{arrival}", asdict(self.me))

    # -- rank 0 -----------------------------------------------------------------------------------

    def _listen(self) -> list[object]:
        """Listen for the connections of `Liveness`; return where."""
        port = 0
        if not self.me.problem:
            try:
                port = self.liveness.listen(self.me.address, self.me.token)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                self.me = replace(
                    self.me, problem=f"cannot listen at its own address {self.me.address}: {reason}"
                )
        return [self.me.address, port, self.me.token, self.me.host]

    def _decide(self) -> None:
        processes, problem = self._collect()
        if not problem:
            problem = self._check_reachability(processes) or self._check_liveness(processes)
        failure = self.liveness.failure()
        code = failure.code if failure is not None and str(failure) == problem else EXIT_REFUSED
        tokens = [one.token for one in processes]
        hosts = [one.host for one in sorted(processes, key=lambda one: one.rank)]
        verdict = {"problem": problem, "code": code, "tokens": tokens, "hosts": hosts}
        self._write("verdict", verdict)
        if problem:
            # The store ends with rank 0, so the others must have read the verdict before.
            deadline = time.monotonic() + 2 * VERDICT_GRACE_SECONDS
            while (
                self.store.add(self._key("acknowledged"), 0) < len(processes) - 1
                and time.monotonic() < deadline
            ):
                time.sleep(POLL_SECONDS)
        self._follow(verdict)

    def _collect(self) -> tuple[list[ProcessInfo], str]:
        """Return the processes that arrived, and why they do not fit together."""
        processes: list[ProcessInfo] = []
        problem, deadline, pause = "", self.deadline, MIN_PAUSE_SECONDS
        while True:
            arrived = self.store.add(self._key("arrived"), 0)
            while len(processes) < arrived and (entry := self._read(f"process/{len(processes)}")):
                processes.append(ProcessInfo(**entry))
                if not problem and (problem := find_conflict(processes)):
                    deadline = min(deadline, time.monotonic() + CONFLICT_GRACE_SECONDS)
                pause = MIN_PAUSE_SECONDS
            if not problem and (failure := self.liveness.failure()) is not None:
                problem = str(failure)
                deadline = min(deadline, time.monotonic() + CONFLICT_GRACE_SECONDS)
            if len(processes) >= max(one.world_size for one in processes or [self.me]):
                return processes, find_conflict(processes) or problem
            if time.monotonic() >= deadline:
                missing = describe_missing(processes, self.launch.world_size, self.seconds)
                return processes, find_conflict(processes) or problem or missing
            time.sleep(pause)
            pause = min(MAX_PAUSE_SECONDS, 1.5 * pause)

    def _check_reachability(self, processes: list[ProcessInfo]) -> str:
        """Let one rank of each host connect to the others; return the first failure that one reports."""
        leaders = host_leaders(processes)
        if len(leaders) < 2:
            return ""
        self._write("leaders", [asdict(one) for one in leaders])
        self._connect_to(leaders)
        deadline = time.monotonic() + VERDICT_GRACE_SECONDS + CONNECT_SECONDS * len(leaders)
        for one in leaders:
            failures = self._poll(f"unreachable/{one.rank}", deadline)
            if (failure := self.liveness.failure()) is not None:
                return str(failure)
            if failures is None:
                return f"{one} fell silent while hosts were calling each other; see what it says"
            for rank, reason in failures.items():
                target = next(other for other in leaders if other.rank == int(rank))
                return describe_unreachable(one, target, reason)
        return ""

    def _check_liveness(self, processes: list[ProcessInfo]) -> str:
        """Wait until all ranks are connected for `Liveness`; return why one is not."""
        deadline = time.monotonic() + LIVENESS_SECONDS
        others = [one for one in processes if one.rank]
        while True:
            connected = self.liveness.connected()
            missing = [one for one in others if one.rank not in connected]
            if (failure := self.liveness.failure()) is not None:
                return str(failure)
            if not missing:
                return ""
            if time.monotonic() > deadline:
                return describe_unconnected(missing, self.me)
            time.sleep(MIN_PAUSE_SECONDS)

    # -- the other ranks --------------------------------------------------------------------------

    def _await_verdict(self) -> None:
        """Wait for rank 0's verdict and follow it."""
        deadline, pause = self.deadline + VERDICT_GRACE_SECONDS, MIN_PAUSE_SECONDS
        connected = False
        has_tried = False  # to connect for `Liveness`
        while (verdict := self._verdict()) is None:
            failure = self.liveness.failure()
            if failure is not None and failure.rank == 0:
                raise failure
            if (attempt := self.store.add(_ATTEMPT_KEY, 0)) > self.attempt:
                self._join(attempt)
                connected = has_tried = False
            if not has_tried and (place := self._read("liveness")):
                has_tried = True
                with suppress(OSError):  # rank 0 finds out and tells all
                    self.liveness.join(*place)
            if not connected and (entries := self._read("leaders")):
                connected = True
                leaders = [ProcessInfo(**entry) for entry in entries]
                deadline += VERDICT_GRACE_SECONDS + CONNECT_SECONDS * len(leaders)
                if self.me.token in [one.token for one in leaders]:
                    self._connect_to(leaders)
            if time.monotonic() > deadline:
                self._end_without_verdict()
            time.sleep(pause)
            pause = min(MAX_PAUSE_SECONDS, 1.5 * pause)
        self.store.add(self._key("acknowledged"), 1)
        self._follow(verdict)
        if self.me.token not in verdict["tokens"]:
            raise HostConfigError(
                f"this rank counts {self.me.world_size} ranks, but the run of {len(verdict['tokens'])} at "
                f"{self.launch.place} goes without it; give all ranks the same WORLD_SIZE, and every "
                "run a MASTER_PORT of its own"
            )

    def _follow(self, verdict: Any) -> None:
        """Raise the problem of a verdict; keep the ranks' hosts of one without."""
        if problem := verdict["problem"]:
            if verdict["code"] == EXIT_REFUSED:
                raise ConfigError(problem)
            raise RunFailure(problem, code=verdict["code"])
        self.liveness.hosts = verdict["hosts"]

    def _verdict(self) -> Any:
        """Return rank 0's verdict; None while there is none for this rank."""
        verdict = self._read("verdict") if self.attempt else None
        if verdict and self.me.token not in verdict["tokens"] and uses_agent_store(self.launch):
            return None  # of an earlier start
        return verdict

    def _end_without_verdict(self) -> None:
        """Raise, since rank 0 never decided: under torchrun the store exists without it."""
        arrived, verdict = [], self._read("verdict") or {"tokens": []}
        for index in range(self.store.add(self._key("arrived"), 0)):
            entry = self._read(f"process/{index}")
            if entry and entry["token"] not in verdict["tokens"]:
                arrived.append(ProcessInfo(**entry))
        first = self.store.add(self._key(f"ended/{self.launch.restarts}"), 1) == 1
        raise (HostConfigError if first else ConfigError)(
            describe_missing(arrived, self.launch.world_size, self.seconds)
        )

    # -- leaders of hosts, rank 0 among them ------------------------------------------------------

    def _connect_to(self, leaders: list[ProcessInfo]) -> None:
        """Connect to the other leaders, and report to rank 0 which of them could not be reached."""
        report = f"unreachable/{self.me.rank}"
        try:
            with listening(self.me.address, self.me.token) as port:
                self._write(f"port/{self.me.rank}", port)
                targets = {}
                deadline = time.monotonic() + VERDICT_GRACE_SECONDS
                for one in leaders:
                    port_there = self._poll(f"port/{one.rank}", deadline)
                    if port_there is not None and one.token != self.me.token:
                        targets[one.rank] = (one.address, int(port_there), one.token)
                self._write(report, find_unreachable(targets))
                # Keep listening until the others have reported.
                deadline = time.monotonic() + CONNECT_SECONDS
                for one in leaders:
                    self._poll(f"unreachable/{one.rank}", deadline)
        except OSError as error:
            reason = f"cannot listen at its own address: {(error.strerror or str(error)).lower()}"
            self._write(report, {self.me.rank: reason})

    # -- the store --------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"handshake/{self.attempt}/{name}"

    def _write(self, name: str, content: object) -> None:
        self.store.set(self._key(name), json.dumps(content))

    def _read(self, name: str) -> Any:
        """Return what was written under the name, None if nothing yet."""
        key = self._key(name)
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def _poll(self, name: str, deadline: float) -> Any:
        """Return what is written under the name before the deadline; None if nothing."""
        while (content := self._read(name)) is None and time.monotonic() <= deadline:
            if self.liveness.failure() is not None:
                break
            time.sleep(POLL_SECONDS)
        return content
