"""Batches, engines, optimizers and the clients of a rank."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cobo_dist.clients.batches import BatchIndices
from cobo_dist.clients.buffers import BufferRows
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.clients.engine_choice import ENGINES, fastest
from cobo_dist.clients.engines import Engine, OneByOne
from cobo_dist.clients.graphs import GraphedPasses
from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.clients.optimizers import build_optimizer, step_size
from cobo_dist.clients.vectorized import Vectorized
from cobo_dist.maths.flat import Layout, empty_rows
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.digits import DigitsConfig
from cobo_dist.tasks.labeled import Classification
from cobo_dist.tasks.models import MlpConfig, build_model

CPU = torch.device("cpu")


# -- batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "batch_size"), [(130, 32), (64, 32), (7, 20), (1, 3), (97, 97)]
)
def test_every_epoch_shows_every_example_once(examples: int, batch_size: int) -> None:
    numbers = torch.arange(1000, 1000 + examples)
    batches = BatchIndices(0, "test", [4], [numbers], batch_size)
    epochs = 5
    rounds = -(-epochs * examples // batch_size)
    read = torch.cat([batches.batch(t)[0] for t in range(rounds)])
    orders = [tuple(read[e * examples : (e + 1) * examples].tolist()) for e in range(epochs)]
    for order in orders:
        assert sorted(order) == numbers.tolist()
    assert examples == 1 or len(set(orders)) > 1, "a new order each epoch"


def test_a_batch_depends_on_seed_client_and_round_only() -> None:
    own = [torch.arange(50), torch.arange(50, 200), torch.arange(200, 260)]
    together = BatchIndices(3, "local", [5, 6, 7], own, 16)
    alone = BatchIndices(3, "local", [6], own[1:2], 16)
    for t in (700, 0, 65, 64, 63, 1):  # in any order, with or without other clients
        assert torch.equal(alone.batch(t)[0], together.batch(t)[1])
    for seed, purpose, client in ((4, "local", 6), (3, "midpoint", 6), (3, "local", 8)):
        other = BatchIndices(seed, purpose, [client], own[1:2], 16)
        assert not torch.equal(other.batch(0), alone.batch(0))


def test_known_batches_never_change() -> None:
    """For 7 and 40 examples, in rounds 0, 64 and 1000: a release must not change old runs."""
    batches = BatchIndices(3, "local", [5, 9], [torch.arange(7), torch.arange(100, 140)], 5)
    assert [batches.batch(t).tolist() for t in (0, 64, 1000)] == [
        [[4, 0, 2, 6, 1], [113, 139, 109, 125, 133]],
        [[2, 6, 1, 3, 0], [124, 135, 111, 117, 110]],
        [[3, 0, 1, 2, 6], [104, 106, 137, 109, 100]],
    ]


def test_batches_do_not_depend_on_how_many_clients_are_shuffled_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = [torch.arange(10 * i, 10 * i + 9) for i in range(6)]
    together = BatchIndices(0, "local", range(6), own, 4).batch(70)
    monkeypatch.setattr("cobo_dist.clients.batches._MAX_SHUFFLED", 600)  # two clients
    assert torch.equal(BatchIndices(0, "local", range(6), own, 4).batch(70), together)


# -- engines -------------------------------------------------------------------------------------------


def problem(norm: str) -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor], tuple]:
    """Five models of 6-8-3 with different weights, buffers and batches."""
    model = build_model(MlpConfig(hidden=(8,), norm=norm), torch.Size([6]), 3, seed=1).double()
    layout = Layout.of(model.named_parameters())
    rng = torch.Generator().manual_seed(0)
    points = empty_rows(5, layout.size, dtype=torch.float64)
    points.copy_(torch.randn(5, layout.size, generator=rng, dtype=torch.float64))
    floating = Layout.of((n, b) for n, b in model.named_buffers() if b.is_floating_point())
    rows = empty_rows(5, floating.size, dtype=torch.float64)  # strided, as in `ClientBatch`
    rows.copy_(torch.rand(5, floating.size, generator=rng, dtype=torch.float64))
    buffers = floating.views(rows)
    buffers |= {n: b.repeat(5) for n, b in model.named_buffers() if not b.is_floating_point()}
    batch = (
        torch.randn(5, 10, 6, generator=rng, dtype=torch.float64),
        torch.randint(0, 3, (5, 10), generator=rng),
    )
    return model, points, buffers, batch


def loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(inputs), targets)


def strided_copy(buffers: dict[str, torch.Tensor]) -> BufferRows:
    """Copy buffers so that those of two clients are not adjacent."""
    layouts, rows = [], []
    for name, held in buffers.items():
        layouts.append(Layout((name,), (held.shape[1:],)))
        rows.append(empty_rows(len(held), layouts[-1].size + 1, dtype=held.dtype)[:, :-1])
        layouts[-1].views(rows[-1])[name].copy_(held)
    return BufferRows(tuple(layouts), tuple(rows))


NO_BUFFERS = BufferRows((), ())


def replayed(model: nn.Module, loss: Callable[..., torch.Tensor], parts: int = 1) -> Engine:
    """Passes as CUDA graphs replay them, where a replay is the step itself."""
    return GraphedPasses(OneByOne(model, loss, parts), record=lambda step: step)


BUILDERS = {**ENGINES, "replayed": replayed}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_engines_equal_plain_autograd(name: str, norm: str) -> None:
    model, points, buffers, batch = problem(norm)
    layout = Layout.of(model.named_parameters())
    expected_gradients, expected_losses, expected_buffers = [], [], []
    for row in range(5):
        plain = build_model(MlpConfig(hidden=(8,), norm=norm), torch.Size([6]), 3, seed=2).double()
        state = {**layout.views(points[row]), **{n: b[row] for n, b in buffers.items()}}
        plain.load_state_dict({n: value.clone() for n, value in state.items()})
        value = loss(plain, batch[0][row], batch[1][row])
        value.backward()
        expected_losses.append(value.detach())
        expected_gradients.append(torch.cat([p.grad.flatten() for p in plain.parameters()]))
        expected_buffers.append({n: b.clone() for n, b in plain.named_buffers()})
    before = points.clone()
    gradients = empty_rows(5, layout.size, dtype=torch.float64)
    for _ in range(2):  # the old content of the gradient rows does not matter
        moved = strided_copy(buffers)
        losses = BUILDERS[name](model, loss).gradients(points, gradients.fill_(9.0), moved, batch)
    torch.testing.assert_close(losses, torch.stack(expected_losses))
    torch.testing.assert_close(gradients, torch.stack(expected_gradients), rtol=1e-9, atol=1e-12)
    assert torch.equal(points, before)
    # In place of the models. `done` may change each row as soon as it is computed.
    places, seen = before.clone(), torch.full_like(gradients, torch.nan)
    taken = places

    def done(rows: slice, losses: torch.Tensor) -> None:
        assert seen[rows].isnan().all()
        assert losses[rows].all()
        seen[rows] = taken[rows]
        places[rows] = torch.nan

    BUILDERS[name](model, loss).gradients(places, places, strided_copy(buffers), batch, done)
    assert torch.equal(seen, gradients)
    assert places.isnan().all()
    places, taken = before.clone(), gradients
    gradients, seen = gradients.clone(), seen.fill_(torch.nan)
    taken.fill_(9.0)
    BUILDERS[name](model, loss).gradients(places, taken, strided_copy(buffers), batch, done)
    assert torch.equal(seen, gradients)
    assert places.isnan().all()
    for row in range(5):
        for n, value in expected_buffers[row].items():
            torch.testing.assert_close(moved.views()[n][row], value, rtol=1e-9, atol=1e-12)
    assert norm == "none" or not torch.equal(
        moved.views()["2.running_mean"], buffers["2.running_mean"]
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_engines_take_no_models_at_all(name: str) -> None:
    model, points, buffers, batch = problem("batch")
    none = tuple(part[:0] for part in batch)
    empty = strided_copy({n: b[:0] for n, b in buffers.items()})
    assert (
        len(BUILDERS[name](model, loss).gradients(points[:0], points[:0].clone(), empty, none)) == 0
    )


def test_a_recorded_pass_keeps_the_memory_that_it_uses() -> None:
    """A graph knows addresses only: memory that is freed would be overwritten by others."""
    model, points, buffers, batch = problem("batch")
    used: list[weakref.ref[torch.Tensor]] = []
    own = {id(points), id(batch[0]), id(batch[1])}

    def record(step: Callable[[], None]) -> Callable[[], None]:
        for cell in step.__closure__ or ():
            held = cell.cell_contents
            tensors = held if isinstance(held, tuple | list) else [held]
            rows = held.rows if isinstance(held, BufferRows) else ()
            for one in (*tensors, *rows):
                if isinstance(one, torch.Tensor) and id(one) not in own:
                    used.append(weakref.ref(one.untyped_storage()))
        return lambda: None

    engine = GraphedPasses(OneByOne(model, loss), record)
    gradients, held = points.clone(), strided_copy(buffers)
    engine.gradients(points, gradients, held, batch)
    engine.engine.load(points[0], {name: one[0] for name, one in held.views().items()})
    gc.collect()
    assert used
    assert all(one() is not None for one in used)


def test_recording_changes_nothing_and_a_graph_that_does_not_fit_leaves_the_others() -> None:
    model, points, buffers, batch = problem("batch")
    fits = True

    def record(step: Callable[[], None]) -> Callable[[], None]:
        step()
        if not fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step

    engine = GraphedPasses(OneByOne(model, loss), record)
    gradients, held = torch.full_like(points, 7.0), strided_copy(buffers)
    before = points.clone(), [rows.clone() for rows in held.rows]
    assert engine.find(points, gradients, held, batch) is not None
    assert (gradients == 7.0).all()
    assert torch.equal(points, before[0])
    assert all(torch.equal(rows, old) for rows, old in zip(held.rows, before[1], strict=True))
    fits = False
    other = gradients.clone()
    assert engine.find(points, other, held, batch) is None
    assert engine.find(points, gradients, held, batch) is not None
    assert not engine.refusal
    expected = OneByOne(model, loss).gradients(points, gradients, strided_copy(buffers), batch)
    found = engine.gradients(points, other, strided_copy(buffers), batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other, gradients)


class _Tied(nn.Module):
    """One matrix, used twice, and a base that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.base = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.second.weight = self.first.weight
        self.base.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.base(self.first(inputs).tanh()))


