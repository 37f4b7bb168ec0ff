"""Randomness is a pure function of its name, and looks random."""

from __future__ import annotations

import math

import torch

from cobo_dist.maths import seeds


def test_a_name_always_gives_the_same_numbers_whatever_came_before() -> None:
    name = seeds.key(5, "pairs", 17)
    first = seeds.uniforms(name, 10)
    torch.manual_seed(1)
    torch.rand(100)
    assert torch.equal(seeds.uniforms(name, 10), first)
    assert torch.equal(seeds.uniforms(name, 4, start=3), first[3:7]), "any part without the rest"


def test_known_numbers_never_change() -> None:
    """SplitMix64's published stream from state 0, and one key: a release must not change old runs."""
    words = seeds.words(0, 3, 0, "cpu") & ((1 << 63) - 1)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert words.tolist() == [word & ((1 << 63) - 1) for word in published]
    assert seeds.key(0, "pairs", 0) == 0x553A8C45C951D34


def test_many_names_at_once_are_the_names_one_by_one() -> None:
    clients, epochs = torch.tensor([0, 7, 99_999]), torch.arange(3, 8)
    names = seeds.keys(5, "batches local", clients[:, None], epochs)
    for row, client in enumerate(clients.tolist()):
        for column, epoch in enumerate(epochs.tolist()):
            name = seeds.key(5, "batches local", client, epoch)
            assert int(names[row, column]) == seeds.signed(name)
            orders = seeds.permutations(names[row], 13)
            assert torch.equal(orders[column], seeds.permutation(name, 13))


def test_every_part_of_a_name_matters() -> None:
    names = {
        seeds.key(seed, purpose, *counters)
        for seed in (0, 1)
        for purpose in ("pairs", "batches")
        for counters in ((), (0,), (1,), (0, 1), (1, 0), (0, 0))
    }
    assert len(names) == 24


def test_uniforms_are_uniform_and_independent_between_neighbouring_names() -> None:
    numbers = torch.stack([seeds.uniforms(seeds.key(0, "test", i), 1000) for i in range(200)])
    assert float(numbers.min()) > 0.0
    assert float(numbers.max()) < 1.0
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 160, "99 degrees of freedom: 160 is one in ten thousand"
    by_name = torch.corrcoef(numbers)
    off_diagonal = by_name[~torch.eye(200, dtype=torch.bool)]
    assert float(off_diagonal.abs().max()) < 0.17, "5.4 standard deviations of 1/sqrt(1000)"


def test_normals_have_the_moments_of_the_normal_distribution() -> None:
    numbers = seeds.normals(seeds.key(3, "noise"), 200_001)
    assert len(numbers) == 200_001
    assert abs(float(numbers.mean())) < 0.01
    assert abs(float(numbers.std()) - 1.0) < 0.01
    assert abs(float((numbers**4).mean()) - 3.0) < 0.1


def test_permutations_are_permutations_and_all_come_up() -> None:
    seen = set()
    for i in range(400):
        order = seeds.permutation(seeds.key(0, "order", i), 4)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        seen.add(tuple(order.tolist()))
    assert len(seen) == math.factorial(4)
