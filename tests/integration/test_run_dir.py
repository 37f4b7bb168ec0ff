"""What a run leaves behind, file by file, on one rank and on three; and how it ends when it fails."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import QUIET, models, rows, train, write_quadratic
from safetensors.torch import load_file
from sklearn.metrics import adjusted_rand_score

from cobo_dist.cli.train import main
from cobo_dist.comm.session import Session
from cobo_dist.config import Config, load_config
from cobo_dist.errors import RunFailure
from cobo_dist.maths.graph import components
from cobo_dist.maths.weights import Weights
from cobo_dist.tasks.labeled import Classification
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.run import run_in_session

ROUNDS, CLIENTS = 30, 8
SECRET = "planted-4711-secret"
DIGITS = [
    f"run.rounds={ROUNDS}", "run.eval_every=10", "run.log_weights_every=10", "run.seed=5",
    "run.eval_splits=[validation, test]", "model.norm=batch", "algorithm.gamma=0.3",
    "algorithm.sampling.rate=3", "log.flush_every=7", "run.threads=1",
]  # fmt: skip
LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_RANK")


@pytest.fixture(scope="module", autouse=True)
def clean_environment() -> Iterator[None]:
    """One rank however the tests were started, and a secret that must not leak."""
    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCH:
            patch.delenv(name, raising=False)
        patch.setenv("SECRET_TOKEN", SECRET)
        yield


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("solo") / "run"
    assert main([*QUIET, *DIGITS, f"run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, gloo_pool: RankPool) -> Path:
    folder = tmp_path_factory.mktemp("three") / "run"
    assert gloo_pool.run(3, train_with_secret, [*DIGITS, f"run.dir={folder}"]) == [0, 0, 0]
    return folder


def train_with_secret(session: Session, arguments: list[str]) -> int:
    os.environ["SECRET_TOKEN"] = SECRET
    return train(session, arguments)


@pytest.fixture(params=["solo", "three"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def ranks_of(folder: Path) -> int:
    return {"solo": 1, "three": 3}[folder.parent.name.rstrip("0123456789")]


# -- the files -----------------------------------------------------------------------------------------


def test_all_files_and_nothing_else(folder: Path) -> None:
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    expected = ["W.npz", "config.yaml", "env.json", "metrics.jsonl", "status.json", "summary.json"]
    expected += ["model.json"]
    clients = [f"client_{client:05d}.safetensors" for client in range(CLIENTS)]
    expected += [f"models/{name}" for name in clients]
    kept = ["manifest.json", "config.yaml", "logger.json", "logger.safetensors", *clients]
    expected += [f"checkpoints/round-{ROUNDS:09d}/{name}" for name in kept]
    expected += ["owner/000001.json"]
    assert files == sorted(expected)


def test_status(folder: Path) -> None:
    assert read(folder, "status.json") == {"exit_code": 0, "status": "done", "reason": ""}


def test_config_is_resolved(folder: Path) -> None:
    """It holds every key, the arguments, and no `auto` where the run has decided."""
    config = load_config(str(folder / "config.yaml"), [])
    asked = load_config(None, [*QUIET, *DIGITS, f"run.dir={folder}"])
    assert config.run.engine in ("one_by_one", "vectorised")
    run = config.run.model_copy(update={"engine": "auto"})
    assert config.model_copy(update={"run": run}) == asked
    text = (folder / "config.yaml").read_text()
    for section, keys in Config().model_dump().items():
        assert f"{section}:" in text
        for key in keys:
            assert f"\n  {key}:" in text


def test_env(folder: Path) -> None:
    env = read(folder, "env.json")
    assert len(env["ranks"]) == ranks_of(folder)
    for library in ("python", "torch", "numpy", "cobo_dist"):
        assert env["versions"][library][0].isdigit()
    assert torch.__version__.startswith(env["versions"]["torch"])
    assert isinstance(env["command"], list)
    for host in env["ranks"]:
        assert os.uname().nodename in host
        assert "cpu" in host
    assert env["git_revision"] is None or len(env["git_revision"]) == 40


def test_no_environment_variable_leaks(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert b"SECRET_TOKEN" not in content, path


# -- metrics.jsonl -------------------------------------------------------------------------------------


def test_every_line_is_json_without_nan(folder: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_eval_rows_for_every_client_and_their_mean(folder: Path) -> None:
    found = rows(folder, "eval")
    rounds = [0, 10, 20, 30]
    assert len(found) == len(rounds) * 2 * (CLIENTS + 1)
    for r in rounds:
        for split in ("validation", "test"):
            some = [row for row in found if (row["round"], row["split"]) == (r, split)]
            assert [row["client"] for row in some] == [*range(CLIENTS), None]
            for name in ("loss", "accuracy"):
                mean = np.mean([row[name] for row in some[:-1]])
                assert some[-1][name] == pytest.approx(mean, rel=1e-12)
            assert all(0.0 <= row["accuracy"] <= 1.0 for row in some), "fractions"


def test_training_shows_in_the_eval_rows(folder: Path) -> None:
    mean = [row["accuracy"] for row in rows(folder, "eval") if row["client"] is None]
    assert mean[-1] > mean[0] + 0.2


def test_a_round_row_for_every_round(folder: Path) -> None:
    found = rows(folder, "round")
    assert [row["round"] for row in found] == list(range(1, ROUNDS + 1))
    for row in found:
        assert row["seconds"] > 0
        assert 0 <= row["pairs"] <= 28
        assert isinstance(row["pairs"], int)
        assert isinstance(row["bytes_sent"], int)
        assert 0 <= row["weights_at_0"] <= 1
        assert 0 <= row["weights_at_1"] <= 1
        assert 1 <= row["components"] <= CLIENTS
        assert (row["alignment"] is None) == (row["pairs"] == 0)
        assert row["loss"] > 0
    assert any(row["pairs"] for row in found)
    assert any(row["alignment"] for row in found)


def test_graph_figures_of_a_round_are_those_of_its_snapshot(folder: Path) -> None:
    file = np.load(folder / "W.npz")
    by_round = {row["round"]: row for row in rows(folder, "round")}
    upper = np.triu_indices(CLIENTS, k=1)
    for r, weights in zip(file["rounds"][1:], file["weights"][1:], strict=True):
        row = by_round[int(r)]
        assert row["weights_at_0"] == pytest.approx((weights[upper] == 0).mean())
        assert row["weights_at_1"] == pytest.approx((weights[upper] == 1).mean())
        assert row["components"] == components(Weights.of_rows(range(len(weights)), weights))


def test_bytes_of_the_rounds_add_up_to_the_summary(folder: Path) -> None:
    sent = [row["bytes_sent"] for row in rows(folder, "round")]
    assert sum(sent) == read(folder, "summary.json")["bytes_sent"]
    if ranks_of(folder) == 1:
        assert sent == [0] * ROUNDS
    else:
        # At the least, one model of 8,970 + 4 * 64 numbers goes each way between 3 ranks while W ~ 1.
        assert sent[0] >= 6 * (8970 + 256) * 4
        assert min(sent) > 0


# -- W.npz ---------------------------------------------------------------------------------------------


def test_weights(folder: Path) -> None:
    file = np.load(folder / "W.npz", allow_pickle=False)
    rounds, weights = file["rounds"], file["weights"]
    assert rounds.dtype == np.int64
    assert rounds.tolist() == [0, 10, 20, ROUNDS]
    assert weights.dtype == np.float32
    assert weights.shape == (4, CLIENTS, CLIENTS)
    assert (weights[0] == 1).all(), "W^0 is all ones"
    np.testing.assert_array_equal(weights, weights.transpose(0, 2, 1))
    assert weights.min() >= 0
    assert weights.max() <= 1
    off = ~np.eye(CLIENTS, dtype=bool)
    assert weights[-1][off].min() < 0.5 < weights[-1][off].max(), "a run in which W moved"
    assert file["clusters"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "names" not in file, "these clients have none"


# -- models --------------------------------------------------------------------------------------------


def test_models_load_into_a_fresh_model_and_give_the_reported_accuracy(folder: Path) -> None:
    config = load_config(str(folder / "config.yaml"), [])
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    assert isinstance(task, Classification)
    reported = read(folder, "summary.json")["per_client"]
    for client in range(CLIENTS):
        state = load_file(folder / "models" / f"client_{client:05d}.safetensors")
        model = task.model()
        model.load_state_dict(state, strict=True)
        model.eval()
        counters = [value for name, value in state.items() if "num_batches_tracked" in name]
        assert counters
        assert all(int(counter) == ROUNDS for counter in counters), "buffers are this client's"
        numbers = task.split_of["test"][client]
        with torch.no_grad():
            answers = model(task.examples.inputs[numbers]).argmax(dim=1)
        truth = task.examples.labels_of[client][task.examples.targets[numbers]]
        accuracy = (answers == truth).double().mean().item()
        assert reported[client]["accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_clients_have_models_of_their_own(folder: Path) -> None:
    states = [load_file(path) for path in sorted((folder / "models").iterdir())]
    for name, value in states[0].items():
        if value.is_floating_point():
            assert not any(torch.equal(value, other[name]) for other in states[1:]), name


# -- summary.json --------------------------------------------------------------------------------------


def test_summary(folder: Path) -> None:
    summary = read(folder, "summary.json")
    assert summary["format"] == 2
    assert list(summary) == [
        "format", "task", "algorithm", "seed", "rounds", "clients", "ranks", "seconds", "bytes_sent",
        "bytes_per_client", "keep", "final", "numbers", "per_client", "cluster_match", "link_accuracy",
        "link_f1", "adjusted_rand", "graph_correlation", "clusters_found", "link_threshold",
    ]  # fmt: skip
    assert (summary["task"], summary["algorithm"], summary["seed"]) == ("digits", "cobo", 5)
    assert (summary["rounds"], summary["clients"]) == (ROUNDS, CLIENTS)
    assert summary["ranks"] == ranks_of(folder)
    assert summary["seconds"] > 0
    assert set(summary["final"]) == {"loss", "accuracy"}
    last = [
        row for row in rows(folder, "eval") if row["round"] == ROUNDS and row["split"] == "test"
    ]
    for name in ("loss", "accuracy"):
        assert summary["final"][name] == pytest.approx(last[-1][name], rel=1e-12)
        assert [one[name] for one in summary["per_client"]] == [row[name] for row in last[:-1]]
    assert [one["client"] for one in summary["per_client"]] == list(range(CLIENTS))


def test_the_last_row_has_what_was_sent_and_held(folder: Path) -> None:
    (traffic,) = rows(folder, "traffic")
    sent = [row["bytes_sent"] for row in rows(folder, "round")]
    training = ("bytes_pairs", "bytes_gradients", "bytes_mixing")
    assert sum(traffic[name] for name in training) == sum(sent)
    assert len(traffic["peak_bytes"]) == ranks_of(folder)
    # No process with torch in it is smaller than 100 MB or larger than the machine.
    assert all(1e8 < peak < 1e12 for peak in traffic["peak_bytes"])


def test_cluster_match_is_the_share_of_pairs_told_apart_rightly(folder: Path) -> None:
    """Of 28 pairs, 4 lie within a cluster; a weight of at least 1/2 counts as a link."""
    weights = np.load(folder / "W.npz")["weights"][-1]
    right = sum(
        (weights[i, j] >= 0.5) == (i // 2 == j // 2) for i in range(8) for j in range(i + 1, 8)
    )
    summary = read(folder, "summary.json")
    assert summary["cluster_match"] == summary["link_accuracy"] == pytest.approx(right / 28)


def test_links_and_clusters_found_are_those_of_the_last_w(folder: Path) -> None:
    weights, summary = np.load(folder / "W.npz")["weights"][-1], read(folder, "summary.json")
    linked, truth = np.triu(weights >= 0.5, k=1), np.arange(8) // 2
    right = (linked & (truth[:, None] == truth)).sum()
    assert summary["link_f1"] == pytest.approx(2 * right / (linked.sum() + 4))
    clusters = [one["cluster"] for one in summary["per_client"]]
    assert summary["adjusted_rand"] == pytest.approx(adjusted_rand_score(truth, clusters))
    assert (
        summary["clusters_found"] == len(set(clusters)) == rows(folder, "round")[-1]["components"]
    )
    assert summary["link_threshold"] == 0.5


def test_a_method_that_links_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Local on 8 clients in 4 clusters: the link accuracy is 85.7%, F1 and adjusted Rand are 0."""
    run = tmp_path / "run"
    assert (
        main([*QUIET, *DIGITS[:1], "algorithm.name=local", f"run.dir={run}", "run.threads=1"]) == 0
    )
    summary = read(run, "summary.json")
    assert summary["link_accuracy"] == pytest.approx(24 / 28)
    assert (summary["link_f1"], summary["adjusted_rand"]) == (0, 0)
    assert [one["cluster"] for one in summary["per_client"]] == list(range(8))
    table = " ".join(capsys.readouterr().out.split())
    assert "clusters found 8 (" in table
    assert "link F1, adjusted Rand 0.00, 0.00" in table


