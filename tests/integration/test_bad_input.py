"""Bad input to the command: exit code 2, one line with culprit and remedy, nothing left on disk."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool import RankPool
from problems import QUIET, write_quadratic

from cobo_dist.cli import parser, train
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session
from cobo_dist.comm.startup.launch_env import TORCHRUN
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.training.run import run_in_session

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in `tmp_path`, on one rank however the tests were started."""
    monkeypatch.chdir(tmp_path)
    for name in (
        *TORCHRUN,
        "OMPI_COMM_WORLD_RANK",
        "PMI_RANK",
        "LOCAL_RANK",
        "SLURM_PROCID",
        "SLURM_NTASKS",
    ):
        monkeypatch.delenv(name, raising=False)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file and folder below, with the content of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Start a training that must be refused; return its line after checking everything else."""

    def start(*arguments: str, words: tuple[str, ...]) -> str:
        before = tree(tmp_path)
        code = train.main([*QUIET, "run.rounds=2", "run.dir=out", *arguments])
        out, err = capsys.readouterr()
        assert code == 2
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in out + err
        for word in words:
            assert word in err
        assert tree(tmp_path) == before, "nothing is left on disk"
        return err

    return start


def rewrite(path: Path, **arrays: Any) -> str:
    """Write a sound problem of 4 clients in 3 dimensions with some arrays replaced (None: left out)."""
    sound: dict[str, Any] = {
        "centers": np.arange(12.0).reshape(4, 3),
        "curvature": np.ones(4),
        "start": np.zeros(3),
    }
    kept = {name: value for name, value in (sound | arrays).items() if value is not None}
    np.savez(path, **kept)
    return f"task.file={path}"


# -- the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("run.round=5", ("run.round", "did you mean run.rounds?")),
        ("algorithm.name=cob", ("algorithm.name='cob'", "did you mean cobo?")),
        ("task.name=cifar", ("task.name='cifar'", "digits, quadratic")),
        ("optimizer.name=adamm", ("optimizer.name='adamm'", "sgd")),
        ("run.rounds=many", ("run.rounds='many'", "integer")),
        ("run.rounds=true", ("run.rounds=True", "integer")),
        ("optimizer.lr=-1", ("optimizer.lr=-1", "greater than or equal to 0")),
        ("optimizer.lr=.nan", ("optimizer.lr=nan", "finite")),
        ("algorithm.gamma=.inf", ("algorithm.gamma=inf", "finite")),
        ("model.hidden=[-1]", ("model.hidden", "-1")),
        ("model.hidden=[64, 0]", ("model.hidden", "0")),
        ("optimizer.lr=1e300", ("optimizer.lr=1e+300", "less than or equal to 1")),
        ("run.rounds=!!bool x", ("run.rounds=!!bool x", "not valid YAML")),
        ("run.rounds=!!int ''", ("run.rounds=!!int", "not valid YAML")),
        ("run.rounds=!!timestamp x", ("run.rounds=!!timestamp x", "not valid YAML")),
        ("run.device=tpu", ("run.device='tpu'", "auto, cpu, cuda")),
        ("run.device=cuda:x", ("run.device='cuda:x'", "auto, cpu, cuda")),
        ("comm.backend=smoke", ("comm.backend='smoke'", "auto, nccl, gloo")),
        ("rounds", ("'rounds'", "key.path=value")),
        ("--rounds=5", ("'--rounds=5'", "key.path=value")),
        ("-v", ("'-v'", "key.path=value")),
        ("", ("''", "key.path=value")),
    ],
)
def test_arguments(refused: Refused, argument: str, words: tuple[str, ...]) -> None:
    refused(argument, words=words)


def test_no_gpu(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused("run.device=cuda", words=("run.device=cuda", "run.device=cpu"))
    refused("comm.backend=nccl", words=("comm.backend=nccl", "gloo"))


def test_config_without_a_file(refused: Refused) -> None:
    refused("--config", words=("--config", "usage"))


@pytest.mark.parametrize("arguments", [("--config", ""), ("--config=",)])
def test_an_empty_config_name_is_not_the_quickstart(
    refused: Refused, arguments: tuple[str, ...]
) -> None:
    """`--config "$MY_CONFIG"` with the variable unset must not train something else."""
    refused(*arguments, words=("--config",))


# -- the config file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\xff", ("not UTF-8",)),
        (b"\x00\x01\x02", ("not valid YAML",)),
        (b"- run\n- task\n", ("list", "sections")),
        (b"words\n", ("str", "sections")),
        (b"run: [1,\n", ("line", "not valid YAML")),
        (b"run:\n  rounds: 5\n bad\n", ("line", "not valid YAML")),
        (b"run:\n  round: 5\n", ("run.round", "did you mean run.rounds?")),
        (b"run: 5\n", ("run=5", "run.dir")),
    ],
)
def test_a_malformed_config_file(
    refused: Refused, tmp_path: Path, content: bytes, words: tuple[str, ...]
) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    named = () if words[0].startswith("run") else ("bad.yaml",)
    refused("--config", "bad.yaml", words=words + named)


def test_a_missing_config_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused("--config", "no.yaml", words=("no.yaml", "does not exist"))
    refused("--config", "file/no.yaml", words=("file/no.yaml", "cannot be read"))
    refused("--config", "x" * 300, words=("x" * 300, "cannot be read"))
    (tmp_path / "folder").mkdir()
    refused("--config", "folder", words=("folder", "cannot be read", "directory"))


# -- the problem file ----------------------------------------------------------------------------------

NAN = np.array([0.0, np.nan, 0.0])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"centers": None}, ("lacks", "centers", "curvature, start")),
        ({"curvature": None}, ("lacks", "curvature")),
        ({"start": None}, ("lacks", "start")),
        ({"centers": np.zeros(4)}, ("centers", "[4]", "2 dimension")),
        ({"centers": np.zeros((4, 3, 1))}, ("centers", "[4, 3, 1]", "2 dimension")),
        ({"curvature": np.ones((4, 1))}, ("curvature", "[4, 1]", "1 dimension")),
        ({"start": np.zeros((1, 3))}, ("start", "[1, 3]", "1 dimension")),
        ({"start": 0.0}, ("start", "[]", "1 dimension")),
        ({"curvature": np.ones(5)}, ("centers is [4, 3]", "curvature must be [4]", "[5]")),
        ({"start": np.zeros(4)}, ("centers is [4, 3]", "start must be [3]", "[4]")),
        ({"clusters": np.zeros(3, int)}, ("clusters must be [4]", "[3]")),
        ({"start": NAN}, ("start", "NaN")),
        ({"centers": np.full((4, 3), np.inf)}, ("centers", "infinite")),
        ({"centers": np.zeros((0, 3))}, ("centers", "empty")),
        ({"centers": np.zeros((4, 0)), "start": np.zeros(0)}, ("centers", "empty")),
        ({"start": np.array(["a", "b", "c"])}, ("start", "<U1", "numbers")),
        ({"centers": np.zeros((4, 3), complex)}, ("centers", "complex128", "numbers")),
        ({"curvature": np.ones(4, bool)}, ("curvature", "bool", "numbers")),
        ({"start": np.array([1, "a", None], object)}, ("no readable npz", "Python objects")),
        ({"clusters": np.array(["a", "a", "b", "b"])}, ("clusters", "<U1")),
        ({"clusters": np.zeros((4, 1))}, ("clusters", "[4, 1]")),
        ({"clusters": np.array([0.0, 0.5, 1.0, 1.5])}, ("clusters",)),
        ({"clusters": np.array([0.0, np.nan, 1.0, 1.0])}, ("clusters",)),
        ({"curvature": np.array([1.0, -1.0, 1.0, 1.0])}, ("curvature", "-1")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_problem_with_wrong_arrays(
    refused: Refused, tmp_path: Path, arrays: dict[str, Any], words: tuple[str, ...]
) -> None:
    argument = rewrite(tmp_path / "problem.npz", **arrays)
    refused("task.name=quadratic", argument, words=("problem.npz", *words))


def write_truncated(path: Path) -> None:
    write_quadratic(path)
    path.write_bytes(path.read_bytes()[:-60])


def write_damaged(path: Path) -> None:
    """Flip bits in the middle of an array: the zip's checksum does not match."""
    write_quadratic(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"\x93NUMPY") + 130
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def write_other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("centers.npy", "no array")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 and no zip"),
        lambda path: path.write_text("centers = 5"),
        lambda path: path.write_bytes(bytes(range(256)) * 8),
        lambda path: np.save(path.open("wb"), np.zeros((4, 3))),
        write_truncated,
        write_damaged,
        write_other_zip,
    ],
    ids=["empty", "half_zip", "text", "binary", "npy", "truncated", "damaged", "other_zip"],
)
def test_a_problem_that_is_no_npz(
    refused: Refused, tmp_path: Path, write: Callable[[Path], object]
) -> None:
    write(tmp_path / "problem.npz")
    refused("task.name=quadratic", "task.file=problem.npz", words=("task.file=problem.npz", "npz"))


