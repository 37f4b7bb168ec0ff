"""task.drift: which client is in which cluster in which round, and events that are refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.scenario.drift import Drift, DriftEvent, drift_of
from cobo_dist.tasks.registry import build_task

CLUSTERS = [0, 0, 1, 1, 2, 2]


def drift(*events: dict[str, object], seed: int = 0) -> Drift:
    return drift_of([DriftEvent.model_validate(one) for one in events], CLUSTERS, seed)


def build(*arguments: str) -> None:
    """Build the task of a config."""
    config = load_config(None, arguments)
    build_task(config.task, config.model, config.data, 0, torch.float32)


def test_a_client_is_in_its_new_cluster_from_the_round_of_the_event_on() -> None:
    found = drift(
        {"round": 5, "clients": (0, 3), "cluster": 2}, {"round": 8, "clients": (0,), "cluster": 0}
    )
    assert found.rounds == (5, 8)
    assert [found.clusters(r).tolist() for r in (0, 4, 5, 7, 8, 99)] == [
        CLUSTERS, CLUSTERS, [2, 0, 1, 2, 2, 2], [2, 0, 1, 2, 2, 2], [0, 0, 1, 2, 2, 2],
        [0, 0, 1, 2, 2, 2],
    ]  # fmt: skip
    # Back in its first cluster, a client has its own concept again.
    assert [found.donors(r).tolist() for r in (4, 5, 8)] == [
        [0, 1, 2, 3, 4, 5], [4, 1, 2, 5, 4, 5], [0, 1, 2, 5, 4, 5]
    ]  # fmt: skip


def test_drawn_clients_move_once_each_at_rounds_of_their_own() -> None:
    found = drift({"round": 10, "until": 90, "count": 5})
    before, after = found.clusters(0), found.clusters(90)
    assert (before != after).sum() == 5
    assert all(10 <= r <= 90 for r in found.rounds)
    assert len(found.rounds) > 1, "staggered"
    again, other = (drift({"round": 10, "until": 90, "count": 5}, seed=seed) for seed in (0, 1))
    assert found.rounds == again.rounds != other.rounds


def test_drawn_clients_come_from_other_clusters_than_the_named_one() -> None:
    found = drift({"round": 3, "count": 4, "cluster": 1})
    assert found.clusters(3).tolist() == [1] * 6


@pytest.mark.parametrize("r", [0, 1, 50, 99, 100])
def test_clusters_depend_on_nothing_but_the_round(r: int) -> None:
    events = {"round": 20, "until": 100, "count": 6}
    one, other = drift(events), drift(events)
    for earlier in (99, 3):
        one.clusters(earlier)
    assert np.array_equal(one.clusters(r), other.clusters(r))


REFUSED = {
    "[{round: 0, clients: [0]}]": "task.drift.0.round=0 is refused",
    "[{round: -3, clients: [0]}]": "task.drift.0.round=-3 is refused",
    "[{round: 5, clients: [-1]}]": "task.drift.0.clients.0=-1 is refused",
    "[{round: 5, clients: [0], cluster: -1}]": "task.drift.0.cluster=-1 is refused",
    "[{round: 5, count: -1}]": "task.drift.0.count=-1 is refused",
    "[{round: 1.5, clients: [0]}]": "task.drift.0.round=1.5 is refused",
    "[{clients: [0]}]": "task.drift.0.round must be given",
    "[{round: 5}]": "round 5 names neither clients and count; give one of them",
    "[{round: 5, clients: [0], count: 2}]": "round 5 names both clients and count",
    "[{round: 5, clients: [0, 0]}]": "clients=[0, 0] names a client twice",
    "[{round: 21, clients: [0]}]": "round=21 is after the last round, run.rounds=20; lower it",
    "[{round: 5, until: 4, count: 1}]": "until=4 is before it",
    "[{round: 5, until: 21, count: 1}]": "until=21 is after the last round, run.rounds=20",
    "[{round: 5, clients: [0, 1]}, {round: 5, clients: [1], cluster: 2}]": "moves client 1 twice",
    "[{round: 5, clients: [8]}]": "there is no client 8; clients are 0 to 7",
    "[{round: 5, clients: [0], cluster: 4}]": "there is no cluster 4; clusters are 0, 1, 2, 3",
    "[{round: 5, count: 9}]": "count=9 is more than the 8 clients that can move",
    "[{round: 5, count: 7, cluster: 0}]": "count=7 is more than the 6 clients that can move",
    "[{round: 5, clients: [0], cluster: 0}]": "moves client 0 to cluster 0, where it is already",
    "[{round: 5, count: 8}, {round: 5, clients: [3]}]": "moves client 3 twice before round 5",
    "[{round: 5, clients: [0], size: 3}]": "task.drift.0.size is not a known key",
    "5": "task.drift=5 is refused: it must be a list",
    "[5]": "task.drift.0=5 must be a group of keys",
}


@pytest.mark.parametrize("events", REFUSED)
def test_bad_events_are_refused_in_one_line(events: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(f"task.drift={events}", "run.rounds=20")
    assert REFUSED[events] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_event_needs_no_list_and_a_config_repeats_it() -> None:
    one = load_config(None, ["task.drift={round: 5, clients: [0], cluster: 1}"])
    assert one == load_config(None, ["task.drift=[{round: 5, clients: [0], cluster: 1}]"])
    assert "clients:" in one.to_yaml()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["task.name=language"], "it belongs to cross_silo, cross_device, digits"),
        (["task.name=classification"], "task.change.name=none makes no clusters here; set"),
        (
            ["task.name=classification", "task.change.name=rotation", "task.change.by=clients"],
            "task.change.name=rotation makes no clusters here",
        ),
        (["task.clusters=1"], "there is one cluster only"),
        (["run.keep=best", "run.eval_splits=[validation, test]"], "set run.keep=last"),
    ],
)  # fmt: skip
def test_tasks_that_cannot_drift_say_which_can(arguments: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("task.drift=[{round: 5, clients: [0]}]", *arguments)
    assert expected in str(caught.value)
