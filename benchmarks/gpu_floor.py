"""Ceilings of a GPU, and bare PyTorch loops to compare cobo_dist with."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cobo_dist.tasks.models import build_model
from cobo_dist.tasks.resnet9 import Resnet9Config

CLASSES = 100


@dataclass(frozen=True)
class Variant:
    """How a bare loop computes."""

    tf32: bool = False
    bf16: bool = False
    channels_last: bool = False
    graph: bool = False


VARIANTS = {
    "float32": Variant(),
    "TF32": Variant(tf32=True),
    "bfloat16": Variant(tf32=True, bf16=True),
    "bfloat16, channels last": Variant(tf32=True, bf16=True, channels_last=True),
    "float32, graph": Variant(graph=True),
    "bfloat16, channels last, graph": Variant(tf32=True, bf16=True, channels_last=True, graph=True),
}


def ceilings(device: torch.device, small: bool) -> dict[str, float]:
    """Return bandwidth of a copy, matrix products a second, and the cost of a launch and of waiting."""
    numbers, side = (1 << 20, 256) if small else (1 << 30, 8192)
    source = torch.randn(numbers, device=device)
    copy = torch.empty_like(source)
    seconds = seconds_of(lambda: copy.copy_(source), device)
    found = {"copy TB/s": 2 * source.nbytes / seconds / 1e12}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        use_tf32(tf32)
        a = torch.randn(side, side, device=device, dtype=dtype)
        found[f"{name} TFLOP/s"] = 2 * side**3 / seconds_of(lambda a=a: a @ a, device) / 1e12
    one = torch.zeros(1, device=device)
    launches = 200

    def many() -> None:
        for _ in range(launches):
            one.add_(1)

    found["launch us"] = seconds_of(many, device) / launches * 1e6
    found["launch and wait us"] = seconds_of(lambda: float(one.add_(1)), device) * 1e6
    return found


def gradient_ms(device: torch.device, width: int, batch: int, variant: Variant) -> float:
    """Return milliseconds of one forward and backward pass of ResNet-9, with a plain step."""
    use_tf32(variant.tf32)
    model, inputs, targets = _problem(device, width, batch)
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last)
    parameters = list(model.parameters())

    def step() -> None:
        cast = torch.autocast(device.type, torch.bfloat16) if variant.bf16 else nullcontext()
        with cast:
            loss = nn.functional.cross_entropy(model(inputs).float(), targets)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-1e-4)

    if not variant.graph:
        return 1000 * seconds_of(step, device)
    for _ in range(3):
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return 1000 * seconds_of(graph.replay, device)


def authors_like(device: torch.device, width: int, batch: int, clients: int, rounds: int) -> float:
    """Return seconds a round of CoBo written model by model and parameter by parameter.

    As research code does it: one module for each client, midpoints as copies of a module, alignments read
    one by one, the penalty as a loop over clients and parameters. Batches are made once.
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # as PyTorch has it where nothing is set
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.benchmark = False
    models = [_problem(device, width, batch)[0] for _ in range(clients)]
    _, inputs, targets = _problem(device, width, batch)
    middle = _problem(device, width, batch)[0]
    weights = torch.ones(clients, clients)
    pairs = max(1, round((clients - 1) / 2))

    def gradient(model: nn.Module) -> list[Tensor]:
        loss = nn.functional.cross_entropy(model(inputs), targets)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    def one_round() -> None:
        for i in range(pairs):
            j = (i + 1) % clients
            mixed = {
                name: (a + b) / 2 if a.is_floating_point() else a
                for (name, a), b in zip(
                    models[i].state_dict().items(), models[j].state_dict().values(), strict=True
                )
            }
            middle.load_state_dict(mixed)
            first, second = gradient(middle), gradient(middle)
            product = sum((a * b).sum().item() for a, b in zip(first, second, strict=True))
            weights[i, j] = weights[j, i] = min(
                1.0, max(0.0, float(weights[i, j]) + 0.01 * product)
            )
        steps = []
        for i, model in enumerate(models):
            step = gradient(model)
            for k, other in enumerate(models):
                weight = float(weights[i, k])
                if k != i and weight:
                    for own, a, b in zip(step, model.parameters(), other.parameters(), strict=True):
                        own.add_(a.detach() - b.detach(), alpha=0.5 * weight)
            steps.append(step)
        with torch.no_grad():
            for model, step in zip(models, steps, strict=True):
                for parameter, change in zip(model.parameters(), step, strict=True):
                    parameter.sub_(change, alpha=1e-6)

    return seconds_of(one_round, device, repeats=rounds)


def use_tf32(on: bool) -> None:
    """Choose the precision of float32 products on a GPU."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if on else "ieee"
    torch.backends.cudnn.conv.fp32_precision = "tf32" if on else "ieee"
    torch.backends.cudnn.benchmark = True


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Return the mean seconds of some work, after three times that do not count."""
    for _ in range(3):
        work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _problem(device: torch.device, width: int, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a ResNet-9 as the paper has it, images and labels."""
    shape = torch.Size([3, 32, 32])
    model = build_model(Resnet9Config(width=width, dropout=0), shape, CLASSES, seed=0).to(device)
    inputs = torch.randn(batch, *shape, device=device)
    return model, inputs, torch.arange(batch, device=device) % CLASSES
