"""Where a round's time goes: spans of one process, each second counted once, to the innermost span.

Every room may use it, since work of all kinds happens in all of them. Off, a span costs an attribute and a
call, and on less than a microsecond. In a traced run the same spans stand in PyTorch's trace, and cost ten
times as much.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch

KINDS = (
    "gradients", "midpoints", "packing", "sending", "waiting", "alignment", "mixing", "other", "logging",
)  # fmt: skip
"""`gradients`, `midpoints`: forward and backward passes at x_i and at z_ij; `packing`: rows into and out of
messages; `sending`: handing messages over; `waiting`: until they are there; `alignment`: inner products;
`mixing`: sums of models; `other`: the rest of a round, such as the step itself; `logging`: records,
evaluation, checkpoints."""

_NOTHING: AbstractContextManager[None] = nullcontext()


class PhaseTimer:
    """Seconds by kind since they were last taken."""

    def __init__(self, device: torch.device | None = None, traced: bool = False) -> None:
        """Measure; on a CUDA `device`, wait for it at every border, so that its work counts where it is.

        `traced`: show spans to PyTorch's profiler too.
        """
        self.on = True
        self._device = device if device is not None and device.type == "cuda" else None
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._open = ["other"]
        self._since = time.perf_counter()
        span = _TracedSpan if traced else _Span
        self._spans = {kind: span(self, kind) for kind in KINDS}

    @classmethod
    def off(cls) -> PhaseTimer:
        """Return a clock whose spans do nothing."""
        timer = cls()
        timer.on = False
        return timer

    def span(self, kind: str) -> AbstractContextManager[None]:
        """Count the body's seconds as `kind`, but for spans within it."""
        return self._spans[kind] if self.on else _NOTHING

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call, by kind, and begin anew."""
        self._turn()
        taken, self._seconds = self._seconds, dict.fromkeys(KINDS, 0.0)
        return taken

    def enter(self, kind: str) -> None:
        """Begin a span."""
        self._turn()
        self._open.append(kind)

    def leave(self) -> None:
        """End the innermost span."""
        self._turn()
        self._open.pop()

    def _turn(self) -> None:
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now


class _Span(AbstractContextManager[None]):
    """One kind's span; it may stand within itself, since what is open is known to the clock."""

    def __init__(self, timer: PhaseTimer, kind: str) -> None:
        self._timer, self._kind = timer, kind

    def __enter__(self) -> None:
        self._timer.enter(self._kind)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._timer.leave()


class _TracedSpan(_Span):
    """A span that PyTorch's profiler sees."""

    def __init__(self, timer: PhaseTimer, kind: str) -> None:
        super().__init__(timer, kind)
        self._records: list[torch.profiler.record_function] = []

    def __enter__(self) -> None:
        super().__enter__()
        record = torch.profiler.record_function(self._kind)
        record.__enter__()  # type: ignore[no-untyped-call]
        self._records.append(record)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._records.pop().__exit__(kind, error, at)
        super().__exit__(kind, error, at)
