"""The virtual CUDA itself: it refuses what CUDA refuses, lets pass what CUDA lets pass, and counts right."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pool import VirtualCudaPool
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from virtual_cuda import VirtualCudaError, counted, is_pinned, on_device, virtual_cuda

from cobo_dist.comm.session import Session


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with virtual_cuda():
        yield


def made() -> tuple[Tensor, Tensor]:
    """A tensor on the device and one on the CPU, [8]."""
    return torch.arange(8.0, device="cuda"), torch.arange(8.0)


REFUSED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum of two devices": lambda g, c: g + c,
    "product of two devices": lambda g, c: g.view(2, 4) @ c.view(4, 2),
    "result on the CPU": lambda g, c: torch.add(g, g, out=c),
    "in place on the CPU": lambda g, c: c.add_(g),
    "in place on a number of the CPU": lambda g, c: c[0].add_(g[0]),
    "index_select by a CPU index": lambda g, c: g.index_select(0, torch.tensor([0])),
    "gather by a CPU index": lambda g, c: g.gather(0, torch.tensor([0])),
    "CPU tensor indexed on the device": lambda g, c: c[torch.tensor([0], device="cuda")],
    "values of the CPU under an index": lambda g, c: g.__setitem__(torch.tensor([0, 1]), c[:2]),
    "concatenation": lambda g, c: torch.cat([g, c]),
    "numbers of the CPU in a stack": lambda g, c: torch.stack([g[0], c[0]]),
    "numpy": lambda g, c: g.numpy(),
    "numpy of a view": lambda g, c: g[2:].numpy(),
    "np.asarray": lambda g, c: np.asarray(g),
    "vmap": lambda g, c: vmap(lambda a, b: a * b)(g, c),
    "vmap over the CPU": lambda g, c: vmap(lambda a: a * g[0].expand(2))(c),
    "gradient": lambda g, c: torch.autograd.grad((g.requires_grad_() * 2).sum(), g)[0] + c,
    "module": lambda g, c: torch.nn.Linear(8, 2).to("cuda")(c),
    "statistics of the CPU": lambda g, c: F.batch_norm(g.view(2, 4), c[:4], c[4:], training=True),
    "pinned memory of the device": lambda g, c: g.pin_memory(),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    with pytest.raises(VirtualCudaError, match="virtual CUDA: "):
        REFUSED[case](*made())


def test_results_lie_where_their_arguments_do() -> None:
    g, c = made()
    assert g.is_cuda
    assert g.device == torch.device("cuda", 0)
    assert not g.is_cpu
    assert g.get_device() == 0
    assert not c.is_cuda
    assert not g.cpu().is_cuda
    assert g[1:].is_cuda
    on = [g * 2, g.clone(), torch.empty_like(c, device="cuda"), torch.zeros_like(g), g.new_zeros(3),
          g.new_tensor([1.0]), torch.tensor([1.0], device="cuda"), torch.as_tensor(c, device="cuda"),
          c.to(g), c.to("cuda", torch.float64), c.cuda(), g.to(torch.int64), g.detach()]  # fmt: skip
    assert all(map(on_device, on))
    off = [
        torch.ones(8),
        torch.empty_like(g, device="cpu"),
        g.to(c),
        g.to("cpu"),
        c.to(torch.int64),
    ]
    assert not any(map(on_device, off))
    module = torch.nn.BatchNorm2d(2).to(device="cuda", dtype=torch.float64)
    assert all(one.is_cuda and one.device.type == "cuda" for one in module.state_dict().values())


def test_lets_pass_what_cuda_takes() -> None:
    g, c = made()
    assert (g * torch.tensor(2.0)).is_cuda, "a number of the CPU"
    assert g[torch.tensor([1, 2])].tolist() == [1.0, 2.0], "an index of the CPU"
    assert g[c > 5].tolist() == [6.0, 7.0], "a mask of the CPU"
    g[torch.tensor([0])] = torch.tensor(9.0)
    c.copy_(g)
    assert c[0] == 9.0
    g.copy_(torch.zeros(8))
    c[1] = g[1]
    assert c[1] == 0.0
    g.masked_fill_(g == 0, torch.tensor(1.0))
    assert g.sum() == 8.0


def test_marks_end_with_the_memory() -> None:
    g, _ = made()
    for _ in range(500):
        torch.ones(8, device="cuda")
        assert not on_device(torch.ones(8))
    assert on_device(g)


def test_batch_norm_under_vmap_keeps_its_device() -> None:
    """Torch makes weights of ones inside of its own rule."""
    rows, statistics = torch.randn(3, 4, 8, device="cuda"), torch.ones(3, 8, device="cuda")

    def one(x: Tensor, running: Tensor) -> Tensor:
        return F.batch_norm(x, running, running.clone(), training=True).sum()

    assert vmap(one)(rows, statistics).is_cuda


SYNCS: dict[str, tuple[Callable[[Tensor, Tensor], object], int]] = {
    "item": (lambda g, c: g[0].item(), 1),
    "float": (lambda g, c: float(g[0]), 1),
    "branch": (lambda g, c: bool((g > 3).any()), 1),
    "tolist": (lambda g, c: g.tolist(), 1),
    "cpu": (lambda g, c: g.cpu(), 1),
    "to cpu": (lambda g, c: g.to("cpu"), 1),
    "copy to the host": (lambda g, c: c.copy_(g), 1),
    "behind, to pageable memory": (lambda g, c: c.copy_(g, non_blocking=True), 1),
    "nonzero": (lambda g, c: g.nonzero(), 1),
    "mask": (lambda g, c: g[g > 3], 1),
    "equal": (lambda g, c: torch.equal(g, g), 1),
    "upload": (lambda g, c: c.to("cuda"), 1),
    "upload behind": (lambda g, c: c.to("cuda", non_blocking=True), 0),
    "list to the device": (lambda g, c: torch.tensor([1, 2], device="cuda"), 1),
    "index of the CPU": (lambda g, c: g[torch.tensor([0])], 1),
    "synchronize": (lambda g, c: torch.cuda.synchronize(), 1),
    "on the CPU": (lambda g, c: float(c.sum()) and c.tolist() and c[c > 3].nonzero().numpy(), 0),
    "upload behind, from pinned memory": (
        lambda g, c: c.pin_memory().to("cuda", non_blocking=True),
        0,
    ),
    "behind, to pinned memory": (
        lambda g, c: torch.empty(8, pin_memory=True).copy_(g, non_blocking=True),
        0,
    ),
    "to cpu, behind": (lambda g, c: g.to("cpu", non_blocking=True), 0),
    "kernels": (lambda g, c: (g * 2).add_(1).view(2, 4).sum(dim=0), 0),
}


@pytest.mark.parametrize("case", SYNCS)
def test_counts_host_synchronizations(case: str) -> None:
    g, c = made()
    call, expected = SYNCS[case]
    with counted() as counts:
        call(g, c)
    assert counts.syncs.total() == expected, counts.describe()


def test_counts_kernels_bytes_and_lines() -> None:
    g, c = made()
    with counted() as whole:
        with counted() as inner:
            g.mul_(2).add_(1)
            g.view(2, 4).t()
            c.mul_(2)
        g.cpu()
        g.copy_(c)
        torch.sort(g)
    assert inner.kernels.total() == 2
    assert whole.kernels.total() == 2 + 4
    assert whole.to_host.total() == whole.to_device.total() == 32
    assert list(whole.kernels) == ["outside the package"]
    assert "6 kernels, of them 0 replays of graphs, 2 syncs" in whole.describe()


def test_a_copy_behind_is_undefined_until_the_host_waits() -> None:
    g, _ = made()
    host = torch.zeros(8, pin_memory=True)
    assert is_pinned(host)
    assert host.is_pinned()
    host.copy_(g, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    g.zero_()  # after the copy, on the same stream
    other = g.to("cpu", non_blocking=True)
    assert host.isnan().all()
    done.synchronize()
    assert host.tolist() == list(range(8))
    assert other.isnan().all()
    torch.cuda.synchronize()
    assert other.tolist() == [0.0] * 8


def test_autocast_is_that_of_the_cpu() -> None:
    a = torch.ones(2, 2, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16


# -- messages ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks() -> Iterator[VirtualCudaPool]:
    pool = VirtualCudaPool(2)
    yield pool
    pool.close()


def post(session: Session, fault: str) -> list[float]:
    """Swap four numbers with the other rank, wrongly in one way; return what arrived."""
    peer = 1 - session.launch.rank
    send = torch.full((4,), float(peer), device=session.device)
    arriving = torch.zeros(4, device=session.device)
    if fault == "not contiguous":
        send, arriving = (torch.zeros(4, 2, device=session.device)[:, 0] for _ in range(2))
    if fault == "int16":
        send, arriving = send.short(), arriving.short()
    if fault == "two devices":
        send = send.cpu()
    works = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, send, peer), dist.P2POp(dist.irecv, arriving, peer)]
    )
    assert len(works) == 1, "one for the batch, as NCCL returns"
    if fault == "send buffer changed":
        send.zero_()
    if fault == "receive buffer written":
        arriving.zero_()
    if fault == "read before wait":
        assert arriving.isnan().all()
    for work in works:
        work.wait()
    return arriving.tolist()


@pytest.mark.parametrize("fault", ["none", "read before wait"])
def test_messages_arrive_with_wait(ranks: VirtualCudaPool, fault: str) -> None:
    assert ranks.run(2, post, fault) == [[0.0] * 4, [1.0] * 4]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("send buffer changed", "a send buffer was changed before wait"),
        ("receive buffer written", "a receive buffer was written before wait"),
        ("not contiguous", "not contiguous"),
        ("int16", "NCCL has no type torch.int16"),
        ("two devices", "of the CPU and of the device"),
    ],
)
def test_refuses_messages(ranks: VirtualCudaPool, fault: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        ranks.run_broken(2, post, fault)