def test_a_missing_problem(refused: Refused, tmp_path: Path) -> None:
    refused("task.name=quadratic", words=("task.file is not set", "problem.npz"))
    refused("task.name=quadratic", "task.file=no.npz", words=("task.file=no.npz", "no file"))
    (tmp_path / "folder.npz").mkdir()
    refused("task.name=quadratic", "task.file=folder.npz", words=("folder.npz", "no file"))
    long = "x" * 300
    refused("task.name=quadratic", f"task.file={long}", words=("task.file=", long))


# -- the run folder ------------------------------------------------------------------------------------


def test_a_run_folder_that_is_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    refused("run.dir=taken", words=("run.dir=taken", "is a file", "another run.dir"))
    refused("run.dir=taken/below/it", words=("run.dir=taken/below/it", "taken is a file"))
    refused("run.dir=taken", "run.overwrite=true", words=("taken is a file",))


@pytest.mark.parametrize("name", ["x" * 300, f"good/{'x' * 300}/good"])
def test_a_run_folder_whose_name_is_too_long(refused: Refused, name: str) -> None:
    refused(f"run.dir={name}", words=("run.dir=", name))


def test_a_run_folder_that_holds_a_run(refused: Refused, tmp_path: Path) -> None:
    problem = write_quadratic(tmp_path / "problem.npz")
    run = [*QUIET, "task.name=quadratic", f"task.file={problem}", "run.rounds=2", "run.dir=out"]
    assert train.main(run) == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "figures").mkdir(exist_ok=True)
    (tmp_path / "out" / "models" / "client_00099.safetensors").write_text("of an earlier run")
    refused(*run[2:], words=("run.dir=out", "already holds a run", "run.overwrite=true"))
    before = tree(tmp_path / "out")

    assert train.main([*run, "run.overwrite=true", "run.rounds=3"]) == 0
    after = tree(tmp_path / "out")
    assert after["notes.txt"] == b"mine", "what no run wrote stays"
    assert "models/client_00099.safetensors" not in after, "what the earlier run wrote goes"
    assert after["metrics.jsonl"] != before["metrics.jsonl"]
    assert b'"round": 3' in after["metrics.jsonl"]
    assert "models/client_00006.safetensors" in after


