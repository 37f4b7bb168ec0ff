"""Submit one training to SLURM, with config and code frozen as they are now."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Read the config with the code that is frozen: beside this folder, or where cobo_dist is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "slurm")]

from partitions import refuse_too_long  # noqa: E402

import cobo_dist  # noqa: E402
from cobo_dist.comm.startup.launch_env import read_launch  # noqa: E402
from cobo_dist.config import Config, load_config  # noqa: E402
from cobo_dist.errors import EXIT_DONE, EXIT_REFUSED, ConfigError  # noqa: E402
from cobo_dist.plugins import is_path  # noqa: E402
from cobo_dist.storage.files import MAX_CONFIG_BYTES, read_file  # noqa: E402
from cobo_dist.terminal import safe_terminal  # noqa: E402
from cobo_dist.training.preparation import refuse_unusable_folder  # noqa: E402
from containers import container_variables  # noqa: E402

PACKAGE = Path(cobo_dist.__file__).resolve().parent
USAGE = (
    "python slurm/submit.py [--launcher=srun|torchrun] [--container=IMAGE] [--dry-run] "
    "[--FLAG=VALUE for sbatch ...] [--config FILE.yaml] [key.path=value ...]"
)
ABOUT = f"""\
{USAGE}

Submit one training to SLURM. Config and code are frozen now: edits made while the job waits do not reach it.
Written into the run folder:

  jobs/001/config.yaml     the resolved config, with absolute paths
  jobs/001/code/           the package, and its git revision in REVISION
  jobs/001/job.sbatch      slurm/train.sbatch or slurm/train_torchrun.sbatch with your flags
  jobs/001/submitted.json  job id, revision, what was changed since, the command
  logs/                    the job's log and one of each rank

  --launcher=srun      srun starts every rank (default); torchrun: srun starts one torchrun a node
  --container=IMAGE    python runs in this image: a file.sif by `apptainer exec`; a file.sqsh or a name by
                       srun's --container-image (plug-in pyxis). It sees the run folder and the config's paths
  --dry-run            print the job script; write and submit nothing
  --FLAG=VALUE         any long option of sbatch: --nodes=2 --ntasks-per-node=4 --gpus-per-node=4
                       --cpus-per-task=8 --time=4:00:00 --partition=gpu --account=me ...

COBO_PYTHON, COBO_CONTAINER, COBO_IMAGE, MASTER_ADDR and RANKS are taken from the environment, as the job
scripts say; without COBO_PYTHON and a container the job uses the python that runs this.

exit codes: 0 submitted; 2 refused, with one line why; nothing is left behind then

example:
  python slurm/submit.py --nodes=2 --ntasks-per-node=4 --time=4:00:00 \\
      --config configs/quickstart.yaml run.dir=runs/first run.seed=1"""

SCRIPTS = {"srun": "train.sbatch", "torchrun": "train_torchrun.sbatch"}
PATHS = (
    *("run.dir", "data.root", "data.file", "data.text_dir", "task.file", "model.gguf"),
    *("task.source.file", "task.source.folder", "task.source.root", "task.partition.file"),
    *("membership.file", "participation.trace", "clock.trace"),
)
PATHS_OR_NAMES = (
    *("run.resume", "run.init_from", "model.path", "model.tokenizer", "model.weights"),
    *("task.source.path", "task.source.tokenizer"),
)
"""Keys that hold a path; and those that may hold one: where a file or folder of that name is found."""

_REFUSED = {
    "array": "a run folder holds one run; slurm/sweep.sbatch runs a grid or several seeds as an array",
    "chdir": "the job runs in the frozen code; paths in the config are absolute",
    "wrap": "the job script is slurm/train.sbatch",
    "parsable": "the job id is printed anyway",
    "container-image": "the script itself runs outside; --container=IMAGE starts python in an image",
}
_CONTAINERS = ("COBO_CONTAINER", "COBO_IMAGE")
_PASSED_ON = (*_CONTAINERS, "COBO_MOUNTS", "MASTER_ADDR", "MASTER_PORT", "RANKS")


@dataclass(frozen=True)
class Request:
    """The arguments, sorted; `flags` are sbatch's, by name, None where they have no value."""

    config: str | None
    settings: list[str]
    flags: dict[str, str | None]
    launcher: str
    dry_run: bool
    container: str = ""

    @property
    def gpus(self) -> bool:
        """Whether the job asks for GPUs."""
        return any(name.startswith(("gpu", "gres")) for name in self.flags)


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Submit as the command line says; return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(ABOUT)
        return EXIT_DONE
    try:
        request = read_request(arguments)
        config = with_absolute_paths(load_config(request.config, request.settings))
        run = config.run_dir
        folder = run / "jobs" / f"{1 + max(map(int, _earlier(run)), default=0):03d}"
        flags = sbatch_flags(request, folder, run)
        env = dict(os.environ)
        if request.container:
            paths = [run, *paths_of(config)]
            inside = container_variables(request.container, paths, request.gpus)
            env = {name: value for name, value in env.items() if name not in _CONTAINERS} | inside
        script = job_script(request.launcher, flags, folder, env)
        refuse_too_long(*_time_and_partition(flags, script, os.environ))
        if request.dry_run:
            print(script)
            print(f"--dry-run: nothing was written; this would be {folder / 'job.sbatch'}")
            return EXIT_DONE
        refuse_unusable_folder(config, read_launch({}))
        _refuse_second_job(run)
        submit(config, folder, script, flags, arguments)
        return EXIT_DONE
    except ConfigError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_REFUSED
    except OSError as error:
        print(f"error: {error.filename or 'files'}: {error.strerror}", file=sys.stderr)
        return EXIT_REFUSED


