"""Passes, and how batches are made, as CUDA graphs: recorded once, replayed for every client and midpoint.

Small batches keep a GPU waiting for the next launch: a pass of ResNet-9 has several hundred kernels. A graph
launches them all at once. It repeats the same kernels on the same addresses, so which model it takes is a
number on the device: the graph reads it, copies that row of the models, computes, writes the gradient into
that row and adds one to the number.

Shapes: m models, d parameters, b buffers of one type; batches are tuples of tensors [m, ...].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from cobo_dist.clients.buffers import BufferRows
from cobo_dist.clients.engines import Batch, Done, OneByOne, ReusedBatch
from cobo_dist.errors import words_of
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import empty_rows, to_device

Step = Callable[[], None]
Record = Callable[[Step], Step]  # takes a step, returns what repeats it

MAX_GRAPHS = 8
"""Graphs that are kept, the ones used last. A run needs one for local gradients and one for midpoints."""
_WARM_UPS = (
    3  # passes before recording, in which libraries choose their kernels and allocate memory
)


class CudaRecorder:
    """Records steps as CUDA graphs, which share their memory, since only one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Step) -> Step:
        """Return the replay of a recorded step.

        Raises:
            RuntimeError: the step does what CUDA cannot record; with its reason.
        """
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # Other threads, such as the one that writes a checkpoint, may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # torch may leave its own in use
            cause = error.__context__  # of the step, where to end the recording failed as well
            raise (cause if isinstance(cause, RuntimeError) else error) from None
        self._pool = graph.pool()
        return graph.replay


@dataclass(frozen=True)
class Recorded:
    """One recorded pass, and the tensors that it reads and writes beside models, gradients and buffers."""

    replay: Step
    row_1: Tensor  # int64, the model whose turn it is
    batch: Batch  # that the graph reads
    losses_m: Tensor
    kept: tuple[Tensor, ...]  # other memory of the graph, which knows addresses only

    @property
    def capacity(self) -> int:
        """The most models that it serves."""
        return len(self.losses_m)