# -- repeating -----------------------------------------------------------------------------------------


def same_bits(one: Path, other: Path) -> None:
    first, second = models(one), models(other)
    assert first.keys() == second.keys()
    assert len(first) > CLIENTS
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name
    assert (
        np.load(one / "W.npz")["weights"].tobytes() == np.load(other / "W.npz")["weights"].tobytes()
    )


def test_its_config_repeats_the_run_bit_by_bit(solo: Path, tmp_path: Path) -> None:
    assert main(["--config", str(solo / "config.yaml"), f"run.dir={tmp_path / 'again'}"]) == 0
    same_bits(solo, tmp_path / "again")


def repeat(session: Session, file: str, folder: str) -> int:
    return run_in_session(load_config(file, [f"run.dir={folder}"]), session).code


def test_its_config_repeats_the_run_on_three_ranks(
    pool: RankPool, three: Path, tmp_path: Path
) -> None:
    pool.run(3, repeat, str(three / "config.yaml"), str(tmp_path / "again"))
    same_bits(three, tmp_path / "again")


def test_another_seed_gives_another_run(solo: Path, tmp_path: Path) -> None:
    """So that the two tests above can fail."""
    arguments = ["--config", str(solo / "config.yaml"), f"run.dir={tmp_path / 'o'}", "run.seed=6"]
    assert main(arguments) == 0
    assert models(solo)["client_00000/1.weight"].tobytes() != (
        models(tmp_path / "o")["client_00000/1.weight"].tobytes()
    )