@pytest.mark.parametrize(
    "name", ["models/mine.txt", "figures/mine.png", "summary.json", "config.yaml"]
)
def test_a_folder_with_files_of_the_same_names_but_no_run_keeps_them(
    tmp_path: Path, name: str
) -> None:
    """`run.dir=.` in a project folder must not delete the project's own `models/`."""
    problem = write_quadratic(tmp_path / "problem.npz")
    mine = tmp_path / "project" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    train.main(
        [*QUIET, "task.name=quadratic", f"task.file={problem}", "run.rounds=2", "run.dir=project"]
    )
    assert mine.read_text() == "precious"


# -- rules that need the data --------------------------------------------------------------------------


def test_too_many_clients_for_the_digits(refused: Refused) -> None:
    refused("task.clusters=700", words=("1797 digits", "1400 clients", "task.clusters"))
    refused("task.test_size=1797", words=("1797 digits", "task.test_size=1797"))
    refused("task.images_per_client=1298", words=("leave 1297", "task.images_per_client=1298"))
    refused("task.test_size=1790", words=("task.test_size=1790", "leave 0", "8 clients"))


def test_too_many_clients_are_refused_before_they_are_made(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9,000,000 clients take minutes to make: the numbers must be compared first."""

    def made(seed: int, cluster: int) -> None:
        raise AssertionError("a client's labels were drawn before the refusal")

    monkeypatch.setattr("cobo_dist.tasks.digits._labels", made)
    refused(
        "task.clusters=3000", "task.clients_per_cluster=3000",
        words=("9000000 clients", "task.clusters"),
    )  # fmt: skip


def test_validation_based_weights_without_validation_data(refused: Refused) -> None:
    refused(
        "algorithm.name=validation_based", "task.validation_fraction=0",
        words=("algorithm.name=validation_based", "has only test", "task.validation_fraction"),
    )  # fmt: skip


def test_validation_without_validation_images(refused: Refused) -> None:
    refused(
        "run.eval_splits=[validation]", "task.validation_fraction=0",
        words=("run.eval_splits", "validation", "test"),
    )  # fmt: skip


def test_oracle_without_known_clusters(refused: Refused, tmp_path: Path) -> None:
    argument = rewrite(tmp_path / "problem.npz")  # four different centres
    refused(
        "task.name=quadratic", argument, "algorithm.name=oracle",
        words=("algorithm.name=oracle", "known clusters", "clusters [n]"),
    )  # fmt: skip


def test_oracle_with_clusters_in_the_file_is_fine(tmp_path: Path) -> None:
    argument = rewrite(tmp_path / "problem.npz", clusters=np.array([0, 0, 1, 1]))
    arguments = [*QUIET, "task.name=quadratic", argument, "algorithm.name=oracle", "run.rounds=2"]
    assert train.main([*arguments, "run.dir=out"]) == 0


# -- several ranks -------------------------------------------------------------------------------------


def test_more_ranks_than_clients() -> None:
    with pytest.raises(ConfigError) as caught:
        Placement.contiguous(3, 5)
    message = str(caught.value)
    assert "5 ranks for 3 clients" in message
    assert "at most 3 ranks" in message
    assert Placement.contiguous(3, 3).owners == (0, 1, 2)


def refusal_of(session: Session, arguments: list[str], by_rank: list[list[str]]) -> str:
    """Return why the session's ranks are refused; each rank has further arguments of its own."""
    mine = [*QUIET, *arguments, *by_rank[session.transport.rank]]
    try:
        run_in_session(load_config(None, mine), session)
    except ConfigError as refusal:
        return str(refusal)
    return "not refused"


def test_more_ranks_than_clients_end_together(pool: RankPool, tmp_path: Path) -> None:
    problem = write_quadratic(tmp_path / "problem.npz", clients=2)
    arguments = ["task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path / 'out'}"]
    answers = pool.run(3, refusal_of, arguments, [[], [], []])
    assert len(set(answers)) == 1
    assert "3 ranks for 2 clients" in answers[0]
    assert not (tmp_path / "out").exists()


def test_one_rank_without_its_data_ends_all_and_is_named(pool: RankPool, tmp_path: Path) -> None:
    problem = write_quadratic(tmp_path / "problem.npz")
    arguments = ["task.name=quadratic", f"run.dir={tmp_path / 'out'}"]
    own = [[f"task.file={problem}"], [f"task.file={tmp_path / 'no.npz'}"]]
    answers = pool.run(2, refusal_of, arguments, own)
    assert len(set(answers)) == 1
    assert answers[0].startswith("rank 1 on ")
    assert "no.npz" in answers[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("difference", ["config", "data"])
def test_ranks_with_different_data_or_config_are_refused(
    pool: RankPool, tmp_path: Path, difference: str
) -> None:
    """Other data under the same name (as on a node's local disk), or another config."""
    first = write_quadratic(tmp_path / "first.npz", seed=0)
    second = write_quadratic(tmp_path / "second.npz", seed=1)
    link = tmp_path / "problem.npz"
    arguments = ["task.name=quadratic", f"run.dir={tmp_path / 'out'}"]
    if difference == "config":
        link = first
        own = [["run.seed=1"], ["run.seed=2"]]
        answers = pool.run(2, refusal_of, [*arguments, f"task.file={link}"], own)
    else:
        answers = pool.run(
            2, refusal_with_own_file, arguments, str(link), [str(first), str(second)]
        )
    assert len(set(answers)) == 1
    assert "rank 1" in answers[0]
    assert {"config": "another config", "data": "other data"}[difference] in answers[0]
    assert not (tmp_path / "out").exists()


def refusal_with_own_file(
    session: Session, arguments: list[str], name: str, files: list[str]
) -> str:
    """Let each rank find its own file under one common name."""
    from unittest import mock

    from cobo_dist.tasks import quadratic

    own = quadratic.read_problem(Path(files[session.transport.rank]))
    with mock.patch.object(quadratic, "read_problem", return_value=own):
        return refusal_of(session, [*arguments, f"task.file={name}"], [[], []])


# -- which rank prints ---------------------------------------------------------------------------------


@pytest.fixture
def as_rank_1(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Be rank 1 of 2; return the list of pauses it makes."""
    pauses: list[float] = []
    for name, value in {
        "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parser.time, "sleep", pauses.append)
    return pauses


def test_other_ranks_leave_the_message_to_rank_0(
    as_rank_1: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["run.round=5"]) == 2
    assert capsys.readouterr().err == ""
    assert len(as_rank_1) == 1, "it lets rank 0 print first"


def test_what_one_host_lacks_is_printed_by_its_own_rank(
    as_rank_1: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert train.main(["run.device=cuda"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: rank 1 on ")
    assert "run.device=cpu" in err
    assert len(err.splitlines()) == 1


def test_a_half_set_launch_environment(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(words=("WORLD_SIZE=2", "RANK", "torchrun"))


def test_mpirun_without_mpi4py(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    refused(words=("mpi4py", "pip install", "torchrun"))
