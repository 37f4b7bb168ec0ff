"""The engines by name, and the choice of the faster one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

from cobo_dist.clients.buffers import BufferRows
from cobo_dist.clients.engines import Batch, Engine, Loss, OneByOne
from cobo_dist.clients.graphs import GraphedPasses
from cobo_dist.clients.vectorized import Vectorized
from cobo_dist.errors import words_of
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths.flat import empty_rows

ENGINES: dict[str, Callable[..., Engine]] = {
    OneByOne.name: OneByOne,
    Vectorized.name: Vectorized,
}


def build_engine(
    name: str, model: nn.Module, loss: Loss, parts: int = 1, *, graphs: bool = False
) -> Engine:
    """Return the engine of this name; `graphs`: with its passes as CUDA graphs, if it has such a form."""
    if graphs and name == OneByOne.name:
        return GraphedPasses(OneByOne(model, loss, parts))
    return ENGINES[name](model, loss, parts)


def fastest(
    engines: Sequence[Engine],
    points_md: Tensor,
    buffers: BufferRows,
    batch: Batch,
    repeats: int = 5,
    max_seconds: float = 4.0,
) -> tuple[str, dict[str, float], dict[str, str]]:
    """Time each engine on the real models and one real batch.

    Returns the fastest, the seconds of each, and for those that fail why, in words.

    Works on copies: no model or buffer changes. After one warm-up, each engine makes `repeats` passes, or
    as many as fit into `max_seconds`, and its median counts. An engine that fails takes infinitely long: it
    may have not enough memory, or lack an operation.

    Raises:
        Exception: no engine works; of the first one.
    """
    deadline = time.perf_counter() + max_seconds
    gradients_md = empty_rows(*points_md.shape, dtype=points_md.dtype, device=points_md.device)
    scratch = BufferRows(buffers.layouts, tuple(rows.clone() for rows in buffers.rows))
    seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    failures: dict[str, Exception] = {}
    for repeat in range(repeats + 1):
        if repeat > 1 and time.perf_counter() > deadline:
            break
        for engine in engines:
            if engine.name in failures:
                continue
            started = time.perf_counter()
            try:
                engine.gradients(points_md, gradients_md, scratch, batch)
                if points_md.is_cuda:
                    torch.cuda.synchronize(points_md.device)
            except Exception as error:  # of any kind: a model may have any code
                failures[engine.name], seconds[engine.name] = error, [math.inf]
                continue
            if repeat:
                seconds[engine.name].append(time.perf_counter() - started)
    if len(failures) == len(engines):
        raise next(iter(failures.values()))
    medians = {name: median(times) for name, times in seconds.items()}
    why = {name: words_of(error) for name, error in failures.items()}
    return min(medians, key=medians.__getitem__), medians, why
