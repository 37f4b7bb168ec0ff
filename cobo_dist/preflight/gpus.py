"""The doctor's diagnosis of GPUs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cobo_dist.formatting import human_bytes
from cobo_dist.preflight.diagnose import FINE, WARNING, Finding, RankInfo, by_host, name_ranks

MAX_SHARE_TAKEN = 0.1
"""The share of a GPU's memory that others may hold before the doctor warns."""
MIN_SHARED_MEMORY_BYTES = 1 << 29
"""NCCL's buffers between the ranks of a host: containers often have 64 MB."""
MAX_TEMPERATURE_C = 85
"""Above this, GPUs lower their clocks."""


def gpus(ranks: Sequence[RankInfo], autocast: str) -> list[Finding]:
    """Return what is to be said of the ranks' GPUs; nothing where there are none.

    `autocast`: run.autocast.
    """
    found = []
    for one in (rank for rank in ranks if rank.card):
        found += _card(one, one.card, autocast)
    for host, there in by_host([one for one in ranks if one.card]).items():
        if len(there) > 1:
            found += _together(host, there)
    return found


def _card(rank: RankInfo, card: Mapping[str, float | str], autocast: str) -> list[Finding]:
    number = {name: float(value) for name, value in card.items() if name != "name"}
    who = name_ranks([rank])
    text = f"{who}: {card['name']}, {human_bytes(number['free'])} of {human_bytes(number['total'])} free"
    if math.isfinite(number["clock"]):
        text += f", clock {number['clock']:.0f} MHz, {number['temperature']:.0f} C"
    found = [Finding(FINE, "gpu", text + (", bfloat16" if number["bf16"] else ", no bfloat16"))]
    if number["free"] < (1 - MAX_SHARE_TAKEN) * number["total"]:
        taken = human_bytes(number["total"] - number["free"])
        remedy = "nvidia-smi names the processes; end them, or choose another GPU by CUDA_VISIBLE_DEVICES"
        found.append(Finding(WARNING, "gpu", f"{who}: {taken} of its memory are taken", remedy))
    if number["temperature"] > MAX_TEMPERATURE_C:
        text = f"{who}: the GPU has {number['temperature']:.0f} C and may lower its clocks"
        found.append(Finding(WARNING, "gpu", text, "look at its cooling"))
    if autocast == "bfloat16" and not number["bf16"]:
        text = f"{who}: run.autocast=bfloat16, which this GPU only emulates"
        found.append(Finding(WARNING, "gpu", text, "set run.autocast=none"))
    return found


def _together(host: str, there: Sequence[RankInfo]) -> list[Finding]:
    """Return what slows GPUs of one host that exchange models."""
    found = []
    apart = [one for one in there if float(one.card["peers"]) < float(one.card["others"])]
    if apart:
        text = f"{name_ranks(apart)} do not reach all GPUs of {host} directly (no NVLink or PCIe peer access)"
        remedy = (
            "messages take the way through memory of the CPU; `nvidia-smi topo -m` shows the links"
        )
        found.append(Finding(WARNING, "gpu links", text, remedy))
    shared = min(float(one.card["shared_memory"]) for one in there)
    if shared < MIN_SHARED_MEMORY_BYTES:
        text = f"{host} has {human_bytes(shared)} of shared memory (/dev/shm), which NCCL needs"
        remedy = "start the container with --shm-size=1g or --ipc=host"
        found.append(Finding(WARNING, "gpu links", text, remedy))
    return found
