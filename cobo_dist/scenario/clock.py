"""The config of virtual time: how long clients work, and how long their models travel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.scenario.trace import read_trace
from cobo_dist.settings import Section, Text, as_tuple

LATENCY_LIMIT = 10.0
"""A latency of more times the median client's work is taken for one in another unit."""
MEGABYTE = 1e6

Floats = NDArray[np.float64]


def _as_ids(value: Any) -> Any:
    """Take one id for a list of one."""
    return as_tuple([value] if type(value) is int else value)


@dataclass(frozen=True)
class ClientTimes:
    """How long each client needs, [n]."""

    work_n: Floats  # seconds for the work of a round
    latency_n: Floats  # seconds
    bandwidth_n: Floats  # bytes a second; infinity: a message takes no longer for its size

    def message_seconds(self, size: int) -> Floats:
        """Return how long a model of `size` bytes travels from each client to any other, [n]."""
        return self.latency_n + size / self.bandwidth_n


class ClockConfig(Section):
    """Virtual time: what a run would take if clients computed and sent at these speeds."""

    text_key: ClassVar[str] = "name"

    name: Literal["rounds", "virtual"] = Field(
        "rounds",
        description="rounds: only rounds count; virtual: clients have speeds, and the run counts virtual "
        "seconds",
    )
    policy: Literal["sync", "bounded", "free"] = Field(
        "sync",
        description="sync: every round waits for its slowest client; free: nobody waits; bounded: a client "
        "waits while it is more than clock.staleness rounds of work ahead of the slowest",
    )
    seconds: float = Field(
        1.0, gt=0, le=1e9, description="virtual seconds of a client's work of a round"
    )
    spread: float = Field(
        0.0,
        ge=0,
        le=5,
        description="sigma of the lognormal factor on clock.seconds, drawn once for each client",
    )
    slow_clients: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_ids)] = (
        Field((), description="ids of clients whose work takes clock.slow_factor times as long")
    )
    slow_factor: float = Field(
        1.0, gt=0, le=1e6, description="factor on the work of clock.slow_clients"
    )
    trace: Text = Field(
        "",
        description="CSV file in place of clock.seconds and clock.spread: columns client, seconds and, if "
        "wanted, latency and megabytes_a_second; one line for each client",
    )
    latency: float = Field(
        0.0, ge=0, le=1e9, description="virtual seconds before a model that was sent arrives"
    )
    bandwidth: float = Field(
        0.0, ge=0, le=1e9, description="of a client's link, in megabytes a second; 0: infinite"
    )
    staleness: int = Field(
        4, ge=0, le=1_000_000, description="rounds of work that a client may be ahead (bounded)"
    )
    discount: Literal["none", "sqrt"] = Field(
        "none",
        description="sqrt: a neighbor's model that is tau rounds old pulls with 1/sqrt(1 + tau) of its "
        "weight",
    )
    tick: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="virtual seconds between two moments in which clients act; 0: the fastest client's work",
    )

    @property
    def is_virtual(self) -> bool:
        """Whether the run counts virtual seconds."""
        return self.name == "virtual"

    @property
    def waits_for_all(self) -> bool:
        """Whether every round has everybody who is drawn for it."""
        return not self.is_virtual or self.policy == "sync"

    def contradiction(self) -> str:
        """Say which keys have no effect, or lack another."""
        given = {
            key
            for key, value in self
            if key != "name" and value != type(self).model_fields[key].default
        }
        if not self.is_virtual:
            return "".join(
                f"clock.{key}={getattr(self, key)} has no effect with clock.name=rounds; set "
                "clock.name=virtual"
                for key in sorted(given)[:1]
            )
        for key in ("discount", "tick"):
            if key in given and self.policy == "sync":
                return (
                    f"clock.{key}={getattr(self, key)} has no effect with clock.policy=sync, where nothing "
                    f"is late; drop it, or set clock.policy=free"
                )
        if "staleness" in given and self.policy != "bounded":
            return (
                f"clock.staleness={self.staleness} has no effect with clock.policy={self.policy}; set "
                "clock.policy=bounded"
            )
        if ("slow_clients" in given) != ("slow_factor" in given):
            lacking = "slow_factor" if "slow_clients" in given else "slow_clients"
            other = "slow_clients" if lacking == "slow_factor" else "slow_factor"
            value = list(self.slow_clients) if other == "slow_clients" else f"{self.slow_factor:g}"
            return f"clock.{other}={value} has no effect without clock.{lacking}; set it, too"
        for key in ("seconds", "spread"):
            if self.trace and key in given:
                return (
                    f"clock.{key}={getattr(self, key):g} and clock.trace={self.trace} both say how long "
                    "clients work; drop one of them"
                )
        return ""

    def times(self, seed: int, clients: int) -> ClientTimes:
        """Return how long each of so many clients needs: a pure function of the seed and the client.

        Raises:
            ConfigError: the trace has no such times, an id is unknown, or a time is in another unit.
        """
        ids = np.arange(clients)
        if self.trace:
            trace = read_trace(self.trace, clients)
            work_n, latency_n, rate_n = trace.seconds_n, trace.latency_n, trace.megabytes_n
        else:
            work_n, latency_n, rate_n = np.full(clients, self.seconds), None, None
            if self.spread:
                normal_n = [
                    float(seeds.normals(seeds.key(seed, "speed", i), 1)) for i in range(clients)
                ]
                work_n = work_n * np.exp(self.spread * np.array(normal_n))
        for key, found, value in (
            ("latency", latency_n, self.latency), ("bandwidth", rate_n, self.bandwidth)
        ):  # fmt: skip
            if found is not None and value:
                raise ConfigError(
                    f"clock.{key}={value:g} and a column of clock.trace={self.trace} both say it; drop one "
                    "of them"
                )
        if unknown := [one for one in self.slow_clients if one >= clients]:
            raise ConfigError(
                f"clock.slow_clients={list(self.slow_clients)} names client {unknown[0]}, and the "
                f"{clients} clients are 0 to {clients - 1}; name one of them"
            )
        work_n = np.where(np.isin(ids, self.slow_clients), work_n * self.slow_factor, work_n)
        latency_n = np.full(clients, self.latency) if latency_n is None else latency_n
        rate_n = np.full(clients, self.bandwidth) if rate_n is None else rate_n
        bandwidth_n = np.where(rate_n > 0, rate_n * MEGABYTE, np.inf)
        times = ClientTimes(work_n, latency_n, bandwidth_n)
        self._refuse_odd_times(times)
        return times

    def _refuse_odd_times(self, times: ClientTimes) -> None:
        median, longest = float(np.median(times.work_n)), float(times.latency_n.max())
        if longest > LATENCY_LIMIT * median:
            where = f"in clock.trace={self.trace}" if self.trace and not self.latency else ""
            raise ConfigError(
                f"clock.latency={longest:g} {where}{' ' * bool(where)}is {longest / median:.3g} times the "
                f"median client's work of {median:g} s; it counts in seconds, so write {longest / 1000:g} "
                f"for {longest:g} ms, or raise clock.seconds"
            )
        fastest = float(times.work_n.min())
        if self.tick > fastest * (1 + 1e-9):
            raise ConfigError(
                f"clock.tick={self.tick:g} is longer than the {fastest:g} s of the fastest client's work, so "
                f"it would act more than once a tick; lower clock.tick to {fastest:g} or less, or leave it "
                "at 0"
            )
