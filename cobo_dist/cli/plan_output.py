"""What `python -m cobo_dist.plan` prints: who, what is sent, how long it takes, what is held."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.formatting import human_bytes
from cobo_dist.planning.constants import Constants
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.planning.on_paper import OnPaper
from cobo_dist.planning.round_cost import (
    TERMS,
    Load,
    Seconds,
    Sent,
    Told,
    choose_engine,
    fewest_hosts,
    mean_sent,
    seconds_of,
    share_of_core,
)
from cobo_dist.tasks.describe import facts_of

_LEFT_OUT = "and beside it the activations of a batch, evaluation, and the program itself"


class PlanPage:
    """A plan in words."""

    def __init__(self, plan: DryRun | OnPaper, constants: Constants | None, hosts: int = 0) -> None:
        """Plan all rounds; `hosts`: 0 for as many as give every rank cores of its own.

        Raises:
            ConfigError: rounds too long to be counted, or constants that do not serve these ranks.
        """
        self.plan, self.constants = plan, constants
        self.ranks = plan.ranks()
        self.count = len(self.ranks.clients_r)
        first = plan.load(0)
        told = plan.told()
        self.lines: dict[str, Told] = {"round 1": [(first, 1)], f"mean of {plan.rounds:,}": told}
        for name, mixing in plan.other_mixings().items():
            self.lines[f"  {name}"] = [(load.with_mixing(mixing), count) for load, count in told]
        self.parts = plan.memory()
        self.hosts = min(hosts or self.count, self.count)
        self.seconds: dict[str, Seconds] = {}
        if constants is not None:
            self.hosts = min(hosts or fewest_hosts(constants, self.count), self.count)
            wanted = plan.config.run.engine
            most = int(self.ranks.clients_r[0])
            self.engine = choose_engine(constants, wanted, most)
            self.seconds = {
                name: mean_seconds([self._seconds(load) for load, _ in told], told)
                for name, told in self.lines.items()
            }

    def _seconds(self, load: Load) -> Seconds:
        assert self.constants is not None
        return seconds_of(load, self.ranks, self.constants, self.engine, self.hosts)

    def text(self) -> str:
        """Return the page."""
        return "\n".join(
            [*self._facts(), "", *self._traffic(), "", *self._time(), "", *self._memory()]
        )

    def _facts(self) -> list[str]:
        plan = self.plan
        facts = facts_of(plan.task)
        if isinstance(plan, OnPaper) and plan.n != plan.task.clients:
            facts["clients"] = f"{plan.n:,}" + (
                f" in {plan.groups:,} clusters" if plan.groups else ""
            )
            facts["clients"] += f", made up in proportion to the task's {plan.task.clients:,}"
            facts = {k: v for k, v in facts.items() if not v.endswith("a client")}
        facts["algorithm"] = f"{plan.config.algorithm.name}, {plan.rounds:,} rounds"
        owned = " or ".join(f"{one:,}" for one in np.unique(self.ranks.clients_r))
        facts["ranks"] = f"{self.count:,}, with {owned} clients each"
        return [f"{name:<12}{value}" for name, value in facts.items()]

    def _traffic(self) -> list[str]:
        heads = ("pairs", "messages", "models", "gradients", "mixing", "total")
        return [
            f"{'sent a round, by all ranks':<28}" + "".join(f"{head:>11}" for head in heads),
            *(
                f"{name:<28}" + "".join(f"{cell:>11}" for cell in _cells(mean_sent(told)))
                for name, told in self.lines.items()
            ),
        ]

    def _time(self) -> list[str]:
        if self.constants is None:
            return [
                "seconds a round: not foretold without constants of a machine; measure this one with "
                "--measure"
            ]
        heads = ("total", *TERMS)
        rows = [f"{'seconds a round':<28}" + "".join(f"{head:>11}" for head in heads)]
        for name, one in self.seconds.items():
            cells = (one.total, *(one.terms[term] for term in TERMS))
            rows.append(f"{name:<28}" + "".join(f"{cell:>11.3g}" for cell in cells))
        share = share_of_core(self.constants, self.count, self.hosts)
        turns = f"; {share:g} ranks take turns on a core" if share > 1 else ""
        threads = f"{self.constants.threads} thread{'s' * (self.constants.threads > 1)}"
        rows.append(
            f"(of the slowest rank; engine {self.engine}, {threads} a rank, {self.hosts:,} "
            f"host{'s' * (self.hosts > 1)} of {self.constants.cores} cores{turns})"
        )
        return rows

    def _memory(self) -> list[str]:
        rows = [(part.name, part.bytes) for part in self.parts]
        rows.append(("counted", sum(part.bytes for part in self.parts)))
        where = ", with W at W^0" if isinstance(self.plan, OnPaper) else ""
        return [
            f"held by a rank, the fullest{where}",
            *(f"{name:<48}{human_bytes(nbytes):>12}" for name, nbytes in rows),
            f"({_LEFT_OUT})",
        ]


def mean_seconds(each: Sequence[Seconds], told: Told) -> Seconds:
    """Return the mean over rounds of their seconds, each weighed by the rounds it stands for."""
    total = sum(count for _, count in told)
    return Seconds(
        {
            term: sum(one.terms[term] * count for one, (_, count) in zip(each, told, strict=True))
            / total
            for term in TERMS
        }
    )


def _cells(sent: Sent) -> list[str]:
    counts = [
        f"{count:,.0f}" if count >= 10_000 else f"{count:,.1f}".removesuffix(".0")
        for count in (sent.pairs, sum(sent.messages.values()))
    ]
    return [*counts, *(human_bytes(sent.bytes[one]) for one in TRAINING), human_bytes(sent.total)]
