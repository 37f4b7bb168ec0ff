"""Where a round's time goes: spans of one process, each second counted once, to the innermost span.

Any package may use it, since work of every kind happens in all of them. When the timer is off, a span costs
one attribute look-up and one call. When it is on, a span costs less than a microsecond, and about ten times
as much in a traced run, where PyTorch's profiler records the spans as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch

PHASES = (
    "gradients", "midpoints", "packing", "sending", "waiting", "alignment", "mixing", "other", "logging",
)  # fmt: skip
"""`gradients`, `midpoints`: forward and backward passes at x_i and at z_ij; `packing`: rows into and out of
messages; `sending`: posting messages; `waiting`: until messages arrive; `alignment`: inner products;
`mixing`: sums of models; `other`: the rest of a round, such as the step itself; `logging`: records,
evaluation, checkpoints."""

_NO_SPAN: AbstractContextManager[None] = nullcontext()


class PhaseTimer:
    """Seconds of each phase since they were last taken.

    >>> timer = PhaseTimer()
    >>> with timer.span("mixing"):
    ...     with timer.span("waiting"):
    ...         pass  # counts as waiting alone
    >>> sorted(timer.take()) == sorted(PHASES)
    True
    """

    def __init__(self, device: torch.device | None = None, traced: bool = False) -> None:
        """Start to measure.

        Args:
            device: a CUDA device to wait for wherever a span begins or ends, so that its work counts
                in the right phase.
            traced: show the spans to PyTorch's profiler too.
        """
        self.on = True
        self._device = device if device is not None and device.type == "cuda" else None
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._open_phases = ["other"]
        self._last_change = time.perf_counter()
        span = _TracedSpan if traced else _Span
        self._spans = {phase: span(self, phase) for phase in PHASES}

    @classmethod
    def off(cls) -> PhaseTimer:
        """Return a timer whose spans do nothing."""
        timer = cls()
        timer.on = False
        return timer

    def span(self, phase: str) -> AbstractContextManager[None]:
        """Count the seconds of the body as `phase`, except for spans within it."""
        return self._spans[phase] if self.on else _NO_SPAN

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, and start again at zero."""
        self._count()
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken

    def enter(self, phase: str) -> None:
        """Begin a span."""
        self._count()
        self._open_phases.append(phase)

    def leave(self) -> None:
        """End the innermost span."""
        self._count()
        self._open_phases.pop()

    def _count(self) -> None:
        """Add the seconds since the last change to the innermost open span."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._seconds[self._open_phases[-1]] += now - self._last_change
        self._last_change = now


class RoundClock:
    """Measures rounds. On a GPU by events in its stream, so that its work counts, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began: float | torch.cuda.Event = 0.0

    def start(self) -> None:
        """Begin a round."""
        self._began = self._now()

    def stop(self) -> Callable[[], float]:
        """End the round; return what tells its seconds, and on a GPU waits until they are known."""
        began, ended = self._began, self._now()

        def seconds() -> float:
            if isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
                ended.synchronize()
                return float(began.elapsed_time(ended)) / 1000
            return float(ended) - float(began)  # type: ignore[arg-type]

        return seconds

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class _Span(AbstractContextManager[None]):
    """The span of one phase. It may be nested in itself: the timer keeps the stack of open spans."""

    def __init__(self, timer: PhaseTimer, phase: str) -> None:
        self._timer, self._phase = timer, phase

    def __enter__(self) -> None:
        self._timer.enter(self._phase)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.leave()


class _TracedSpan(_Span):
    """A span that PyTorch's profiler records."""

    def __init__(self, timer: PhaseTimer, phase: str) -> None:
        super().__init__(timer, phase)
        self._records: list[torch.profiler.record_function] = []

    def __enter__(self) -> None:
        super().__enter__()
        record = torch.profiler.record_function(self._phase)
        record.__enter__()  # type: ignore[no-untyped-call]
        self._records.append(record)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._records.pop().__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)