def test_engines_agree_where_layers_share_a_parameter_and_leave_the_module_alone() -> None:
    model = _Tied().double()
    points = torch.randn(5, 36, dtype=torch.float64)
    batch = (torch.randn(5, 10, 6, dtype=torch.float64), torch.randint(0, 3, (5, 10)))
    found = {}
    for name in ("vectorised", "one_by_one"):  # the latter leaves its last client's views behind
        before = {key: value.clone() for key, value in model.state_dict().items()}
        found[name] = torch.empty_like(points)
        ENGINES[name](model, loss).gradients(points, found[name], NO_BUFFERS, batch)
        if name == "vectorised":
            assert all(torch.equal(before[key], now) for key, now in model.state_dict().items())
            assert isinstance(model.second.weight, nn.Parameter)
            assert model.second.weight is model.first.weight
    torch.testing.assert_close(found["vectorised"], found["one_by_one"])


def test_timing_changes_nothing_and_names_an_engine() -> None:
    model, points, buffers, batch = problem("batch")
    before = points.clone(), {n: b.clone() for n, b in buffers.items()}
    engines = [build(model, loss) for build in ENGINES.values()]
    held = strided_copy(buffers)
    winner, seconds, failures = fastest(engines, points, held, batch, repeats=3)
    assert not failures
    assert seconds.keys() == ENGINES.keys()
    assert seconds[winner] == min(seconds.values()) > 0
    assert torch.equal(points, before[0])
    assert all(torch.equal(held.views()[n], b) for n, b in before[1].items())


