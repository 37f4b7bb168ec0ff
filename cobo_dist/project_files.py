"""The configs and job scripts that `cobo-init` lays out, and where they are.

They are the repository's own `configs/`, `launch/` and `slurm/`. A wheel has a copy of them in
`cobo_dist/project`, which `setup.py` makes. It reads the names from here, so this imports nothing of ours.
"""

from __future__ import annotations

from pathlib import Path

PATTERNS = (
    "configs/**/*.yaml",
    "launch/torchrun.sh",
    "launch/mpirun.sh",
    "slurm/*.sbatch",
    "slurm/*.py",
)


def project_folder() -> Path:
    """Return the folder that has them: in the package, or in a checkout the one around it."""
    package = Path(__file__).resolve().parent
    packaged = package / "project"
    return packaged if packaged.is_dir() else package.parent


def project_files(folder: Path) -> list[Path]:
    """Return the files to lay out, relative to `folder`, in order."""
    return sorted(
        path.relative_to(folder)
        for pattern in PATTERNS
        for path in folder.glob(pattern)
        if path.is_file()
    )