def test_no_rounds_leave_the_start(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*QUIET, "run.rounds=0", f"run.dir={out}"]) == 0
    assert np.load(out / "W.npz")["rounds"].tolist() == [0]
    assert rows(out, "round") == []
    found = models(out)
    for client in range(1, CLIENTS):
        assert (found[f"client_{client:05d}/1.weight"] == found["client_00000/1.weight"]).all()
    assert 0 < read(out, "summary.json")["final"]["accuracy"] < 0.4, "an untrained model"


# -- failing -------------------------------------------------------------------------------------------


def test_a_model_that_diverges_ends_the_run_with_client_and_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step of 1e15 overflows the second round's loss; it is noticed at the next flush."""
    out = tmp_path / "out"
    code = main([*QUIET, "run.rounds=40", "optimizer.lr=1e15", f"run.dir={out}"])
    err = capsys.readouterr().err
    assert code == 1
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    for word in ("client 0", "round 2", "nan", "optimizer.lr"):
        assert word in err
    assert read(out, "status.json") == {
        "exit_code": 1, "status": "failed", "reason": err.removeprefix("error: ").strip(),
    }  # fmt: skip
    assert "RunFailure" in (out / "errors" / "rank_00000.txt").read_text()
    assert not (out / "summary.json").exists()
    assert 2 <= len(rows(out, "round")) < 40, "what happened until then is kept"
    assert all(row["loss"] is None for row in rows(out, "round")[1:])


