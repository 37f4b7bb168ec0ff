"""CUDA graphs: a replay is the recorded step itself, and counts as one launch."""

from __future__ import annotations

from collections.abc import Callable

from virtual_cuda import counts as count
from virtual_cuda.counts import counted, uncounted


class Recorder:
    """Takes the place of the recorder of `clients.graphs`."""

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """Return the step as one launch.

        Raises:
            RuntimeError: the step waits for the device, which CUDA does not record.
        """
        with counted() as counts:
            step()
        if counts.syncs:
            (where, _), *_ = counts.syncs.most_common(1)
            raise RuntimeError(f"operation not permitted when stream is capturing: {where}")

        def replay() -> None:
            count.replay()
            with uncounted():
                step()

        return replay