# -- arguments ----------------------------------------------------------------------------------------


def read_request(arguments: Sequence[str]) -> Request:
    """Sort the arguments: ours, sbatch's, the training's.

    Raises:
        ConfigError: an unknown argument, or an option of sbatch that does not go with this.
    """
    config, launcher, container, dry_run = None, "srun", "", False
    settings: list[str] = []
    flags: dict[str, str | None] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name == "--config":
            config = value if equals else next(rest, "")
        elif name == "--launcher":
            launcher = value if equals else next(rest, "")
        elif name == "--container":
            container = value if equals else next(rest, "")
            if not container:
                raise ConfigError("--container is empty; give an image, or leave it out")
        elif argument == "--dry-run":
            dry_run = True
        elif re.fullmatch(r"--[a-z][a-z-]*", name):
            if why := _REFUSED.get(name[2:]):
                raise ConfigError(f"{argument} is not for submit.py: {why}")
            if not value and (equals or name in ("--time", "--partition")):
                raise ConfigError(f"{argument} has no value; write {name}=VALUE, or leave it out")
            flags[name[2:]] = value if equals else None
        elif argument.startswith("-"):
            raise ConfigError(
                f"argument {argument!r} is not understood; write options of sbatch in full, as "
                "--nodes=2; see --help"
            )
        elif not equals:
            raise ConfigError(
                f"argument {argument!r} is not understood; write key.path=value for the training "
                "and --flag=value, with =, for sbatch"
            )
        else:
            settings.append(argument)
    if launcher not in SCRIPTS:
        raise ConfigError(f"--launcher={launcher} is none of {', '.join(SCRIPTS)}")
    if config == "":
        raise ConfigError("--config is empty; give the path of a YAML file")
    return Request(config, settings, flags, launcher, dry_run, container)


def with_absolute_paths(config: Config) -> Config:
    """Return the config with absolute paths, since the job runs in another folder."""
    for key in (*PATHS, *PATHS_OR_NAMES):
        *groups, name = key.split(".")
        parts = [config]
        for group in groups:
            parts.append(getattr(parts[-1], group, None))  # another task may not have the group
        given = str(config.run_dir) if key == "run.dir" else getattr(parts[-1], name, "")
        path = Path(given).expanduser()
        if not given or (key in PATHS_OR_NAMES and not path.exists()):
            continue
        if groups == ["data"] and name not in config.task.data_keys:  # refused, unless a default
            continue
        changed = parts[-1].model_copy(update={name: str(path.absolute())})
        for group, part in zip(reversed(groups), reversed(parts[:-1]), strict=True):
            changed = part.model_copy(update={group: changed})
        config = changed
    plugins = [
        str(Path(one).expanduser().absolute()) if is_path(one) else one for one in config.plugins
    ]
    return config.model_copy(update={"plugins": tuple(plugins)})


def paths_of(config: Config) -> list[Path]:
    """Return the files and folders that a config with absolute paths names."""
    found = list(config.plugins)
    for key in (*PATHS, *PATHS_OR_NAMES):
        value: object = config
        for name in key.split("."):
            value = getattr(value, name, None)  # another task may not have the key
        found.append(value if isinstance(value, str) else "")
    return [path for path in map(Path, found) if path.is_absolute() and path.exists()]


# -- submission ---------------------------------------------------------------------------------------


def sbatch_flags(request: Request, folder: Path, run: Path) -> dict[str, str | None]:
    """Return the flags of the request, and those that every job has."""
    flags: dict[str, str | None] = {"job-name": f"cobo-{run.name}", **request.flags}
    flags |= {"chdir": str(folder / "code")}
    flags.setdefault("output", f"{str(run).replace('%', '%%')}/logs/job_%j.log")
    return flags


def _time_and_partition(
    flags: Mapping[str, str | None], script: str, env: Mapping[str, str]
) -> tuple[str, str]:
    """Return --time and --partition as sbatch takes them: first flags, then environment, then script."""
    default = re.findall(r"^#SBATCH --time=(\S+)", script, re.MULTILINE)[-1]
    time = flags.get("time") or env.get("SBATCH_TIMELIMIT") or default
    return time, flags.get("partition") or env.get("SBATCH_PARTITION") or ""


