"""CoBo's health checks: known ways in which W and the penalty fail, each with the key to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cobo_dist.algorithms.algorithm import Finding, Graph, HealthFacts

if TYPE_CHECKING:
    from cobo_dist.algorithms.cobo_config import CoBoConfig

LARGE_JUMP = 0.3
"""A weight that moves by this share of [0, 1] in one round depends on a single batch."""

SATURATED_SHARE = 0.9
"""W is saturated with this share of its weights at 0 or 1 (simplex: of the clients giving all to one)."""

MIN_DRAWS_PER_PAIR = 3.0
"""A pair that was drawn fewer times in the whole run has too little evidence."""


def penalty_on_box(config: CoBoConfig, facts: HealthFacts) -> Iterator[Finding]:
    """Check the penalty's explicit step at W^0: all linked, or as soon as two clients are."""
    starts_linked = config.start == "ones"
    linked, symbol = (facts.clients, "n") if starts_linked else (2, "2")
    step = facts.lr * config.rho * linked
    if step >= 2.0:
        when = "at W = 1" if starts_linked else "between two clients of weight 1"
        yield Finding(
            "penalty_step",
            f"{when} the penalty's step eta rho {symbol} = {facts.lr:g} * {config.rho:g} * {linked} = "
            f"{step:.2f} is 2 or more and overshoots: models will diverge; set "
            f"algorithm.coupling=capped, or lower algorithm.rho below {2 / (facts.lr * linked):.3g} or "
            "optimizer.lr",
        )


def penalty_on_simplex(config: CoBoConfig, facts: HealthFacts) -> Iterator[Finding]:
    """Check the penalty's step between two clients, and that clients have a choice."""
    step = facts.lr * config.rho
    if step >= 1.0:
        yield Finding(
            "penalty_step",
            "the penalty makes two clients that give each other all their weight change places "
            f"at a step eta rho of 1, and here it is {facts.lr:g} * {config.rho:g} = "
            f"{step:.2f}, which overshoots: models will diverge; lower algorithm.rho below "
            f"{1 / facts.lr:.3g} or optimizer.lr",
        )
    if facts.clients == 2 and config.own_weight == "excluded":
        yield Finding(
            "no_choice",
            "each of 2 clients gives the other all its weight, whatever happens; set "
            "algorithm.own_weight=included or algorithm.domain=box to let them part",
        )


def saturation(config: CoBoConfig, facts: HealthFacts, graph: Graph) -> Iterator[Finding]:
    """Check whether single batches decide weights, once pairs have met often enough."""
    if not facts.jumps or facts.drawn < MIN_DRAWS_PER_PAIR * graph.pairs:
        return
    if graph.share:  # on the simplex, most weights of a row may rightly be 0
        stuck = graph.at_1 >= SATURATED_SHARE * facts.clients
        what = f"{graph.at_1} of {facts.clients} clients give all their weight to one other"
    else:
        stuck = graph.at_0 + graph.at_1 >= SATURATED_SHARE * graph.pairs
        what = f"weights are stuck at 0 or 1 ({graph.at_0} and {graph.at_1} of {graph.pairs} pairs)"
    jump = float(np.median(facts.jumps)) if stuck else 0.0
    if jump >= LARGE_JUMP:
        yield Finding(
            "saturated",
            f"{what}: half of the recently drawn pairs would have moved by {jump:.2f} or more of "
            f"[0, 1] at once, so one batch decides; lower algorithm.gamma (now {config.gamma:g})",
        )


def at_the_end(config: CoBoConfig, facts: HealthFacts, graph: Graph) -> Iterator[Finding]:
    """Check W after the last round."""
    draws = facts.drawn / graph.pairs
    if draws < MIN_DRAWS_PER_PAIR:
        yield Finding(
            "hardly_drawn",
            f"each pair was drawn {draws:.1f} times in {facts.r} rounds, too few to judge it; raise "
            f"algorithm.sampling.rate (now {config.sampling.rate:g}), run.rounds, or "
            f"use another algorithm.sampling.name than {config.sampling.name}",
        )
    if graph.share and graph.pairs > 1 and graph.is_uniform():
        yield Finding(
            "uniform",
            f"every client still gives every other the same weight {graph.share:.3g} at the end: "
            f"raise algorithm.gamma (now {config.gamma:g}) if some should count for more",
        )
    if graph.links == graph.count and graph.pairs > 1:
        yield Finding(
            "fully_connected",
            f"all {graph.pairs} pairs are still linked at the end: if clients differ, raise "
            f"algorithm.gamma (now {config.gamma:g}) or lower algorithm.rho (now "
            f"{config.rho:g}), which ties models together",
        )
    alone = graph.at_0 == graph.count if graph.share else graph.links == 0
    if alone:
        yield Finding(
            "empty",
            "no pair is linked at the end, so every client trained alone: if some should help "
            f"each other, raise algorithm.rho (now {config.rho:g}), or lower "
            f"algorithm.gamma (now {config.gamma:g}) and raise data.batch_size if "
            "alignments are mostly noise",
        )
