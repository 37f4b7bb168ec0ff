"""From the environment to one launch record, and from there to this rank's device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cobo_dist.comm.startup import devices
from cobo_dist.comm.startup import launch_env as launching
from cobo_dist.comm.startup.devices import choose_device, why_cpu, wire_device
from cobo_dist.comm.startup.launch_env import Launch, check_open_files, read_launch
from cobo_dist.errors import ConfigError, HostConfigError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host7", "MASTER_PORT": "29501",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "6", "SLURM_NTASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "gpu[03-05,9],cpu1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: SLURM's variables, but not its commands."""
    monkeypatch.setattr(launching.shutil, "which", lambda name: None)


def refusal(env: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        read_launch(env)
    message = str(caught.value)
    assert message.splitlines() == [message], "one line"
    return message


# -- plain python and torchrun -------------------------------------------------------------------------


@pytest.mark.parametrize("env", [{}, {"PATH": "/bin", "SLURM_JOB_ID": "5", "SLURM_NTASKS": "4"}])
def test_plain_python_is_one_rank(env: dict[str, str]) -> None:
    """Also inside an allocation's shell (salloc), where no task number is set."""
    launch = read_launch(env)
    assert (launch.launcher, launch.rank, launch.world_size) == ("python", 0, 1)
    assert (launch.local_rank, launch.local_world_size) == (0, 1)
    assert ("srun --ntasks=4 python" in launch.notice) == ("SLURM_NTASKS" in env)


def test_torchrun() -> None:
    assert read_launch(TORCHRUN) == Launch("torchrun", 3, 8, 1, 2, "host7", 29501)


def test_torchrun_wins_over_srun_and_mpirun() -> None:
    both = {**SRUN, "OMPI_COMM_WORLD_RANK": "5", "PMI_RANK": "5", **TORCHRUN}
    assert read_launch(both) == dataclasses.replace(read_launch(TORCHRUN), batch_job="4711")


def test_ranks_started_by_hand_need_no_local_rank() -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert read_launch(env) == Launch("torchrun", 1, 2, 1, 2, "127.0.0.1", 29500)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_half_set_environment_lists_what_is_set_and_what_is_missing(missing: str) -> None:
    env = {name: value for name, value in TORCHRUN.items() if name != missing}
    message = refusal(env)
    given, _, lacking = message.partition(" but no ")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name == missing:
            assert name in lacking.partition(";")[0]
        else:
            assert f"{name}={env[name]}" in given
            assert name not in lacking.partition(";")[0].split(", ")
    assert "torchrun" in message


@pytest.mark.parametrize(
    ("env", "given", "missing"),
    [
        ({"RANK": "0"}, "RANK=0", "WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0", "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"MASTER_ADDR": "h"}, "MASTER_ADDR=h", "RANK, WORLD_SIZE, MASTER_PORT"),
        ({"MASTER_PORT": "5"}, "MASTER_PORT=5", "RANK, WORLD_SIZE, MASTER_ADDR"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, "SLURM_PROCID=1", "SLURM_NTASKS"),
    ],
)
def test_one_variable_alone_is_refused(env: dict[str, str], given: str, missing: str) -> None:
    assert f"half set: {given} but no {missing};" in refusal(env)


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [
        (TORCHRUN, "RANK", "8"),
        (TORCHRUN, "RANK", "-1"),
        (TORCHRUN, "RANK", "one"),
        (TORCHRUN, "RANK", ""),
        (TORCHRUN, "RANK", "1.5"),
        (TORCHRUN, "WORLD_SIZE", "0"),
        (TORCHRUN, "WORLD_SIZE", "two"),
        (TORCHRUN, "LOCAL_RANK", "x"),
        (TORCHRUN, "MASTER_PORT", "http"),
        (SRUN, "SLURM_PROCID", "7"),
        (SRUN, "SLURM_PROCID", "-1"),
        (SRUN, "SLURM_PROCID", "x"),
        (SRUN, "SLURM_NTASKS", "x"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "7"}, "SLURM_STEP_NUM_TASKS", "6"),
        (SRUN, "SLURM_LOCALID", "x"),
        (SRUN, "SLURM_JOB_ID", "x"),
        (SRUN, "SLURM_NODEID", "x"),
        ({"SLURM_PROCID": "0"}, "SLURM_NTASKS", "x"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    base: dict[str, str], name: str, value: str
) -> None:
    message = refusal({**base, name: value})
    assert name in message
    assert value in message


# -- srun ----------------------------------------------------------------------------------------------


def test_srun() -> None:
    launch = read_launch(SRUN)
    assert (launch.launcher, launch.rank, launch.world_size) == ("srun", 6, 7)
    assert (launch.local_rank, launch.local_world_size) == (1, 2)
    assert launch.address == "gpu03"
    assert 1024 < launch.port < 32768, "below the ephemeral ports"


@pytest.mark.parametrize(("node", "tasks"), [(0, 2), (1, 2), (2, 2), (3, 1)])
def test_tasks_on_each_node(node: int, tasks: int) -> None:
    """2(x3),1 means two tasks on nodes 0, 1 and 2, and one on node 3."""
    assert read_launch({**SRUN, "SLURM_NODEID": str(node)}).local_world_size == tasks


@pytest.mark.parametrize(
    ("spec", "node", "tasks"),
    [("4", 0, 4), ("4(x2)", 1, 4), ("1,3(x2),2", 2, 3), ("12(x10)", 9, 12)],
)
def test_other_lists_of_tasks(spec: str, node: int, tasks: int) -> None:
    env = {**SRUN, "SLURM_NODEID": str(node), "SLURM_STEP_TASKS_PER_NODE": spec}
    assert read_launch(env).local_world_size == tasks


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("gpu[9,03-05]", "gpu9"),
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("a-b[001-128]", "a-b001"),
        ("login.cluster.org", "login.cluster.org"),
        ("rack[0-63]_blade[0-41]", "rack0_blade0"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert read_launch({**SRUN, "SLURM_JOB_NODELIST": nodes}).address == first


def test_scontrol_is_asked_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        returncode, stdout = 0, "first7\nsecond8\n"

    asked: list[list[str]] = []
    monkeypatch.setattr(launching.shutil, "which", lambda name: "/bin/scontrol")
    monkeypatch.setattr(
        launching.subprocess, "run", lambda command, **_: asked.append(command) or Answer
    )
    assert read_launch(SRUN).address == "first7"
    assert asked == [["scontrol", "show", "hostnames", "gpu[03-05,9],cpu1"]]


def test_neighbouring_jobs_get_different_ports() -> None:
    """All ranks of a job agree; a job and its 50 neighbours on the same node do not collide."""
    jobs = [str(job) for job in range(99_980, 100_030)]
    ports = [read_launch({**SRUN, "SLURM_JOB_ID": job}).port for job in jobs]
    assert len(set(ports)) == len(jobs)
    assert max(ports) < 32768
    assert min(ports) > 1024
    other_rank = {**SRUN, "SLURM_JOB_ID": jobs[0], "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    assert read_launch(other_rank).port == ports[0]


def test_a_given_address_and_port_win() -> None:
    launch = read_launch({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert (launch.launcher, launch.address, launch.port) == ("srun", "head", 1234)


def test_an_interactive_shell_of_a_job_is_one_rank_and_says_what_to_type() -> None:
    """`salloc -n 4` starts a shell as a step of one task; SLURM_NTASKS stays that of the job."""
    shell = {
        "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290",
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_STEP_TASKS_PER_NODE": "1",
        "SLURM_TASKS_PER_NODE": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_TASK_PID": "99",
    }  # fmt: skip
    launch = read_launch(shell)
    assert (launch.rank, launch.world_size, launch.local_world_size) == (0, 1, 1)
    assert "1 of the job's 4 tasks" in launch.notice
    assert "srun --overlap --ntasks=4 python -m cobo_dist.train" in launch.notice
    step = {**shell, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}
    launch = read_launch({**step, "SLURM_STEP_TASKS_PER_NODE": "4"})
    assert (launch.rank, launch.world_size, launch.notice) == (3, 4, "")
    smaller = {**step, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert read_launch(smaller).world_size == 2, "the step's tasks, not the job's"


def test_srun_without_a_node_list_asks_for_the_address() -> None:
    env = {name: value for name, value in SRUN.items() if name != "SLURM_JOB_NODELIST"}
    assert "MASTER_ADDR" in refusal(env)
    assert read_launch({**env, "MASTER_ADDR": "head"}).address == "head"


def test_a_batch_script_with_several_tasks_but_one_python_is_refused() -> None:
    message = refusal(
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_TASK_PID": "99"}
    )
    assert "4 tasks" in message
    assert "srun" in message


def test_a_batch_script_with_one_task_is_one_rank() -> None:
    env = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_TASK_PID": "99"}
    launch = read_launch(env)
    assert (launch.launcher, launch.world_size) == ("python", 1)


# -- mpirun --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "started_by",
    [
        {"OMPI_COMM_WORLD_RANK": "2"},
        {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2"},
        {"PMIX_RANK": "2"},
    ],
)
def test_mpirun_is_asked_through_mpi(
    monkeypatch: pytest.MonkeyPatch, started_by: dict[str, str]
) -> None:
    answer = Launch("mpirun", 2, 4, 2, 4, "127.0.0.1", 5)
    monkeypatch.setattr(launching, "_from_mpirun", lambda: answer)
    assert read_launch(started_by) == answer


@pytest.mark.parametrize(
    "started_by",
    [
        {"OMPI_COMM_WORLD_RANK": "2"},
        {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"},
    ],
    ids=["openmpi", "mpich"],
)
def test_mpirun_inside_slurm_is_mpirun(
    monkeypatch: pytest.MonkeyPatch, started_by: dict[str, str]
) -> None:
    """On other nodes, mpirun starts one helper a node with srun; its ranks all inherit the helper's
    SLURM_PROCID, so SLURM's numbers would give several ranks the same number.
    """
    answer = Launch("mpirun", 2, 4, 2, 4, "127.0.0.1", 5)
    monkeypatch.setattr(launching, "_from_mpirun", lambda: answer)
    helper = {**SRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    assert read_launch({**helper, **started_by}) == dataclasses.replace(answer, batch_job="4711")


# -- devices -------------------------------------------------------------------------------------------


def rank_of(local_rank: int, local_world_size: int) -> Launch:
    return Launch("torchrun", local_rank, local_world_size, local_rank, local_world_size, "h", 1)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, masked: bool = False) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if masked:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a1e")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def device_refusal(wanted: str, backend: str, launch: Launch) -> str:
    with pytest.raises(ConfigError) as caught:
        choose_device(wanted, backend, launch)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


@pytest.mark.parametrize("count", [0, 4])
def test_cpu(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    gpus(monkeypatch, count)
    assert choose_device("cpu", "auto", rank_of(1, 2)) == torch.device("cpu")
    assert choose_device("auto", "mpi", rank_of(1, 2)) == torch.device("cpu")
    assert bool(why_cpu("auto", "mpi", rank_of(1, 2))) == (count > 0)
    assert not why_cpu("cpu", "auto", rank_of(1, 2)), "as asked"


def test_auto_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert choose_device("auto", "auto", rank_of(1, 2)) == torch.device("cpu")
    gpus(monkeypatch, 2)
    assert choose_device("auto", "auto", rank_of(1, 2)) == torch.device("cuda", 1)


TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
UNSUPPORTED = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? Error 803: system has unsupported display "
    "driver / cuda driver combination"
)


@pytest.mark.parametrize(
    ("cuda", "says", "visible", "words"),
    [
        (None, "", None, ["is a build for the CPU", "install a build for CUDA"]),
        (
            "13.0",
            TOO_OLD,
            None,
            ["too old (found version 11040);", "update the driver", "CUDA 13.0"],
        ),
        ("13.0", UNSUPPORTED, "0", ["GPU: Error 803: system has unsupported", "update the driver"]),
        ("13.0", "Found no NVIDIA driver on your system. Please", None, ["--gpus all", "--nv"]),
        ("13.0", "No CUDA GPUs are available", "NoDevFiles", ["CUDA_VISIBLE_DEVICES=NoDevFiles"]),
        ("13.0", "No CUDA GPUs are available", None, ["ask the scheduler for a GPU"]),
    ],
)
@pytest.mark.parametrize("sign", ["nvidia-smi", "/proc/driver/nvidia"])
def test_a_gpu_that_torch_cannot_use_is_explained(
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    says: str,
    visible: str | None,
    words: list[str],
    sign: str,
) -> None:
    def init() -> None:
        if says:
            raise RuntimeError(says)

    gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(devices, "Path", lambda name: Path("/" if name == sign else "/none"))
    monkeypatch.setattr(devices.shutil, "which", lambda name: name if name == sign else None)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_device("auto", "auto", rank_of(0, 1)) == torch.device("cpu")
    for text in (
        why_cpu("auto", "auto", rank_of(0, 1)),
        device_refusal("cuda", "auto", rank_of(0, 1)),
    ):
        assert all(word in text for word in [*words, f"this host has {sign}, but torch"]), text
        assert text.splitlines() == [text]
    assert not why_cpu("cpu", "auto", rank_of(0, 1)), "as asked"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert not why_cpu("auto", "auto", rank_of(0, 1))


def test_a_host_without_a_gpu_explains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    monkeypatch.setattr(devices, "Path", lambda name: Path("/none"))
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert not why_cpu("auto", "auto", rank_of(0, 1))


@pytest.mark.parametrize(
    "name", ["gpu", "mps", "meta", "cuda:x", "cuda:-1", "", "CPU", "cpu:7", "0"]
)
def test_a_name_that_is_no_device_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gpus(monkeypatch, 2)
    message = device_refusal(name, "auto", rank_of(0, 1))
    assert f"run.device={name!r}" in message
    assert "auto, cpu, cuda or cuda:N" in message


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_without_cuda_is_refused_by_this_host(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gpus(monkeypatch, 0)
    message = device_refusal(name, "auto", rank_of(0, 1))
    assert f"run.device={name}" in message
    assert "run.device=cpu" in message
    with pytest.raises(HostConfigError):
        choose_device(name, "auto", rank_of(0, 1))


def test_the_local_rank_picks_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    chosen = [choose_device("cuda", "nccl", rank_of(rank, 4)).index for rank in range(4)]
    assert chosen == [0, 1, 2, 3]


def test_a_launcher_that_shows_one_gpu_to_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    srun = dataclasses.replace(rank_of(3, 4), launcher="srun")
    assert choose_device("cuda", "auto", srun) == torch.device("cuda", 0)
    assert choose_device("auto", "auto", srun) == torch.device("cuda", 0)
    gpus(monkeypatch, 1, masked=True)  # such as by a script around each rank of torchrun or mpirun
    assert choose_device("cuda", "auto", rank_of(3, 4)) == torch.device("cuda", 0)
    assert choose_device("auto", "auto", rank_of(3, 4)) == torch.device("cuda", 0)


def test_auto_takes_the_cpu_where_ranks_would_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    assert choose_device("auto", "auto", rank_of(3, 4)) == torch.device("cpu")
    why = why_cpu("auto", "auto", rank_of(3, 4))
    assert "4 ranks on this host but 1 GPU(s)" in why
    assert "run.device=cuda comm.backend=gloo" in why
    assert choose_device("cuda", "gloo", rank_of(3, 4)) == torch.device("cuda", 0), "as it advises"
    assert choose_device("auto", "auto", rank_of(0, 1)) == torch.device("cuda", 0)
    assert not why_cpu("auto", "auto", rank_of(0, 1))
    assert "4 ranks on this host but 1 GPUs" in device_refusal("cuda", "auto", rank_of(3, 4))


def test_more_ranks_than_gpus_are_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, 2)
    for rank in range(3):
        message = device_refusal("cuda", "auto", rank_of(rank, 3))
        assert "3 ranks on this host but 2 GPUs" in message
        assert "at most 2 ranks" in message


def test_a_numbered_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert choose_device("cuda:1", "auto", rank_of(0, 1)) == torch.device("cuda", 1)
    assert "cuda:2" in device_refusal("cuda:2", "auto", rank_of(0, 1))
    assert "2 GPUs" in device_refusal("cuda:2", "auto", rank_of(0, 1))


def test_one_numbered_gpu_for_two_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL does not let two ranks share a GPU."""
    gpus(monkeypatch, 2)
    message = device_refusal("cuda:1", "auto", rank_of(0, 2))
    assert "cuda:1" in message
    assert "2 ranks" in message
    assert "comm.backend=gloo" in message
    assert choose_device("cuda:1", "gloo", rank_of(0, 2)) == torch.device("cuda", 1), (
        "as it advises"
    )


def test_a_backend_that_does_not_fit_the_device_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, 0)
    message = device_refusal("cpu", "nccl", rank_of(0, 1))
    assert "comm.backend=nccl" in message
    assert "run.device" in message
    assert "comm.backend=nccl" in device_refusal("auto", "nccl", rank_of(0, 1))


def test_gloo_carries_models_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    cuda = choose_device("cuda", "gloo", rank_of(1, 2))
    assert cuda == torch.device("cuda", 1)
    assert wire_device(cuda, "gloo") == torch.device("cpu")
    assert wire_device(cuda, "auto") == cuda


def test_too_few_open_files_for_the_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the ranks connect: gloo and the store often hide why they fail. One rank a host speaks."""
    monkeypatch.setattr(launching, "open_files_limit", lambda: 40)
    check_open_files(rank_of(0, 5))
    with pytest.raises(HostConfigError, match=r"`ulimit -n` .* 40 files .* 6 rank\(s\) .* 42;"):
        check_open_files(rank_of(0, 6))
    with pytest.raises(ConfigError) as caught:
        check_open_files(rank_of(1, 6))
    assert type(caught.value) is ConfigError