class _Failing(OneByOne):
    name = "failing"

    def gradients(self, *_: object) -> torch.Tensor:  # type: ignore[override]
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_engine_that_fails_is_infinitely_slow() -> None:
    model, points, buffers, batch = problem("batch")
    held = strided_copy(buffers)
    engines = [_Failing(model, loss), OneByOne(model, loss)]
    winner, seconds, failures = fastest(engines, points, held, batch, repeats=2)
    assert failures == {"failing": "CUDA out of memory"}
    assert winner == "one_by_one"
    assert seconds["failing"] == float("inf")
    with pytest.raises(torch.OutOfMemoryError):
        fastest(engines[:1], points, held, batch)


def test_the_vectorised_engine_halves_its_share_until_memory_suffices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, points, buffers, batch = problem("batch")
    engine = Vectorized(model, loss)
    expected, found = torch.empty_like(points), torch.empty_like(points)
    whole, parts = strided_copy(buffers), strided_copy(buffers)
    losses = engine.gradients(points, expected, whole, batch)
    enough, asked = engine._pass, []

    def scarce(points: torch.Tensor, *others: object) -> torch.Tensor:
        asked.append(len(points))
        if len(points) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return enough(points, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_pass", scarce)
    rows = []
    again = engine.gradients(points, found, parts, batch, lambda part, _: rows.append(part))
    assert asked == [5, 3, 2, 2, 1]
    assert [(one.start, one.stop) for one in rows] == [(0, 2), (2, 4), (4, 5)]
    torch.testing.assert_close(again, losses)
    torch.testing.assert_close(found, expected)
    for name, held in parts.views().items():
        torch.testing.assert_close(held, whole.views()[name])


def test_memory_that_runs_out_between_two_parts_of_a_batch_leaves_the_points() -> None:
    """Where gradients take the place of the points, the first part's must not be taken for points."""
    model, points, buffers, batch = problem("none")
    expected = torch.empty_like(points)
    Vectorized(model, loss, 2).gradients(points, expected, strided_copy(buffers), batch)
    calls = 0

    def scarce(model: nn.Module, *one: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(model, *one)

    places = points.clone()
    Vectorized(model, scarce, 2).gradients(places, places, strided_copy(buffers), batch)
    torch.testing.assert_close(places, expected)


# -- optimizers ----------------------------------------------------------------------------------------


def directions(name: str, momentum: float, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    config = OptimizerConfig(name=name, momentum=momentum)
    optimizer = build_optimizer(config, gradients[0])
    return [optimizer.direction(g.clone()).clone() for g in gradients]


@pytest.mark.parametrize("name", ["sgd", "ema_momentum"])
def test_without_momentum_the_direction_is_the_gradient(name: str) -> None:
    gradients = [torch.randn(3, 4) for _ in range(3)]
    for found, expected in zip(directions(name, 0.0, gradients), gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sgd", "ema_momentum"])
def test_momentum_is_its_recurrence(name: str) -> None:
    """Direction m <- 0.9 m + g (sgd) or 0.9 m + 0.1 g (ema), from m = 0; so ema at lr is sgd at lr/10."""
    gradients = [torch.randn(2, 5, dtype=torch.float64) for _ in range(4)]
    factor, m = (1.0 if name == "sgd" else 0.1), torch.zeros(2, 5, dtype=torch.float64)
    for found, g in zip(directions(name, 0.9, gradients), gradients, strict=True):
        m = 0.9 * m + factor * g
        torch.testing.assert_close(found, m)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_is_torchs_sgd(momentum: float, weight_decay: float) -> None:
    parameter = nn.Parameter(torch.randn(2, 6, dtype=torch.float64))
    x_cd = parameter.data.clone()
    reference = torch.optim.SGD([parameter], lr=0.3, momentum=momentum, weight_decay=weight_decay)
    config = OptimizerConfig(lr=0.3, momentum=momentum, weight_decay=weight_decay)
    optimizer = build_optimizer(config, x_cd)
    for _ in range(5):
        g_cd = torch.randn(2, 6, dtype=torch.float64)
        parameter.grad = g_cd.clone()
        reference.step()
        x_cd.add_(optimizer.direction(g_cd), alpha=-0.3)
        torch.testing.assert_close(x_cd, parameter.data, rtol=1e-12, atol=1e-13)


def test_adamw_corrects_the_moments_of_each_client_by_its_own_steps() -> None:
    """Rows 1 and 2 step in every round, row 0 in every other one: each is torch's AdamW by itself."""
    x_cd = torch.randn(3, 6, dtype=torch.float64)
    parameters = [nn.Parameter(row.clone()) for row in x_cd]
    references = [torch.optim.AdamW([one], betas=(0.9, 0.95)) for one in parameters]
    optimizer = build_optimizer(OptimizerConfig(name="adamw", weight_decay=0.01), x_cd)
    for t in range(6):
        rows = slice(t % 2, 3)
        g_kd = torch.randn(3 - t % 2, 6, dtype=torch.float64)
        for parameter, g_d, reference in zip(parameters[rows], g_kd, references[rows], strict=True):
            parameter.grad = g_d.clone()
            reference.step()
        x_cd[rows] -= 1e-3 * optimizer.direction(g_kd, rows)
    for row, parameter in zip(x_cd, parameters, strict=True):
        torch.testing.assert_close(row, parameter.data, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_step_and_cosine_are_torchs(schedule: str) -> None:
    keys = {"step_every": 3, "step_factor": 0.5} if schedule == "step" else {}
    config = OptimizerConfig(lr=0.2, schedule=schedule, **keys)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = (
        torch.optim.lr_scheduler.StepLR(reference, 3, 0.5)
        if schedule == "step"
        else torch.optim.lr_scheduler.CosineAnnealingLR(reference, 11)
    )
    for t in range(11):
        assert step_size(config, t, 11) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        reference.step()
        scheduler.step()


def test_adamw_under_one_cycle_is_torchs() -> None:
    """Fifty steps with weight decay: models, step sizes and the rows' padding between them."""
    config = OptimizerConfig(
        name="adamw", lr=0.3, weight_decay=0.1, schedule="one_cycle", warmup=0.3, div_factor=7.0
    )
    x_cd = empty_rows(3, 6, dtype=torch.float64)
    x_cd.copy_(torch.randn(3, 6, dtype=torch.float64))
    parameter = nn.Parameter(x_cd.clone())
    reference = torch.optim.AdamW([parameter], lr=0.3, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        reference, 0.3, total_steps=50, pct_start=0.3, div_factor=7.0, cycle_momentum=False
    )
    optimizer = build_optimizer(config, x_cd)
    for t in range(50):
        g_cd = torch.randn(3, 6, dtype=torch.float64)
        parameter.grad = g_cd.clone()
        assert step_size(config, t, 50) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        reference.step()
        if t < 49:
            scheduler.step()
        x_cd.add_(optimizer.direction(g_cd), alpha=-step_size(config, t, 50))
        torch.testing.assert_close(x_cd, parameter.data, rtol=1e-12, atol=1e-13)
    assert (x_cd - x_cd[:1]).abs().max() > 0.1, "rows differ"


@pytest.mark.parametrize("rounds", [1, 7, 100, 500])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.3, 1.0])
def test_one_cycle_is_torchs(rounds: int, warmup: float) -> None:
    config = OptimizerConfig(lr=0.2, schedule="one_cycle", warmup=warmup, final_div_factor=10.0)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if warmup * rounds == 1.0:  # torch divides by zero there; ours is at the peak at once
        assert step_size(config, 0, rounds) == 0.2
        return
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        reference, 0.2, total_steps=rounds, pct_start=warmup, final_div_factor=10.0,
        cycle_momentum=False,
    )  # fmt: skip
    for t in range(rounds):
        assert step_size(config, t, rounds) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        reference.step()
        if t < rounds - 1:
            scheduler.step()


def test_a_constant_step_and_a_warm_up_of_one_round() -> None:
    assert {step_size(OptimizerConfig(lr=0.2), t, 9) for t in range(9)} == {0.2}
    cycle = OptimizerConfig(lr=0.2, schedule="one_cycle", warmup=0.02)
    assert step_size(cycle, 0, 50) == 0.2 > step_size(cycle, 1, 50)


# -- clients -------------------------------------------------------------------------------------------


def client_batch(ids: list[int], norm: str = "batch", engine: str = "one_by_one") -> ClientBatch:
    task = Classification(DigitsConfig(), MlpConfig(norm=norm), DataConfig(), 0, torch.float32)
    clients = ClientBatch(ids, task, OptimizerConfig(), dtype=torch.float32, device=CPU)
    clients.use_engine(engine)
    return clients


def test_parameters_and_gradients_are_views_of_the_rows() -> None:
    clients = client_batch([0, 1, 2])
    clients.gradients(0)
    last = clients.engine.model
    for matrix, tensors in (
        (clients.x_cd, [p.data for p in last.parameters()]),
        (clients.g_cd, [p.grad for p in last.parameters()]),
    ):
        start, end = matrix[2].data_ptr(), matrix[2].data_ptr() + matrix[2].numel() * 4
        assert all(start <= tensor.data_ptr() < end for tensor in tensors)
    assert all(row.data_ptr() % 64 == 0 for row in clients.x_cd)


@pytest.mark.parametrize("engine", ENGINES)
def test_midpoint_gradients_leave_the_clients_own_statistics_unchanged(engine: str) -> None:
    clients = client_batch([0, 1, 2], engine=engine)
    clients.gradients(0)
    before = clients.b_cd.clone(), {n: b.clone() for n, b in clients.counters.items()}
    points = clients.x_cd[[0, 2, 2]].clone()
    clients.gradients_at(points, np.array([0, 2, 2]), 1, "midpoint")
    assert torch.equal(clients.b_cd, before[0])
    assert all(torch.equal(clients.counters[n], b) for n, b in before[1].items())
    clients.gradients(1)
    assert not torch.equal(clients.b_cd, before[0]), "training steps do change them"


@pytest.mark.parametrize("engine", ENGINES)
def test_midpoint_gradients_use_the_owners_data(engine: str) -> None:
    """At its own model and on the shared stream, a midpoint gradient is the local gradient."""
    clients = client_batch([3, 4, 5], norm="none", engine=engine)
    clients.gradients(7)
    rows = np.array([2, 0])
    found = clients.gradients_at(clients.x_cd[rows].clone(), rows, 7, "local")
    torch.testing.assert_close(found, clients.g_cd[rows])
    fresh = clients.gradients_at(clients.x_cd[rows].clone(), rows, 7, "midpoint")
    assert (fresh - clients.g_cd[rows]).abs().max() > 1e-3


def test_state_dict_loads_into_a_plain_model_and_scores_the_same() -> None:
    clients = client_batch([0, 1])
    for t in range(5):
        clients.gradients(t)
        clients.x_cd.add_(clients.direction(), alpha=-0.1)
    reported = clients.evaluate("test")[1]
    plain = clients.task.model()
    plain.load_state_dict(clients.state_dict(1))
    plain.eval()
    right = count = 0
    for examples, (inputs, targets) in clients.task.evaluation(1, "test", CPU):
        with torch.no_grad():
            right += (plain(inputs).argmax(dim=1) == targets).sum().item()
        count += examples
    assert count > 200, "more than one batch"
    assert reported["accuracy"] == pytest.approx(right / count)


# -- batches in parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradient_of_a_batch_in_parts_is_that_of_the_whole(engine: str) -> None:
    found = []
    for size, parts in ((12, 1), (4, 3)):
        data = DataConfig(batch_size=size, accumulation=parts)
        task = Classification(DigitsConfig(), MlpConfig(), data, 0, torch.float64)
        clients = ClientBatch([2, 5], task, OptimizerConfig(), dtype=torch.float64, device=CPU)
        clients.use_engine(engine)
        clients.gradients(0)
        clients.x_cd.add_(clients.g_cd, alpha=-0.1)
        losses = clients.gradients(1)
        rows = np.array([1, 0])
        at = clients.gradients_at(clients.x_cd[rows], rows, 1, "midpoint").clone()
        points = clients.x_cd[rows]
        assert clients.gradients_at(points, rows, 1, "midpoint", in_place=True) is points
        assert torch.equal(points, at)
        others = clients.losses_at(clients.x_cd, clients.b_cd, rows, 3)
        found.append((losses, clients.g_cd.clone(), at, others))
    for whole, parted in zip(*found, strict=True):
        torch.testing.assert_close(whole, parted, rtol=1e-12, atol=1e-14)


def test_both_engines_score_models_alike() -> None:
    """Several models on several clients' batches, with each model's own BatchNorm statistics."""
    task = Classification(
        DigitsConfig(), MlpConfig(norm="batch"), DataConfig(batch_size=8), 0, torch.float64
    )
    clients = ClientBatch(
        range(5), task, OptimizerConfig(), dtype=torch.float64, device=CPU, own_starts=True
    )
    clients.gradients(0)
    before, found = clients.b_cd.clone(), []
    for engine in ENGINES:
        clients.use_engine(engine)
        local = clients.losses_at(clients.x_cd[1:], clients.b_cd[1:], np.array([4, 2]), 1)
        held_out = clients.validation_losses_at(clients.x_cd, clients.b_cd, 1, 16)
        assert local.shape == (2, 4)
        assert held_out.shape == (5, 5)
        assert local.dtype == held_out.dtype == torch.float64
        none = clients.losses_at(clients.x_cd, clients.b_cd, np.empty(0, dtype=np.int64), 1)
        assert none.shape == (0, 5)
        found.append((local, held_out))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert torch.equal(clients.b_cd, before)


# -- a frozen base -------------------------------------------------------------------------------------


class OnFrozenBase(Classification):
    """Digits on a frozen first layer that all clients share, with a table that is no state."""

    shared: nn.Module | None = None

    def model(self) -> nn.Module:
        if self.shared is None:
            self.shared = super().model()
            self.shared[1].requires_grad_(False)
            self.shared[1].register_buffer("table", torch.arange(3.0), persistent=False)
        return self.shared

    def start(self, variant: int = 0) -> dict[str, torch.Tensor]:
        start = super().start(variant)
        return {name: value for name, value in start.items() if not name.startswith("1.")}


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_have_the_trained_parameters_and_the_base_is_unchanged(engine: str) -> None:
    task = OnFrozenBase(DigitsConfig(), MlpConfig(), DataConfig(), 0, torch.float32)
    base = task.model()[1]
    address, table = base.weight.data_ptr(), base.table
    before = base.weight.clone()
    clients = ClientBatch([0, 1, 4], task, OptimizerConfig(), dtype=torch.float32, device=CPU)
    clients.use_engine(engine)
    start = clients.x_cd.clone()
    for t in range(3):
        clients.gradients(t)
        clients.x_cd.add_(clients.direction(), alpha=-0.1)
    clients.evaluate("test")
    assert clients.layout.size == 64 * 64 + 64 + 640 + 10
    assert clients.frozen == 64 * 64 + 64
    assert clients.buffer_layout.size == 0
    assert not clients.counters
    assert clients.model[1] is base
    assert base.weight.data_ptr() == address
    assert base.table is table
    assert torch.equal(base.weight, before)
    assert not any(name.startswith("1.") for name in clients.state_dict(0))
    assert torch.equal(clients.start_rows(1)[0], start[0]), (
        "a start is not read from the live module"
    )
    assert not torch.equal(clients.x_cd, start)