class GraphedPasses:
    """The engine `OneByOne` with its passes replayed.

    The task's loss must be a function of the model and the tensors of a batch alone
    (`LearningTask.loss_is_pure`): what Python computes beside them is recorded as it was at the first pass.
    """

    name = OneByOne.name

    def __init__(self, engine: OneByOne, record: Record | None = None) -> None:
        """Record passes of `engine`; `record` replaces CUDA's recorder in tests."""
        self.engine, self._record = engine, record or CudaRecorder()
        self._recorded: OrderedDict[Hashable, Recorded] = OrderedDict()
        self.refusal = ""  # why passes are not recorded; empty as long as they are

    def gradients(
        self,
        points_md: Tensor,
        gradients_md: Tensor,
        buffers: BufferRows,
        batch: Batch,
        done: Done | None = None,
    ) -> Tensor:
        """As `OneByOne.gradients`, with one call of `done` for all models.

        The losses lie where the next ones will.
        """
        count = len(points_md)
        if not count:
            return points_md.new_empty(0)
        taken = self.find(points_md, gradients_md, buffers, batch)
        if taken is None:
            return self.engine.gradients(points_md, gradients_md, buffers, batch, done)
        taken.row_1.zero_()
        for kept, new in zip(taken.batch, batch, strict=True):
            if kept.data_ptr() != new.data_ptr():
                kept[:count].copy_(new)
        for _ in range(count):
            taken.replay()
        losses_m = taken.losses_m[:count]
        if done is not None:
            done(slice(0, count), losses_m)
        return losses_m

    def find(
        self, points_md: Tensor, gradients_md: Tensor, buffers: BufferRows, batch: Batch
    ) -> Recorded | None:
        """Return the graph of these addresses, recorded now if there is none, or one of fewer models.

        None if passes cannot be recorded; models and buffers are then as they were.
        """
        if self.refusal:
            return None
        matrices = (points_md, gradients_md, *buffers.rows)
        key = (
            *((one.data_ptr(), one.stride(), one.dtype) for one in matrices),
            *((one.shape[1:], one.dtype) for one in batch),
        )
        found = self._recorded.pop(key, None)
        if found is None or found.capacity < len(points_md):
            try:
                found = self._record_pass(points_md, gradients_md, buffers, batch)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                return None  # other graphs still fit
            except RuntimeError as error:
                self.refusal = words_of(error) or type(error).__name__
                self._recorded.clear()
                return None
        self._recorded[key] = found
        while len(self._recorded) > MAX_GRAPHS:
            self._recorded.popitem(last=False)
        return found

    def _record_pass(
        self, points_md: Tensor, gradients_md: Tensor, buffers: BufferRows, batch: Batch
    ) -> Recorded:
        engine, device = self.engine, points_md.device
        row_1 = torch.zeros(1, dtype=torch.int64, device=device)
        kept_batch = batch
        if not isinstance(batch, ReusedBatch):
            kept_batch = tuple(tensor.clone() for tensor in batch)
        losses_m = torch.zeros(len(points_md), dtype=points_md.dtype, device=device)
        point_1d, gradient_1d = (
            empty_rows(1, engine.layout.size, dtype=points_md.dtype, device=device)
            for _ in range(2)
        )
        own = BufferRows(buffers.layouts, tuple(torch.empty_like(one[:1]) for one in buffers.rows))
        gradient_views = list(engine.layout.views(gradient_1d[0]).values())

        own_views = {name: one[0] for name, one in own.views().items()}

        def step() -> None:
            engine.load(
                point_1d[0], own_views
            )  # so that a step is whole where it is run, not replayed
            torch.index_select(points_md, 0, row_1, out=point_1d)
            for rows, row in zip(buffers.rows, own.rows, strict=True):
                torch.index_select(rows, 0, row_1, out=row)
            one = tuple(tensor.index_select(0, row_1)[0] for tensor in kept_batch)
            loss = engine.pass_into(gradient_views, one)
            gradients_md.index_copy_(0, row_1, gradient_1d)
            for rows, row in zip(buffers.rows, own.rows, strict=True):
                rows.index_copy_(0, row_1, row)
            losses_m.index_copy_(0, row_1, loss.to(losses_m.dtype)[None])
            row_1.add_(1)

        # The passes before recording work on the first model, which is put back after each.
        touched = (points_md, gradients_md, *buffers.rows)
        first = [one[:1].clone() for one in touched]

        def put_back() -> None:
            row_1.zero_()
            for one, kept in zip(touched, first, strict=True):
                if one.stride(0):  # else all rows are one, which is only read
                    one[:1].copy_(kept)

        try:
            for _ in range(_WARM_UPS):
                step()
                put_back()
            replay = self._record(step)
        finally:
            put_back()
        return Recorded(replay, row_1, kept_batch, losses_m, (point_1d, gradient_1d, *own.rows))


class GraphedFunction:
    """A function of tensors [m, ...], replayed as a CUDA graph for tensors that are as long or shorter.

    The first one is on the GPU, where others of the CPU are copied to. What it returns, as long as the last
    one, lies where the last answer for such shapes did: use it before the next call.
    """

    def __init__(self, function: Callable[..., Batch]) -> None:
        self.function, self._record = function, CudaRecorder()
        self._recorded: OrderedDict[Hashable, tuple[Step, Batch, Batch]] = OrderedDict()
        self._refused = False

    def __call__(self, *given: Tensor) -> Batch:
        """Return what the function does."""
        count, key = len(given[-1]), tuple(one.shape[1:] for one in given)
        if not count or self._refused:
            return self.function(*given)
        found = self._recorded.pop(key, None)
        if found is None or any(len(k) < len(new) for k, new in zip(found[1], given, strict=True)):
            try:
                found = self._record_call(given)
            except RuntimeError:  # of what CUDA cannot record, or out of memory
                self._refused = True
                self._recorded.clear()
                return self.function(*given)
        self._recorded[key] = found
        while len(self._recorded) > MAX_GRAPHS:
            self._recorded.popitem(last=False)
        replay, kept, answer = found
        for into, new in zip(kept, given, strict=True):
            into[: len(new)].copy_(new, non_blocking=True)
        replay()
        return ReusedBatch(tensor[:count] for tensor in answer)

    def _record_call(self, given: Batch) -> tuple[Step, Batch, Batch]:
        kept = tuple(to_device(one, given[0].device).clone() for one in given)
        # Outside the graph's memory, which its next replay may use for other numbers.
        answer = tuple(tensor.clone() for tensor in self.function(*kept))

        def step() -> None:
            for out, tensor in zip(answer, self.function(*kept), strict=True):
                out.copy_(tensor)

        return self._record(step), kept, answer
