"""Trials on the CPU, before a run has a folder, of what a task's model may not be able to do."""

from __future__ import annotations

import torch

from cobo_dist.clients.client_rows import ClientRows
from cobo_dist.clients.engine_choice import build_engine
from cobo_dist.clients.learning_task import LearningTask
from cobo_dist.errors import words_of


def why_not(name: str, task: LearningTask, dtype: torch.dtype) -> str:
    """Return why an engine cannot compute a task's gradients, in words; empty if it can.

    It is tried on the CPU with one client's first batch.
    """
    clients = ClientRows([0], task, dtype, torch.device("cpu"), own_starts=False)
    batch = task.training([0], clients.device).batch(0, "local")
    try:
        engine = build_engine(name, clients.model, task.loss, task.accumulation)
        engine.gradients(clients.x_cd, clients.g_cd, clients.buffers, batch)
    except Exception as error:  # of any kind: a model may have any code
        return words_of(error) or type(error).__name__
    return ""


def why_no_single_example(task: LearningTask, client: int, dtype: torch.dtype) -> str:
    """Return why a model cannot train on a batch of one example of a client; empty if it can."""
    model = task.model().to(dtype).train()
    batch = task.training([client], torch.device("cpu")).batch(0, "local")
    if any(tensor.dim() < 2 for tensor in batch):
        return ""  # a batch of this task is not a number of examples
    try:
        with torch.no_grad():
            task.loss(model, *(tensor[0, :1] for tensor in batch))
    except ValueError as error:  # BatchNorm's
        return words_of(error)
    return ""
