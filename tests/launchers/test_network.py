"""Two hosts as network namespaces: a link is cut, a host is lost, or one does not hear the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stress import ranks
from stress.hosts import why_no_hosts
from stress.network import FAULTS, Network

SLOW = {"cut-and-silent", "cut-in-save", "node-2-deaf", "two-of-three", "no-folder"}
TIMEOUT_SECONDS, SLACK_SECONDS = 8.0, 40.0  # comm.timeout; what a busy machine may take beyond it


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """The run without a fault, that all others are compared with."""
    if why := why_no_hosts():
        pytest.skip(why)
    with ranks.environment():
        yield Network.prepare(tmp_path_factory.mktemp("network"), TIMEOUT_SECONDS, SLACK_SECONDS)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAULTS],
)
def test_faults_of_the_network(network: Network, fault: str) -> None:
    """All ranks end, rank 0 says where to look, and the resumed run equals the undisturbed one."""
    outcome = FAULTS[fault](network)
    assert outcome.passed, [outcome.observed, *outcome.details]


def test_a_machine_without_namespaces_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "need root and iproute2" in why_no_hosts()
