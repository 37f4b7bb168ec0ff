"""CoBo's health checks: known ways in which W and the penalty fail, each with the key to change."""

from __future__ import annotations

import math
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

DIVERGED = 2.0
"""Models diverge where the training loss has grown by this factor since round 1."""

MIN_DRAWS_PER_PAIR = 3.0
"""A pair that was drawn fewer times in the whole run has too little evidence."""


def overshooting_links(config: CoBoConfig, facts: HealthFacts) -> int:
    """Return how many links of weight 1 make the explicit step overshoot at a client; 0 if it cannot.

    A client with m - 1 links gives the penalty's step a factor of 1 - eta rho m or less, which is -1 at
    eta rho m = 2. On a simplex the factor is 1 - 2 eta rho where two clients give each other all.
    Clients that do not take part in a round have no links in it.
    """
    pull, most = facts.lr * config.rho, facts.taking_part
    if config.coupling == "capped" or most < 2:
        return 0
    if config.domain == "simplex":
        return int(pull >= 1.0)
    if pull * most < 2.0:
        return 0
    if config.start == "ones":
        return most - 1
    moves = config.sampling.rate > 0 and (config.selection != "gradient" or config.gamma > 0)
    return max(2, math.ceil(2.0 / pull)) - 1 if moves else 0  # from zeros nothing else makes links


def penalty_on_box(config: CoBoConfig, facts: HealthFacts) -> Iterator[Finding]:
    """Check the penalty's explicit step: at W = 1 where W starts there, and for links to come."""
    links = overshooting_links(config, facts)
    if not links:
        return
    linked = links + 1
    when, symbol = f"at a client with {links} link{'s' * (links > 1)} of weight 1", str(linked)
    if config.start == "ones":
        all_of_them = facts.taking_part == facts.clients
        when, symbol = ("at W = 1", "n") if all_of_them else ("at W = 1 in a round", "m")
    yield Finding(
        "penalty_step",
        f"{when} the penalty's step eta rho {symbol} = {facts.lr:g} * {config.rho:g} * {linked} = "
        f"{facts.lr * config.rho * linked:.2f} is 2 or more and overshoots: models will diverge; set "
        f"algorithm.coupling=capped, or lower algorithm.rho below {2 / (facts.lr * facts.taking_part):.3g} "
        "or optimizer.lr",
    )


def penalty_on_simplex(config: CoBoConfig, facts: HealthFacts) -> Iterator[Finding]:
    """Check the penalty's step between two clients, and that clients have a choice."""
    if overshooting_links(config, facts):
        yield Finding(
            "penalty_step",
            "the penalty makes two clients that give each other all their weight change places "
            f"at a step eta rho of 1, and here it is {facts.lr:g} * {config.rho:g} = "
            f"{facts.lr * config.rho:.2f}, which overshoots: models will diverge; lower algorithm.rho below "
            f"{1 / facts.lr:.3g} or optimizer.lr",
        )
    if facts.clients == 2 and config.own_weight == "excluded":
        yield Finding(
            "no_choice",
            "each of 2 clients gives the other all its weight, whatever happens; set "
            "algorithm.own_weight=included or algorithm.domain=box to let them part",
        )


def has_diverged(facts: HealthFacts) -> bool:
    """Return whether the loss has grown so much that alignments and W say nothing about gamma."""
    return not facts.loss_growth <= DIVERGED  # it may be NaN


def saturation(config: CoBoConfig, facts: HealthFacts, graph: Graph) -> Iterator[Finding]:
    """Check whether single batches decide weights, once pairs have met often enough."""
    if has_diverged(facts):
        return
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


def advice(config: CoBoConfig, facts: HealthFacts) -> tuple[str, str]:
    """Return what makes fewer links, and what makes more."""
    if config.draws_pairs:
        gamma = f"algorithm.gamma (now {config.gamma:g})"
        return f"raise {gamma}", (
            f"raise algorithm.rho (now {config.rho:g}), or lower {gamma} and raise data.batch_size if "
            "alignments are mostly noise"
        )
    tolerance = f"algorithm.difference.tolerance (now {config.difference.tolerance:g})"
    window = config.difference.window
    return f"lower {tolerance}", (
        f"raise {tolerance}, or run.rounds (now {facts.rounds}): a link takes three windows of {window} "
        "rounds or more"
    )


def at_the_end(config: CoBoConfig, facts: HealthFacts, graph: Graph) -> Iterator[Finding]:
    """Check W after the last round."""
    draws, (fewer, more) = facts.drawn / graph.pairs, advice(config, facts)
    if config.draws_pairs and draws < MIN_DRAWS_PER_PAIR:
        yield Finding(
            "hardly_drawn",
            f"each pair was drawn {draws:.1f} times in {facts.r} rounds, too few to judge it; raise "
            f"algorithm.sampling.rate (now {config.sampling.rate:g}), run.rounds, or "
            f"use another algorithm.sampling.name than {config.sampling.name}",
        )
    if has_diverged(facts):
        return
    if graph.share and graph.pairs > 1 and graph.is_uniform():
        yield Finding(
            "uniform",
            f"every client still gives every other the same weight {graph.share:.3g} at the end: "
            f"raise algorithm.gamma (now {config.gamma:g}) if some should count for more",
        )
    if graph.links == graph.count and graph.pairs > 1:
        yield Finding(
            "fully_connected",
            f"all {graph.pairs} pairs are still linked at the end: if clients differ, {fewer} or lower "
            f"algorithm.rho (now {config.rho:g}), which ties models together",
        )
    alone = graph.at_0 == graph.count if graph.share else graph.links == 0
    if alone:
        yield Finding(
            "empty",
            "no pair is linked at the end, so every client trained alone: if some should help each other, "
            f"{more}",
        )
