"""CoBo's config section.

Keys have the paper's names. Their defaults are the paper's; what differs from it is a setting beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from cobo_dist.algorithms import cobo_health
from cobo_dist.algorithms.algorithm import AlgorithmSection, Finding, HealthFacts
from cobo_dist.algorithms.base import RunContext, sampled_rounds
from cobo_dist.algorithms.cobo_privacy import PrivacyConfig
from cobo_dist.algorithms.statistics import StatisticName
from cobo_dist.maths.sampling import pair_probability
from cobo_dist.maths.sketch import Sketch
from cobo_dist.settings import Section, Texts

PRESETS = {
    "paper": {
        "algorithm": {
            "sampling": {"name": "constant", "rate": 1.0}, "alignment": "inner", "alignment_columns": [],
            "start": "ones", "order": "weights_first", "midpoint_data": "fresh", "penalty": "scheduled",
            "coupling": "explicit", "selection": "gradient", "margin": 0.0, "threshold": 0.0,
        },
    },
    "published": {
        "algorithm": {
            "sampling": {"name": "published"}, "alignment": "inner", "alignment_columns": [],
            "start": "ones", "order": "models_first", "coupling": "explicit", "selection": "gradient",
            "margin": 0.0, "threshold": 0.0,
        },
    },
    "evidence": {
        "algorithm": {
            "rho": 5.0, "alignment": "inner", "alignment_columns": [], "start": "zeros",
            "coupling": "capped", "selection": "evidence",
        },
    },
    "robust": {
        "algorithm": {
            "rho": 5.0, "sampling": {"name": "constant", "rate": 1.0}, "alignment": "inner",
            "alignment_columns": [], "start": "zeros", "coupling": "capped", "selection": "difference",
            "margin": 0.0, "threshold": 0.0,
        },
    },
}  # fmt: skip
"""The update as the paper prints it, as the authors' code has it, and two that need no tuning for a task.
What a task decides, rho and gamma, is in the first two no part of it."""


class SamplingConfig(Section):
    """Which pairs meet in a round (Table 1)."""

    name: Literal["constant", "time", "mixed", "all", "published"] = Field(
        "constant",
        description="probability of an unordered pair: constant 1/n, time 1/t, mixed 1/n at first "
        "and then 1/t, all 1; published (the authors' code) 2/n for 800 rounds, then 1/sqrt(t)",
    )
    rate: float = Field(1.0, ge=0, description="factor on that probability; 0 draws none")
    switch_fraction: float = Field(
        0.002, ge=0, le=1, description="mixed: share of the rounds before 1/t (paper: 0.2%)"
    )

    def probability(self, t: int, clients: int, rounds: int) -> float:
        """Return the probability of one unordered pair in round t."""
        return pair_probability(
            self.name, t, clients, rounds, rate=self.rate, switch_fraction=self.switch_fraction
        )


class EvidenceConfig(Section):
    """Client selection by evidence (`algorithm.selection=evidence`)."""

    certainty: float = Field(
        1.0,
        ge=0,
        description="how many standard deviations of evidence a link needs; w_ij is what exceeds it, up to 1",
    )
    share: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of the mean alignment of all pairs that a pair must exceed: below 1, so that "
        "clients that are all alike are all linked",
    )
    discount: float = Field(
        0.97,
        gt=0,
        le=1,
        description="what counts of earlier evidence after a meeting; 1 never forgets",
    )


class DifferenceConfig(Section):
    """Client selection by differences of gradients (`algorithm.selection=difference`)."""

    window: int = Field(
        10, ge=2, description="rounds whose gradients are averaged before all clients are compared"
    )
    tolerance: float = Field(
        1.6,
        gt=0,
        description="difference of two clients' gradients that speaks neither for nor against a link, "
        "relative to its expectation for as many examples that are drawn alike",
    )
    step: float = Field(
        0.5,
        gt=0,
        description="how far a window moves the weight of two clients at most",
    )


class CoBoConfig(AlgorithmSection):
    """Learns models and collaboration weights together."""

    presets = PRESETS

    name: Literal["cobo"] = "cobo"
    rho: float = Field(
        0.2, ge=0, le=1e15, description="penalty on the distance of collaborators' models"
    )
    gamma: float = Field(0.01, ge=0, description="step size of the collaboration weights")
    domain: Literal["box", "simplex"] = Field(
        "box",
        description="domain of the weights: box is [0, 1] each; simplex: a client's weights are 0 or more "
        "and sum to 1 (language)",
    )
    own_weight: Literal["excluded", "included"] = Field(
        "excluded",
        description="simplex: whether w_ii belongs to client i's row. The penalty does not see it and "
        "the authors start at 1/(n-1) off the diagonal: excluded; included, it takes the weight that a "
        "client gives to no other",
    )
    sampling: SamplingConfig = SamplingConfig()
    alignment: StatisticName = Field(
        "inner",
        description="what changes a weight: inner product of the midpoint gradients (paper), their "
        "cosine, which does not shrink with the gradients, or a statistic of a plug-in",
    )
    alignment_columns: Texts = Field(
        (),
        description="names or globs of the parameters whose gradients are aligned, as ['*lora_B*']; empty: "
        "all (paper). The penalty acts on whole models",
    )
    start: Literal["ones", "zeros"] = Field(
        "ones",
        description="W^0: all ones (paper) or zeros, which lets collaboration grow; on a simplex, ones "
        "is one weight for all that sums to 1",
    )
    order: Literal["weights_first", "models_first"] = Field(
        "weights_first",
        description="within a round: client selection, then models with the new weights (paper), or "
        "models with the old weights, then selection (the authors' code); both read x^t",
    )
    midpoint_data: Literal["fresh", "shared"] = Field(
        "fresh",
        description="a client's examples at midpoints: a stream of their own, or the batch of its "
        "local step (the paper leaves it open)",
    )
    penalty: Literal["scheduled", "fixed"] = Field(
        "scheduled",
        description="the penalty's step: eta(t) rho at x^t (paper), or optimizer.lr rho whatever "
        "optimizer.schedule says, at the models after their gradient step (the authors' language "
        "code: its 0.001 is rho 0.5 at lr 2e-3)",
    )

    coupling: Literal["explicit", "capped"] = Field(
        "explicit",
        description="how models are pulled together: explicit, the penalty's gradient step (paper), which "
        "diverges where eta rho deg_i is 2 or more; capped, a weighted mean with the same pull where that "
        "is small, which no rho makes diverge and which is Oracle's mean where W is a block of ones",
    )
    selection: Literal["gradient", "evidence", "difference"] = Field(
        "gradient",
        description="client selection on the box: gradient, a projected step gamma (paper); evidence, how "
        "certain it is from all meetings that two clients align more than others, without a step size; "
        "difference, link clients whose gradients at the mean of all models differ no more than their "
        "numbers of examples explain",
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="selection=gradient: how much evidence is kept beyond [0, 1], so that noise does not "
        "wear weights off: 0 none (paper); a large number, 1e9 say, keeps all and forgets nothing",
    )
    threshold: float = Field(
        0.0,
        description="selection=gradient: alignment that a link must exceed; the price of a link in the inner "
        "problem",
    )
    sketch: int = Field(
        0,
        ge=0,
        description="how many random sums of a gradient travel in its place where clients compare gradients; "
        "inner products of sketches have an error of about sqrt(2 / sketch) of the norms. By itself it is no "
        "means of privacy. 0: gradients, half of one each way (paper)",
    )
    privacy: PrivacyConfig = PrivacyConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    difference: DifferenceConfig = DifferenceConfig()

    def contradiction(self) -> str:
        """Return which keys do not go together."""
        if self.selection == "difference" and (found := self._unused_by_difference()):
            return found
        if found := self._wrong_privacy():
            return found
        box_only = {
            "coupling": "explicit", "selection": "gradient", "margin": 0.0, "threshold": 0.0,
        }  # fmt: skip
        changed = [
            (key, getattr(self, key)) for key in box_only if getattr(self, key) != box_only[key]
        ]
        if changed and self.domain == "simplex":
            key, value = changed[0]
            return (
                f"algorithm.{key}={value} is for weights in [0, 1] that both clients of a pair share, and on "
                "algorithm.domain=simplex each client has its own; drop it or set algorithm.domain=box"
            )
        for key, value in changed:
            if self.selection != "gradient" and key in ("margin", "threshold"):
                return (
                    f"algorithm.{key}={value} means nothing to algorithm.selection={self.selection}, which "
                    "has none; drop it or set algorithm.selection=gradient"
                )
        if self.domain == "simplex" and self.start == "zeros":
            return (
                "algorithm.start=zeros is outside algorithm.domain=simplex, where weights sum to 1; "
                "use algorithm.start=ones, which is one weight for all"
            )
        if self.domain == "box" and self.own_weight == "included":
            return (
                "algorithm.own_weight=included means nothing to algorithm.domain=box, where each "
                "weight stands alone; drop it or set algorithm.domain=simplex"
            )
        return ""

    def _wrong_privacy(self) -> str:
        """Return what noise on comparisons needs."""
        private = self.privacy
        if (private.clip or private.noise) and not self.sketch:
            return (
                "algorithm.privacy bounds what a sketch of a gradient reveals, and algorithm.sketch=0 sends "
                "gradients themselves; set algorithm.sketch, 64 say"
            )
        if private.noise and self.midpoint_data == "shared":
            return (
                "algorithm.privacy.noise counts how often an example is used at midpoints, and with "
                "algorithm.midpoint_data=shared it also moves the client's model in that round; use fresh"
            )
        return private.contradiction()

    def _unused_by_difference(self) -> str:
        """Return which keys have no meaning without pairs that meet."""
        for key in ("sampling", "alignment", "alignment_columns", "privacy"):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                return (
                    f"algorithm.{key} is about pairs of clients that meet at midpoints, and "
                    "algorithm.selection=difference compares all at one point; drop it or set "
                    "algorithm.selection=gradient"
                )
        return ""

    def sketch_of(self, seed: int, t: int) -> Sketch | None:
        """Return what stands for gradients that are compared in round t; None: they themselves."""
        private = self.privacy
        return Sketch(self.sketch, seed, t, private.clip, private.noise) if self.sketch else None

    @property
    def draws_pairs(self) -> bool:
        """Yes, but for selection by differences, which compares all clients at one point."""
        return self.selection != "difference"

    @property
    def runs_asynchronously(self) -> bool:
        """Yes, but for selection by differences, and where it is counted how often examples are used."""
        return self.selection != "difference" and not self.privacy.noise

    @property
    def compresses_models(self) -> bool:
        """Yes."""
        return True

    @property
    def batch_streams(self) -> int:
        """Midpoints may have a stream of their own."""
        return 1 + (self.midpoint_data == "fresh")

    def equal_share(self, clients: int) -> float:
        """Return a simplex's equal weights."""
        if self.domain == "box":
            return 0.0
        return 1.0 / max(1, clients - (self.own_weight == "excluded"))

    @property
    def weight_step(self) -> float:
        """Gamma, where selection takes steps."""
        return self.gamma if self.selection == "gradient" else 0.0

    @property
    def needs_rounds(self) -> tuple[str, ...]:
        """The share of the rounds before mixed sampling switches."""
        if self.sampling.name != "mixed":
            return ()
        return ("algorithm.sampling.name=mixed switches after a share of them",)

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The penalty's factor."""
        return ("algorithm.rho",)

    def check_settings(self, facts: HealthFacts) -> Iterator[Finding]:
        """Check the penalty's step."""
        if self.coupling == "capped":
            return
        check = (
            cobo_health.penalty_on_box if self.domain == "box" else cobo_health.penalty_on_simplex
        )
        yield from check(self, facts)

    def check_round(self, facts: HealthFacts) -> Iterator[Finding]:
        """Check weights when pairs have met, and at the end."""
        if facts.graph is None or not facts.graph.pairs:
            return
        if facts.drawn_now:
            yield from cobo_health.saturation(self, facts, facts.graph)
        if facts.r == facts.rounds:
            yield from cobo_health.at_the_end(self, facts, facts.graph)

    def comparisons(self, t: int, context: RunContext) -> float:
        """Return the expected number of pairs; on a simplex every weight of W is kept by itself."""
        n = context.clients
        if self.selection == "difference":
            return n * (n - 1) / 2 if (t + 1) % self.difference.window == 0 else 0.0
        if self.domain == "simplex":
            return float(n * n)
        return self.sampling.probability(t, n, context.rounds) * n * (n - 1) / 2

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds differ unless all pairs meet in each; windows are compared from the second on."""
        if self.selection == "difference":
            window = self.difference.window
            compared = max(0, rounds // window - 1)
            others = [(0, rounds - compared)]
            return others + [(2 * window - 1, compared)] * (compared > 0)
        if self.sampling.name == "all" and self.sampling.rate >= 1:
            return [(0, rounds)]
        return sampled_rounds(rounds)
