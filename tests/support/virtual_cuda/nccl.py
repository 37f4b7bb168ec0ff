"""NCCL's rules over gloo, for messages of the virtual device.

One Work for a batch; a receive buffer is undefined, and a send buffer must not change, until `wait`; messages
are contiguous, of a type that NCCL knows, and never in one batch with messages of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from virtual_cuda import counts
from virtual_cuda.marks import on_device, refuse, unwatched
from virtual_cuda.streams import poison

_TYPES = {
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8,
    torch.int8,
}  # fmt: skip

_send, _receive = dist.isend, dist.irecv
_batch, _init = dist.batch_isend_irecv, dist.init_process_group
_not_waited: list[BatchWork] = []


class BatchWork:
    """The one Work of a batch."""

    def __init__(self, ops: Sequence[Any]) -> None:
        self._works: list[Any] = []
        self._sends: list[tuple[Tensor, Tensor]] = []  # the buffer, and its content when posted
        self._receives: list[tuple[Tensor, Tensor]] = []  # the buffer, and where gloo writes
        with unwatched():
            for op in ops:
                buffer = op.tensor.detach()
                if op.op is dist.isend:
                    self._sends.append((buffer, buffer.clone()))
                    self._works.append(_send(self._sends[-1][1], op.peer))
                else:
                    self._receives.append((buffer, torch.empty_like(buffer)))
                    poison(buffer)
                    self._works.append(_receive(self._receives[-1][1], op.peer))
        _not_waited.append(self)

    def is_completed(self) -> bool:
        """Say that it is done: `wait` then waits for gloo."""
        return True

    def wait(self, *_: Any) -> bool:
        """Complete the batch.

        Raises:
            VirtualCudaError: a buffer was changed before.
        """
        if self in _not_waited:
            _not_waited.remove(self)
        with unwatched():
            for work in self._works:
                work.wait()
            for buffer, arrived in self._receives:
                if not bool((_bytes(buffer) == 255).all()):
                    refuse("a receive buffer was written before wait()")
                buffer.copy_(arrived)
            for buffer, posted in self._sends:
                if not torch.equal(_bytes(buffer), _bytes(posted)):
                    refuse("a send buffer was changed before wait()")
        self._works, self._sends, self._receives = [], [], []
        return True


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def batch_isend_irecv(ops: Sequence[Any]) -> list[Any]:
    """Post a batch; see `torch.distributed.batch_isend_irecv`."""
    places = {on_device(op.tensor) for op in ops}
    if len(places) > 1:
        refuse("one batch with messages of the CPU and of the device")
    if places == {False}:
        works: list[Any] = _batch(ops)
        return works
    for op in ops:
        if not op.tensor.is_contiguous():
            refuse("a message that is not contiguous")
        if op.tensor.dtype not in _TYPES:
            refuse(f"NCCL has no type {op.tensor.dtype}")
    counts.batch()
    return [BatchWork(ops)]


def init_process_group(backend: str, *, device_id: Any = None, **how: Any) -> None:
    """Start gloo where the program asks for NCCL, and check that the communicator is made at once."""
    if "nccl" in backend and device_id is None:
        refuse("without device_id the first batch would make the communicator, and needs all ranks")
    _init("gloo" if "nccl" in backend else backend, **how)


@contextmanager
def patched() -> Iterator[None]:
    """Send messages of the virtual device in this way.

    Raises:
        VirtualCudaError: at the end, if a batch was never waited for.
    """
    _not_waited.clear()
    with mock.patch.multiple(
        dist,
        batch_isend_irecv=batch_isend_irecv,
        init_process_group=init_process_group,
    ):
        yield
    if _not_waited:
        refuse(f"{len(_not_waited)} batch(es) of messages were never waited for")
