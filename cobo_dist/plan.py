"""The door `python -m cobo_dist.plan`: what a run would send and hold, without running it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from cobo_dist.comm.ledger import TRAINING
from cobo_dist.command_line import settings_parser
from cobo_dist.config import Config, load_config
from cobo_dist.errors import EXIT_DONE, EXIT_REFUSED, Refusal
from cobo_dist.run.facts import facts_of
from cobo_dist.run.forecast import Forecast, Sent
from cobo_dist.run.progress import human_bytes
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.registry import build_task

ABOUT = """\
A dry run: say what the ranks of a run would send a round and what the fullest of them would hold. Takes
the config and settings of the run, and the ranks it is for. Data and model are read; nothing is trained or
written.

Bytes and messages come from the plans that the run itself makes: with W at W^0 they are what its metrics
will say. Pairs are those that the run will draw; "true clusters" is W when every client has found its own,
and no W sends more than "any W". IFCA's clients are taken to pick their true clusters, and federated
clustering to find them. What logging sends is left out. Seconds are not foretold."""
EPILOG = """\
ranks=R: for how many ranks. Default: as many as launch/torchrun.sh would start here, one for each GPU or for
each core (at most 4), and no more than there are clients.

exit codes: 0 done; 2 refused, with one line on standard error

examples:
  python -m cobo_dist.plan ranks=4
  python -m cobo_dist.plan --config configs/paper/language.yaml data.root=DIR ranks=2"""
_RANKS = "ranks="
_LEFT_OUT = "and beside it the activations of a batch, evaluation, and the program itself"


def main(argv: Sequence[str] | None = None) -> int:
    """Plan what the command line names. Returns 0, or 2 after one line on standard error."""
    usage = "python -m {} [--config FILE.yaml] [ranks=R] [key.path=value ...]"
    arguments = settings_parser("plan", ABOUT, EPILOG, usage).parse_args(argv)
    given = [one for one in arguments.settings if one.startswith(_RANKS)]
    settings = [one for one in arguments.settings if not one.startswith(_RANKS)]
    try:
        ranks = _read_ranks(given)
        config = load_config(arguments.config, settings)
        dtype = getattr(torch, config.run.dtype)
        task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
        _show(config, task, ranks or min(task.clients, _ranks_here()))
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_DONE


def _read_ranks(given: Sequence[str]) -> int:
    """Return R of the last `ranks=R`, or 0 where it is not given."""
    if not given:
        return 0
    text = given[-1].removeprefix(_RANKS)
    if not text.isdecimal() or int(text) < 1:
        raise Refusal(f"ranks={text} is no number of ranks; give 1 or more")
    return int(text)


def _ranks_here() -> int:
    return torch.cuda.device_count() or min(4, len(os.sched_getaffinity(0)))


def _show(config: Config, task: Task, ranks: int) -> None:
    forecast = Forecast(config, task, ranks)  # may refuse: before anything is printed
    for name, value in facts_of(task).items():
        print(f"{name:<12}{value}")
    print(f"{'algorithm':<12}{config.algorithm.name}, {config.run.rounds:,} rounds")
    owned = sorted({len(clients) for clients in forecast.placement.by_rank})
    print(f"{'ranks':<12}{ranks}, with {' or '.join(map(str, owned))} clients each")
    _show_traffic(forecast)
    _show_memory(forecast)


def _show_traffic(forecast: Forecast) -> None:
    first, mean = forecast.round(1), forecast.mean_round()
    lines = {"round 1": first, f"mean of {forecast.rounds:,}": mean}
    for name, weights in forecast.other_weights().items():
        mixing = forecast.mixing_at(weights)
        lines[f"  {name}"] = replace(
            mean,
            messages={**mean.messages, "mixing": mixing.messages["mixing"]},
            bytes={**mean.bytes, "mixing": mixing.bytes["mixing"]},
        )
    heads = ("pairs", "messages", "models", "gradients", "mixing", "total")
    print(f"\n{'sent a round, by all ranks':<28}" + "".join(f"{head:>11}" for head in heads))
    for name, sent in lines.items():
        print(f"{name:<28}" + "".join(f"{cell:>11}" for cell in _cells(sent)))


def _cells(sent: Sent) -> list[str]:
    counts = [
        f"{count:,.1f}".removesuffix(".0") for count in (sent.pairs, sum(sent.messages.values()))
    ]
    return [*counts, *(human_bytes(sent.bytes[one]) for one in TRAINING), human_bytes(sent.total)]


def _show_memory(forecast: Forecast) -> None:
    print("\nheld by a rank, the fullest")
    parts = forecast.memory()
    for part in parts:
        print(f"{part.name:<48}{human_bytes(part.bytes):>12}")
    print(f"{'counted':<48}{human_bytes(sum(part.bytes for part in parts)):>12}")
    print(f"({_LEFT_OUT})")


if __name__ == "__main__":
    sys.exit(main())
