"""What `python -m cobo_dist.plan` prints: the run, its traffic, its memory, and seconds where measured."""

from __future__ import annotations

import numpy as np

from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.formatting import human_bytes
from cobo_dist.host import free_memory
from cobo_dist.planning.dry_run import DryRun, RoundTraffic
from cobo_dist.planning.try_rounds import TriedRounds
from cobo_dist.tasks.describe import facts_of

_HEADS = ("messages", "models", "gradients", "mixing", "total")
_NAME, _CELL = 28, 11  # columns of a row's name and of each number


def plan_text(dry_run: DryRun, ranks_here: int) -> str:
    """Return the run, what its ranks send, and what the fullest of them keeps in memory.

    `ranks_here`: ranks that would share the memory of this host; 0: they run elsewhere.
    """
    traffic = dry_run.traffic()
    mean = list(traffic.values())[1]
    sections = [
        _facts(dry_run),
        _all_ranks(dry_run, traffic),
        _each_rank(dry_run, mean),
        _each_client(dry_run, traffic),
        _memory(dry_run, ranks_here),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections)


def tried_text(tried: TriedRounds, rounds: int) -> str:
    """Return the seconds of a round, their parts, and the total of all rounds."""
    last = tried.first + len(tried.seconds) - 1
    which = f"rounds {tried.first} to {last}" if last > tried.first else f"round {last}"
    lines = [
        f"{'seconds a round, measured':<{_NAME}}{'seconds':>{_CELL}}{'share':>{_CELL}}",
        f"{'median round':<{_NAME}}{tried.median:>{_CELL}.4g}",
    ]
    lines += [
        f"{'  ' + kind:<{_NAME}}{part:>{_CELL}.3g}{part / tried.median:>{_CELL}.0%}"
        for kind, part in tried.parts.items()
    ]
    lines += [
        f"{f'all {rounds:,} rounds':<{_NAME}}{rounds * tried.median:>{_CELL}.4g}",
        f"({which}, slowest of {tried.ranks:,} rank{'s' * (tried.ranks > 1)} on {tried.device}, engine "
        f"{tried.engine}; evaluation, logging and checkpoints come on top)",
    ]
    return "\n".join(lines)


def _facts(dry_run: DryRun) -> list[str]:
    task, counted = dry_run.task, len(dry_run.counted)
    facts = facts_of(task)
    if dry_run.n != task.clients:
        clusters = len(set(dry_run.clusters or ()))
        facts["clients"] = (
            f"{dry_run.n:,}"
            + (f" in {clusters:,} cluster{'s' * (clusters != 1)}" if clusters else "")
        ) + f", made up in proportion to the task's {task.clients:,}"
        facts = {name: text for name, text in facts.items() if not text.endswith("a client")}
    facts["algorithm"] = f"{dry_run.config.algorithm.name}, {dry_run.rounds:,} rounds"
    sizes = np.unique([len(clients) for clients in dry_run.placement.by_rank])
    facts["ranks"] = f"{dry_run.placement.ranks:,}, with " + (
        " or ".join(f"{size:,}" for size in sizes) + " clients each"
    )
    if not dry_run.counts_all_ranks:
        facts["counted"] = (
            f"{counted} ranks, drawn from (run.seed, ranks); sums over all ranks are estimates"
        )
    return [f"{name:<12}{text}" for name, text in facts.items()]


def _all_ranks(dry_run: DryRun, traffic: dict[str, RoundTraffic]) -> list[str]:
    estimated = "" if dry_run.counts_all_ranks else ", est."
    rows = [_row(f"sent by all ranks{estimated}", "pairs", *_HEADS)]
    for name, one in traffic.items():
        sent = [one.bytes[purpose] for purpose in TRAINING]
        rows.append(
            _row(
                name,
                _count(one.pairs),
                _count(sum(one.messages.values())),
                *map(human_bytes, (*sent, sum(sent))),
            )
        )
    if len(dry_run.representatives) < dry_run.rounds and len(dry_run.representatives) > 1:
        rows.append(
            f"(the mean is taken over {len(dry_run.representatives)} representative rounds)"
        )
    return rows


def _each_rank(dry_run: DryRun, mean: RoundTraffic) -> list[str]:
    counted = "rank" if dry_run.counts_all_ranks else f"of {len(dry_run.counted)} ranks"
    messages_s = mean.messages_ps.sum(axis=0)
    bytes_ps = np.vstack([mean.bytes_ps, mean.bytes_ps.sum(axis=0)])
    rows = [_row(f"sent by one {counted}", "", *_HEADS)]
    for word, statistic in (("least", np.min), ("median", np.median), ("most", np.max)):
        sent = [human_bytes(float(statistic(bytes_s))) for bytes_s in bytes_ps]
        rows.append(_row(f"mean round, {word}", "", _count(float(statistic(messages_s))), *sent))
    return rows


def _each_client(dry_run: DryRun, traffic: dict[str, RoundTraffic]) -> list[str]:
    """What summary.json will have as `bytes_per_client`, and what a round adds to it."""
    rows = [_row("a client, as a machine", "up a round", "down", "up in all", "down")]
    for name, one in traffic.items():
        each = one.bytes_per_client
        totals = ("", "") if name == "round 1" else [human_bytes(dry_run.rounds * n) for n in each]
        rows.append(_row(name, *map(human_bytes, each), *totals).rstrip())
    return rows


def _memory(dry_run: DryRun, ranks_here: int) -> list[str]:
    items = dry_run.memory()
    rows = [(item.name, item.bytes) for item in items]
    counted = sum(item.bytes for item in items)
    rows.append(("counted", counted))
    warning = []
    if ranks_here:
        free = free_memory(ranks_here)
        rows.append((f"free on this host for each of {ranks_here:,} rank(s)", free))
        if counted > free:
            warning = [
                "warning: this host has too little memory; add hosts, or lower clients or model"
            ]
    which = "the fullest rank"
    if not dry_run.counts_all_ranks:
        which = f"the fullest of {len(dry_run.counted)} ranks"
    return [
        f"memory of {which}, with W at its initial value",
        *(f"{name:<48}{human_bytes(nbytes):>{_CELL}}" for name, nbytes in rows),
        "(activations of a batch, evaluation and the program itself come on top)",
        *warning,
    ]


def _row(name: str, *cells: str) -> str:
    return f"{name:<{_NAME}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10_000 else f"{number:,.1f}".removesuffix(".0")
