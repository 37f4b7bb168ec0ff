"""Calls the callbacks of a run on rank 0, and lets all ranks know what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from cobo_dist.callbacks.callback import Callback
from cobo_dist.comm.transports.base import Transport
from cobo_dist.errors import RunFailure, words_of
from cobo_dist.results.run import Run
from cobo_dist.tracking.run_logger import RunLogger


class CallbackRunner:
    """The callbacks of one run. Every rank has one; without callbacks it sends nothing.

    What a callback returns or raises reaches all ranks by one broadcast, so they stop or fail together.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        transport: Transport,
        run_logger: RunLogger | None,
        run: Run,
    ) -> None:
        """Call `callbacks` in their order; `run_logger` is None on all ranks but 0."""
        self.callbacks, self.transport, self.run_logger, self.run = (
            callbacks, transport, run_logger, run,
        )  # fmt: skip
        self._begun: list[Callback] = []
        if run_logger is not None:
            run_logger.recent.wanted = bool(callbacks)
            run_logger.callback_states = self._states

    @property
    def every_round(self) -> bool:
        """Whether a callback may stop the run after any round, so that metrics are gathered after each."""
        return any(one.stops_after == "rounds" for one in self.callbacks)

    def begin(self) -> None:
        """Restore the callbacks' state and let them see the run; all ranks call this.

        Raises:
            RunFailure: the same on all ranks: a callback raised.
        """
        self._agree(self._begin)

    def after_rounds(self) -> str:
        """Let the callbacks see the rounds that were gathered since the last call; all ranks call this.

        Returns why the run stops early; empty if it goes on.

        Raises:
            RunFailure: as `begin`.
        """
        return self._agree(self._after_rounds)

    def end(self) -> None:
        """Let the callbacks see the run that has ended; all ranks call this.

        Raises:
            RunFailure: as `begin`.
        """
        self._agree(self._end)

    def abandon(self) -> None:
        """Let the callbacks see a run that failed; what they raise counts for nothing beside the failure."""
        while self._begun:
            with suppress(RunFailure):
                self._end()

    def _begin(self) -> str:
        assert self.run_logger is not None, "rank 0 has the logs"
        for key, one in self._named():
            with _naming(one, "at the start"):
                one.restore(self.run_logger.restored_callbacks.get(key, {}))
                self._begun.append(one)
                one.begin(self.run)
        return ""

    def _after_rounds(self) -> str:
        assert self.run_logger is not None, "rank 0 has the logs"
        reason = ""
        for r, metrics in self.run_logger.recent.take():
            evaluated = any("/" in name for name in metrics)
            for one in self.callbacks:
                with _naming(one, f"after round {r}"):
                    asks = one.after_round(r, dict(metrics))
                    if not isinstance(asks, bool | np.bool_ | None):
                        raise TypeError(
                            f"after_round returned {_short(asks)}; return True to stop the run, else "
                            "False or None"
                        )
                counts = one.stops_after == "rounds" or (
                    one.stops_after == "evaluations" and evaluated
                )
                if asks and counts:
                    reason = reason or f"stopped early at round {r} by {one.title}"
        return reason

    def _end(self) -> str:
        while self._begun:
            one = self._begun.pop()
            with _naming(one, "at the end"):
                one.end(self.run)
        return ""

    def _named(self) -> list[tuple[str, Callback]]:
        """Return the callbacks, each with the key of its state: its title, numbered where it repeats."""
        titles = [one.title for one in self.callbacks]
        counts = [titles[:at].count(title) for at, title in enumerate(titles)]
        keys = [f"{t} {k + 1}" if k else t for t, k in zip(titles, counts, strict=True)]
        return list(zip(keys, self.callbacks, strict=True))

    def _states(self) -> dict[str, Any]:
        states = {}
        for key, one in self._named():
            with _naming(one, "in its state"):
                state: Any = one.state()
                if not isinstance(state, dict):
                    raise TypeError(f"state returned {_short(state)}; return a dictionary")
                states[key] = json.loads(json.dumps(state, allow_nan=False))
        return states

    def _agree(self, act: Callable[[], str]) -> str:
        """Do something on rank 0; return what came of it, or fail, on all ranks."""
        if not self.callbacks:
            return ""
        answer, error = ["", ""], None
        if self.run_logger is not None:
            try:
                answer[0] = act()
            except RunFailure as raised:
                error, answer[1] = raised, str(raised)
        reason, failure = json.loads(self.transport.broadcast(json.dumps(answer).encode()))
        if failure:
            raise error or RunFailure(failure)
        return str(reason)


def _short(value: object) -> str:
    shown = " ".join(repr(value).split())
    return f"{type(value).__name__} {shown[:80]}{'...' if len(shown) > 80 else ''}"


@contextmanager
def _naming(callback: Callback, when: str) -> Iterator[None]:
    """Name the callback that raises, in one line."""
    try:
        yield
    except Exception as error:
        text = words_of(error)
        raise RunFailure(
            f"the callback {callback.title} failed {when}: {type(error).__name__}: {text}"
        ) from error
