"""What a user wants to know of a task before the queue does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist.tasks.base import Task
from cobo_dist.tasks.language.task import Language
from cobo_dist.tasks.quadratic import Quadratic
from cobo_dist.tasks.supervised import Supervised


def facts_of(task: Task) -> dict[str, str]:
    """Return clients, model and data in words, by what to call them, and a digest of the data last."""
    groups = len(set(task.clusters)) if task.clusters is not None else 0
    facts = {
        "task": task.name,
        "clients": f"{task.clients}" + (f" in {groups} clusters" if groups else ""),
    }
    if isinstance(task, Language):
        return facts | task.facts() | {"digest": task.fingerprint()}
    size = sum(parameter.numel() for parameter in task.model().parameters())
    facts["model"] = f"{size:,} parameters"
    if isinstance(task, Supervised):
        for name, numbers in task.split_of.items():
            least, most = min(map(len, numbers)), max(map(len, numbers))
            facts[name] = f"{least} examples a client" + (f" to {most}" if most > least else "")
    return facts | {"digest": task.fingerprint()}


def label_counts(task: Task) -> NDArray[np.int64] | None:
    """Return each client's number of training examples with each of its labels, [n, C]; None: no labels."""
    if not isinstance(task, Supervised):
        return None
    classes = len(task.label_names) or task.examples.outputs
    counts = [
        task.labels_of(client, own).bincount(minlength=classes)
        for client, own in enumerate(task.split_of["train"])
    ]
    return np.stack([one.numpy() for one in counts])


def data_in_memory(task: Task) -> tuple[str, int]:
    """Return what a rank keeps of the examples, in words, and its bytes."""
    if isinstance(task, Language):
        return "tokens of all clients, files mapped", sum(
            stream.tokens.nbytes for stream in task.streams
        )
    if isinstance(task, Supervised):
        return "data, once", sum(one.nbytes for one in task.examples.tensors)
    if isinstance(task, Quadratic):
        return "data, once", 2 * int(task.centers_nd.nbytes)  # as it was read, and in run.dtype
    return "data, once", 0


def reads_in_random_order(task: Task) -> bool:
    """Return whether clients read their examples by shuffled indices."""
    return isinstance(task, (Supervised, Language))
