"""A callback that stops a run once its clusters have stayed the same for some rounds.

python -m cobo_dist.train plugins=examples/own_callback.py 'callbacks=[{name: settled, rounds: 100}]'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from cobo_dist import Callback, CallbackSection, register


@register.callback("settled")
class Settled(Callback):
    """Watches the number of connected components of W."""

    class Config(CallbackSection):
        """Stop once the clusters found no longer change."""

        rounds: int = Field(
            100, ge=1, description="rounds for which their number must stay the same"
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Start, or go on from a checkpoint."""
        self.components, self.since = state.get("components", 0.0), state.get("since", 0)

    def after_round(self, r: int, metrics: Mapping[str, float]) -> bool:
        """Return whether the clusters have been the same, and more than one, for long enough."""
        now = metrics["components"]
        if now != self.components:
            self.components, self.since = now, r
        return now > 1 and r - self.since >= self.config.rounds

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to stop at the same round."""
        return {"components": self.components, "since": self.since}