def test_a_model_that_diverges_in_the_last_round_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of round 1 is that of x^0 and finite; x^1, the result, is of no use."""
    out = tmp_path / "out"
    code = main([*QUIET, "run.rounds=1", "optimizer.lr=1e15", f"run.dir={out}"])
    assert code == 1
    assert "client 0" in capsys.readouterr().err
    assert read(out, "status.json")["status"] == "failed"


def failure_of(session: Session, arguments: list[str]) -> str:
    try:
        train(session, arguments)
    except RunFailure as failure:
        return str(failure)
    return "no failure"


def test_all_ranks_end_together_naming_the_client_that_diverged(
    pool: RankPool, tmp_path: Path
) -> None:
    """Client 5 of 7 (on rank 1 of 2) has curvature 40: at a step of 0.1 it grows by 3 each round.

    From 1e150 in each of 5 coordinates, its loss in round r is 20 * 5 * 1e300 * 9^(r-1): 9^7 = 4.8e6
    takes it over float64's 1.8e308 in round 8. All others shrink.
    """
    problem = write_quadratic(tmp_path / "problem.npz")
    arrays = dict(np.load(problem))
    arrays["curvature"] = np.where(np.arange(7) == 5, 40.0, 1.0)
    arrays["start"] = np.full(5, 1e150)
    np.savez(problem, **arrays)
    out = tmp_path / "out"
    answers = pool.run(
        2, failure_of,
        ["task.name=quadratic", f"task.file={problem}", f"run.dir={out}", "run.rounds=60",
         "run.dtype=float64", "algorithm.name=local", "log.flush_every=3"],
    )  # fmt: skip
    assert len(set(answers)) == 1
    assert "client 5 became inf in round 8;" in answers[0]
    assert read(out, "status.json")["reason"] == answers[0]
    assert read(out, "status.json")["exit_code"] == 1


def test_an_error_on_another_rank_is_named_by_rank_0(pool: RankPool, tmp_path: Path) -> None:
    """Rank 1 cannot save its models: rank 0 says which rank failed and why, not "lost contact"."""
    out = tmp_path / "out"
    answers = pool.run(2, failing_save, ["run.rounds=2", f"run.dir={out}"])
    host = os.uname().nodename
    assert answers[0].startswith(f"rank 1 on {host} failed in round 2: {out}/models/client_")
    for answer in answers:
        assert "are free; make room; the same command with run.resume=auto" in answer
    assert read(out, "status.json")["exit_code"] == 1
    assert "rank 1" in read(out, "status.json")["reason"]
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize("name", ["config.yaml", "W.npz", "metrics.jsonl", "summary.json"])
def test_a_full_disk_is_one_line_with_path_and_bytes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever file meets it first."""
    from unittest import mock

    from cobo_dist.storage import run_dir as folder
    from cobo_dist.tracking import run_logger as run_logger

    real = folder.disk_guard

    @contextmanager
    def full(path: Path, needed: int) -> Iterator[None]:
        with real(path, needed):
            if path.name == name:
                raise OSError(28, "No space left on device")
            yield

    arguments = [*QUIET, *DIGITS, "run.rounds=2", f"run.dir={tmp_path / 'out'}"]
    with (
        mock.patch.object(folder, "disk_guard", full),
        mock.patch.object(run_logger, "disk_guard", full),
    ):
        assert main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: {tmp_path / 'out' / name} needs ")
    assert "are free; make room; the same command with run.resume=auto goes on" in said[0]


def failing_save(session: Session, arguments: list[str]) -> str:
    """Train on a disk that is full for rank 1."""
    from unittest import mock

    from safetensors import torch as files

    if session.transport.rank == 0:
        return failure_of(session, arguments)
    full = OSError(28, "No space left on device")
    with mock.patch.object(files, "save_file", side_effect=full):
        return failure_of(session, arguments)
