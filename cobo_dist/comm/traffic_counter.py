"""What was sent: messages and bytes by purpose."""

from __future__ import annotations

from collections import Counter

TRAINING = ("pairs", "gradients", "mixing")
PURPOSES = (*TRAINING, "moving", "logging")
"""`pairs`: partner models. `gradients`: halves of midpoint gradients and their scalars. `mixing`:
models and sums of the penalty or of an average, the weights that say which, and numbers that ranks
share. `moving`: clients on their way to another rank, and W to the coordinator, which decides that.
`logging`: metrics and W to the coordinator."""


class TrafficCounter:
    """Counts what this rank sends, by purpose."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def sent(self, purpose: str, nbytes: int) -> None:
        """Enter one message of `nbytes` bytes."""
        if purpose not in PURPOSES:
            raise ValueError(f"purpose {purpose!r} is none of {', '.join(PURPOSES)}")
        self.messages[purpose] += 1
        self.bytes[purpose] += nbytes

    def training(self) -> tuple[int, ...]:
        """Return what the algorithm itself sent so far: messages, then bytes of each of `TRAINING`."""
        messages = sum(self.messages[purpose] for purpose in TRAINING)
        return messages, *(self.bytes[purpose] for purpose in TRAINING)