def job_script(
    launcher: str, flags: Mapping[str, str | None], folder: Path, env: Mapping[str, str]
) -> str:
    """Return the job script: the launcher's, with the flags, environment and config written into it."""
    exports = {name: env[name] for name in _PASSED_ON if env.get(name)}
    if env.get("COBO_PYTHON") or not exports.keys() & set(_CONTAINERS):
        exports["COBO_PYTHON"] = env.get("COBO_PYTHON") or sys.executable
    lines = (ROOT / "slurm" / SCRIPTS[launcher]).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _flag_of(line) not in flags]
    last = max(k for k, line in enumerate(kept) if line.startswith("#SBATCH"))
    added = [
        f"#SBATCH --{name}" + ("" if value is None else f"={_quoted(value)}")
        for name, value in flags.items()
    ]
    code = shlex.quote(str(folder / "code"))
    settled = [
        f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        f"set -- --config {shlex.quote(str(folder / 'config.yaml'))}",
    ]
    return "\n".join([*kept[: last + 1], *added, *settled, *kept[last + 1 :]]) + "\n"


def _flag_of(line: str) -> str:
    found = re.match(r"#SBATCH --([a-z-]+)", line)
    return found[1] if found else ""


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(r"\s", value) else value


def _earlier(run: Path) -> Iterator[str]:
    """Return the numbers of the run folder's earlier jobs."""
    return (one.name for one in (run / "jobs").glob("[0-9]*") if one.name.isdecimal())


def _refuse_second_job(run: Path) -> None:
    """Refuse while another job uses the run folder: each would take the other's files for its own."""
    for number in _earlier(run):
        try:
            content = read_file(run / "jobs" / number / "submitted.json", MAX_CONFIG_BYTES)
            job = int(json.loads(content)["job"])
        except (OSError, ValueError, OverflowError, KeyError, TypeError, RecursionError):
            continue
        state = _call(["squeue", "--noheader", f"--jobs={job}", "--format=%T"])[1]
        if state:
            raise ConfigError(
                f"job {job} in run.dir={run} is {state.split()[0].lower()}; wait for it, end it with "
                f"scancel {job}, or name another run.dir"
            )


def submit(
    config: Config,
    folder: Path,
    script: str,
    flags: Mapping[str, str | None],
    arguments: Sequence[str],
) -> str:
    """Freeze config and code into the folder, submit its script, print the job; return its id.

    Raises:
        ConfigError: sbatch refuses, or is not there; the folder is removed again.
        OSError: the folder cannot be written.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "there is no sbatch on the PATH; submit where SLURM's commands are installed"
        )
    run = config.run_dir
    new = [part for part in (folder, run / "logs", run / "jobs", run) if not part.exists()]
    revision, changed = _revision()
    try:
        folder.mkdir(parents=True)
        (run / "logs").mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        (folder / "job.sbatch").write_text(script, encoding="utf-8")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, folder / "code" / "cobo_dist", ignore=ignored)
        named = f"{revision}{' with changes' if changed else ''}"
        (folder / "code" / "REVISION").write_text(f"{named}\n", encoding="utf-8")
        # Variables such as SBATCH_TIMELIMIT win over lines of the script, and the command line over both.
        # A flag without a value might take what follows for one.
        given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        command = ["sbatch", "--parsable", *given, str(folder / "job.sbatch")]
        code, said, complaint = _call(command)
        if code:
            raise ConfigError(f"sbatch refuses: {complaint or f'exit code {code}'}")
    except BaseException:
        for part in new:  # the job's folder, and folders around it that are empty
            shutil.rmtree(folder, ignore_errors=True)
            if part.is_dir() and not any(part.iterdir()):
                part.rmdir()
        raise
    job = said.split(";")[0]
    record = {
        "job": int(job),
        "revision": revision,
        "changed_files": changed,
        "command": f"python slurm/submit.py {shlex.join(arguments)}",
    }
    (folder / "submitted.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"job         {job}")
    print(f"run folder  {run}")
    print(f"frozen in   {folder}, revision {named}")
    print(f"follow      tail -F {run / 'logs'}/job_{job}*.log")
    print(f"            squeue -j {job};  scancel {job} ends it with a checkpoint, and")
    print("            the same command with run.resume=auto goes on from there")
    return job


def _revision() -> tuple[str, list[str]]:
    """Return the checkout's revision, and the package's files that differ from it.

    An installed package has its version in place of a revision.
    """
    git = ["git", "-C", str(PACKAGE.parent)]
    # The second revision exists only where the package belongs to the checkout.
    code, found, _ = _call([*git, "rev-parse", "HEAD", "HEAD:./cobo_dist/__init__.py"])
    if code:
        return cobo_dist.__version__, []
    revision = found.split()[0]
    status = _call([*git, "status", "--porcelain", "--", "cobo_dist"])[1]
    return revision, [line.split(maxsplit=1)[1] for line in status.splitlines()]


def _call(command: Sequence[str]) -> tuple[int, str, str]:
    """Return a command's exit code, output and last line on standard error; 127 if it does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        return 127, "", ""
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]} did not answer within 120 s"
    complaint = done.stderr.strip().splitlines()[-1:]
    return done.returncode, done.stdout.strip(), "".join(complaint)


if __name__ == "__main__":
    sys.exit(main())
