"""What a user wants to know of a task before the queue does."""

from __future__ import annotations

from cobo_dist.tasks.base import Task


def facts_of(task: Task) -> dict[str, str]:
    """Return clients, model and data in words, by what to call them, and a digest of the data last."""
    groups = len(set(task.clusters)) if task.clusters is not None else 0
    facts = {
        "task": task.name,
        "clients": f"{task.clients}"
        + (f" in {groups} cluster{'s' * (groups != 1)}" if groups else "")
        + (", with a graph of right weights" if task.true_graph is not None else ""),
    }
    return facts | task.describe() | {"digest": task.fingerprint()}
