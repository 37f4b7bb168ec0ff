"""What the doctor says of GPUs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_doctor import info

from cobo_dist import gpu_status
from cobo_dist.preflight.diagnose import FINE, WARNING, RankInfo
from cobo_dist.preflight.gpus import gpus

CARD: dict[str, str | float] = {
    "name": "NVIDIA H200", "total": 150e9, "free": 149e9, "bf16": 1.0, "clock": 1980.0,
    "temperature": 40.0, "peers": 1, "others": 1, "shared_memory": 8e9,
}  # fmt: skip


def with_card(rank: int = 0, **changes: str | float) -> RankInfo:
    return replace(info(rank), card=CARD | changes)


def test_a_healthy_gpu_is_described() -> None:
    (found,) = gpus([with_card()], "bfloat16")
    assert found.level == FINE
    assert "NVIDIA H200, 149.0 GB of 150.0 GB free, clock 1980 MHz, 40 C, bfloat16" in found.text


def test_without_nvml_clocks_are_left_out() -> None:
    (found,) = gpus([with_card(clock=math.nan, temperature=math.nan)], "none")
    assert found.level == FINE
    assert "clock" not in found.text


@pytest.mark.parametrize(
    ("changes", "says", "remedy"),
    [
        ({"free": 90e9}, "60.0 GB of its memory are taken", "nvidia-smi"),
        ({"temperature": 90.0}, "90 C and may lower its clocks", "cooling"),
        ({"bf16": 0.0}, "which this GPU only emulates", "run.autocast=none"),
    ],
)
def test_what_slows_one_gpu(changes: dict[str, float], says: str, remedy: str) -> None:
    _, warning = gpus([with_card(**changes)], "bfloat16")
    assert warning.level == WARNING
    assert says in warning.text
    assert remedy in warning.remedy


@pytest.mark.parametrize(
    ("changes", "says", "remedy"),
    [
        ({"peers": 0}, "do not reach all GPUs", "nvidia-smi topo -m"),
        ({"shared_memory": 64e6}, "64.0 MB of shared memory", "--shm-size"),
    ],
)
def test_what_slows_gpus_of_one_host(changes: dict[str, float], says: str, remedy: str) -> None:
    assert len(gpus([with_card(0, **changes)], "none")) == 1, "alone, a GPU exchanges nothing"
    *_, warning = gpus([with_card(0, **changes), with_card(1, **changes)], "none")
    assert warning.level == WARNING
    assert says in warning.text
    assert remedy in warning.remedy


def test_a_cpu_says_nothing() -> None:
    cpu = torch.device("cpu")
    assert gpus([info(0)], "none") == []
    assert gpu_status.facts(cpu) == {}
    assert all(map(math.isnan, gpu_status.status(cpu)))
