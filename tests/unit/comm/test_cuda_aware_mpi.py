"""A CUDA-aware MPI gets the memory of the GPU itself; any other refuses it. The MPI library is a fake."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from virtual_cuda import counted, virtual_cuda

from cobo_dist.comm.transports.mpi_transport import MpiTransport
from cobo_dist.comm.transports.mpi_world import MpiWorld, is_cuda_aware, loaded_libraries


def library(answer: int) -> Any:
    """Return an MPI library whose query returns `answer`."""
    return SimpleNamespace(MPIX_Query_cuda_support=ctypes.CFUNCTYPE(ctypes.c_int)(lambda: answer))


def test_a_library_is_asked_and_one_that_does_not_say_is_not() -> None:
    assert is_cuda_aware(library(1))
    assert not is_cuda_aware(library(0))
    assert not is_cuda_aware(ctypes.CDLL(None)), "Python itself has no such function"


def test_only_loaded_libraries_are_found() -> None:
    found = loaded_libraries("libtorch")
    assert found
    assert not any(map(is_cuda_aware, found))
    assert loaded_libraries("libmpi_that_is_not_there") == []


class FakeComm:
    """Keeps the addresses and sizes of what is posted."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self.posted: list[tuple[str, tuple[int, int]]] = []

    def Isend(self, buffer: list[Any], peer: int, tag: int) -> object:
        self.posted.append(("send", buffer[0]))
        return object()

    def Irecv(self, buffer: list[Any], peer: int, tag: int) -> object:
        self.posted.append(("recv", buffer[0]))
        return object()


def transport(aware: bool) -> tuple[MpiTransport, FakeComm]:
    mpi = SimpleNamespace(
        BYTE="byte", buffer=SimpleNamespace(fromaddress=lambda address, size: (address, size))
    )
    comm = FakeComm()
    return MpiTransport(MpiWorld(mpi, comm, comm, is_cuda_aware=aware), comm, 1.0), comm


def test_memory_of_a_gpu_is_posted_once_its_work_is_done() -> None:
    mpi, comm = transport(aware=True)
    with virtual_cuda():
        out, into = torch.ones(3, device="cuda"), torch.zeros(5, device="cuda")
        with counted() as counts:
            mpi.exchange({1: out}, {1: into}, "pairs")
        assert counts.syncs.total() == 1, counts.describe()
        assert comm.posted == [("send", (out.data_ptr(), 12)), ("recv", (into.data_ptr(), 20))]


def test_another_mpi_refuses_it() -> None:
    mpi, comm = transport(aware=False)
    with virtual_cuda(), pytest.raises(ValueError, match="moves CPU tensors, not one on cuda"):
        mpi.exchange({1: torch.ones(3, device="cuda")}, {}, "pairs")
    assert comm.posted == []
