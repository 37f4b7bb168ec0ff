"""What a rank sent: messages and bytes by purpose."""

from __future__ import annotations

from collections import Counter

TRAINING = ("pairs", "gradients", "mixing")
"""What the algorithm itself sends."""
PURPOSES = (*TRAINING, "moving", "logging")
"""`pairs`: partners' models. `gradients`: halves of midpoint gradients and their inner products. `mixing`:
models and sums of models for the penalty or an average, the blocks of W that say which, numbers that all
ranks share, rows for inner products, and models that visit, with the answers. `moving`: clients that migrate
to another rank, and W to the coordinator, which decides that. `logging`: metrics and W to the coordinator."""


class TrafficCounter:
    """Counts what this rank sends, by purpose.

    >>> counter = TrafficCounter()
    >>> counter.sent("pairs", 400)
    >>> counter.training()
    (1, 400, 0, 0)
    """

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def sent(self, purpose: str, nbytes: int) -> None:
        """Count one message of `nbytes` bytes.

        Raises:
            ValueError: the purpose is none of `PURPOSES`.
        """
        if purpose not in PURPOSES:
            raise ValueError(f"purpose {purpose!r} is none of {', '.join(PURPOSES)}")
        self.messages[purpose] += 1
        self.bytes[purpose] += nbytes

    def training(self) -> tuple[int, ...]:
        """Return what the algorithm sent so far: all messages, then the bytes of each of `TRAINING`."""
        messages = sum(self.messages[purpose] for purpose in TRAINING)
        return messages, *(self.bytes[purpose] for purpose in TRAINING)
