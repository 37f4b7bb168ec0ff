"""How a job starts python in a container: `--container=IMAGE` of slurm/submit.py."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cobo_dist.errors import ConfigError


def container_variables(image: str, paths: Iterable[Path], gpus: bool) -> dict[str, str]:
    """Return the variables of the job scripts that start python in an image.

    A file `.sif` is started by `apptainer exec` (`COBO_CONTAINER`). Any other image is given to srun's
    --container-image (`COBO_IMAGE`), which the plug-in pyxis brings: a file `.sqsh`, or a name in a registry.
    The container sees `paths`: each folder, and the folder of each file, under its own name.

    Raises:
        ConfigError: the image is a file that does not exist, or a path has characters that end a mount.
    """
    is_file = image.endswith((".sif", ".sqsh"))
    if is_file and not Path(image).is_file():
        raise ConfigError(
            f"--container={image} does not exist; build it as docs/CONTAINERS.md shows, or name another image"
        )
    image = str(Path(image).absolute()) if is_file else image
    mounts = _outermost(
        path if path.suffix == "" or path.is_dir() else path.parent for path in paths
    )
    for one in (image, *map(str, mounts)):
        if re.search(r"[\s,]", one) or (one != image and ":" in one):
            raise ConfigError(f"{one!r} has a blank, comma or colon, which ends a mount; rename it")
    if image.endswith(".sif"):
        gpu = ["--nv"] if gpus else []
        binds = ",".join(map(str, mounts))
        return {"COBO_CONTAINER": " ".join(["apptainer exec", *gpu, f"--bind={binds}", image])}
    return {"COBO_IMAGE": image, "COBO_MOUNTS": ",".join(f"{one}:{one}" for one in mounts)}


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Return the folders without those inside another one.

    >>> [str(one) for one in _outermost(map(Path, ("/runs/a/jobs", "/data", "/runs/a", "/data")))]
    ['/data', '/runs/a']
    """
    every = sorted(set(folders))
    return [one for one in every if not any(other in one.parents for other in every)]
