"""Compressed differences: what arrives, what is left for later, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cobo_dist.maths.compression import BLOCK, Compression


def rows(c: int = 3, d: int = 2 * BLOCK + 70) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(c, d)))


def test_int8_is_within_half_a_step_of_each_block() -> None:
    x_cd = rows()
    x_cd[:, :BLOCK] *= 1000.0  # a block of its own scale
    x_cd[1, BLOCK : 2 * BLOCK] = 0.0
    found_cd = Compression("int8").of(x_cd)
    for at in (slice(0, BLOCK), slice(BLOCK, 2 * BLOCK), slice(2 * BLOCK, None)):
        step_c1 = x_cd[:, at].abs().amax(dim=1, keepdim=True) / 127
        assert ((found_cd[:, at] - x_cd[:, at]).abs() <= 0.5 * step_c1 + 1e-12).all()
        levels = torch.where(step_c1 > 0, found_cd[:, at] / step_c1, 0.0)
        torch.testing.assert_close(levels, levels.round())
    assert (found_cd[1, BLOCK : 2 * BLOCK] == 0).all()


def test_topk_keeps_the_greatest() -> None:
    x_cd = rows(2, 50)
    found_cd = Compression("topk", share=0.1).of(x_cd)
    for x_d, found_d in zip(x_cd, found_cd, strict=True):
        kept = np.flatnonzero(found_d.numpy())
        assert set(kept) == set(np.argsort(-x_d.abs().numpy())[:5])
        assert torch.equal(found_d[kept], x_d[kept])


@pytest.mark.parametrize("name", ["int8", "topk"])
def test_each_row_is_by_itself(name: str) -> None:
    compression = Compression(name, share=0.2)  # type: ignore[arg-type]
    x_cd = rows()
    whole = compression.of(x_cd)
    for row in range(len(x_cd)):
        assert torch.equal(compression.of(x_cd[row : row + 1])[0], whole[row])


@pytest.mark.parametrize(("name", "messages"), [("int8", 3), ("topk", 5)])
def test_what_is_left_out_comes_later(name: str, messages: int) -> None:
    compression = Compression(name, share=0.2)  # type: ignore[arg-type]
    x_cd, known_cd = rows(), torch.zeros_like(rows())
    errors = []
    for _ in range(messages):
        known_cd += compression.of(x_cd - known_cd)
        errors.append(float((x_cd - known_cd).norm() / x_cd.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < (1e-5 if name == "int8" else 1e-12)


def test_bytes() -> None:
    assert Compression("int8").message_bytes(2048, 4) == 2048 + 2 * 4
    assert Compression("int8").message_bytes(3, 4) == 7
    assert Compression("topk", share=0.01).message_bytes(10_000, 4) == 100 * 8
    assert Compression("topk", share=0.9).message_bytes(10, 4) == 40, "never more than the model"
    assert Compression("topk", share=0.001).message_bytes(10, 4) == 8, "one number at least"
