"""The command `python -m cobo_dist.init`: lay out configs and job scripts in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cobo_dist.cli.parser import CommandParser, program, report_error
from cobo_dist.errors import EXIT_DONE, ConfigError
from cobo_dist.project_files import project_files, project_folder
from cobo_dist.storage.files import replacing
from cobo_dist.terminal import safe_terminal

USAGE = "DIR [--force]"
ABOUT = """\
Lay out configs and job scripts in a folder, to edit there: configs/ (the quickstart and the paper's
experiments), launch/ (torchrun, mpirun) and slurm/ (job scripts, submit.py). A file that is there with other
content is kept, and nothing is written then, unless --force is given."""
EPILOG = """\
exit codes: 0 done; 2 refused, with one line on standard error

examples:
  python -m cobo_dist.init experiments
  cd experiments && python -m cobo_dist.train --config configs/quickstart.yaml"""


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Lay out the files; return 0, or 2 after one line on standard error."""
    parser = CommandParser("init", ABOUT, EPILOG, USAGE)
    parser.add_argument("--force", action="store_true", help="overwrite files that differ")
    try:
        options = parser.read(argv)
        if options is not None:
            folders = parser.paths(options)
            if len(folders) != 1:
                parser.error(f"give one folder, not {' '.join(map(str, folders)) or 'none'}")
            lay_out(folders[0], options.force)
    except ConfigError as refusal:
        return report_error(refusal)
    return EXIT_DONE


def lay_out(folder: Path, force: bool) -> None:
    """Copy the project's files into a folder, and print what was written.

    Raises:
        ConfigError: a file is there with other content and `force` is not given; or the folder cannot be
            written.
    """
    source = project_folder()
    files = project_files(source)
    if not files:
        raise ConfigError(
            f"cobo_dist in {source} has no configs and job scripts; install it again with pip"
        )
    try:
        new = [file for file in files if not _same(source / file, folder / file)]
        changed = [file for file in new if os.path.lexists(folder / file)]
        for file in changed:
            if (folder / file).is_dir():
                raise ConfigError(f"{folder / file} is a folder; remove it, or give another folder")
        if changed and not force:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ConfigError(
                f"{folder / changed[0]}{more} has other content; nothing was written: give another "
                "folder, or --force to overwrite"
            )
        for file in new:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / file) as target:
                target.write((source / file).read_bytes())
            (folder / file).chmod((source / file).stat().st_mode & 0o777)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}; give a folder that can be written"
        ) from None
    print(f"{len(new)} files written to {folder}, {len(files) - len(new)} already there")
    if new:
        print(f"next: cd {folder}; {program('train')} --config configs/quickstart.yaml")


def _same(source: Path, target: Path) -> bool:
    """Return whether the target is a file of the same content."""
    return target.is_file() and target.read_bytes() == source.read_bytes()
