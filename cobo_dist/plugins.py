"""Loading of plug-ins: modules or Python files that register something, named by the key `plugins`.

Packages that are installed may also name plug-ins, as entry points of the group `cobo_dist.plugins`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from cobo_dist.errors import ConfigError
from cobo_dist.registry import register

ENTRY_POINTS = "cobo_dist.plugins"
COPIES_DIR = "plugins"
"""Folder of a run folder that holds copies of its plug-ins' files."""

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Plugin:
    """A plug-in that is loaded: its name in the config, its file, and the file's SHA-256."""

    name: str
    file: Path
    digest: str

    @property
    def is_file(self) -> bool:
        """Whether it was named by its file and not as a module."""
        return _is_path(self.name)


_loaded: dict[str, Plugin] = {}


def load_plugins(names: Sequence[str], beside: Path | None = None) -> None:
    """Load the plug-ins of a config, and those of installed packages; forget those of another config.

    A plug-in that is loaded as it is now stays. A file that is missing is looked for among the copies beside
    a run's config, in the folder `beside`.

    Raises:
        ConfigError: a plug-in is missing, named twice, or cannot be loaded.
    """
    installed = {point.value: point for point in _installed()}
    for name in [
        name for name in _loaded if name not in installed and not _is_current(name, names)
    ]:
        register.forget(name)
        del _loaded[name]
    for name, point in installed.items():
        if name not in _loaded:
            _load(name, _import_entry_point, point, f"the installed plug-in {point.name}")
    stems: dict[str, str] = {}
    for name in names:
        other = stems.setdefault(Path(name).name, name)
        if other != name or list(names).count(name) > 1:
            raise ConfigError(
                f"plugins names {other} and {name}; give each plug-in once, by a name of its own"
            )
        if name in _loaded:
            continue
        if _is_path(name):
            _load(name, _import_file, _find(name, beside), f"plug-in {name}")
        else:
            _load(name, _import_module, name, f"plug-in {name}")


def loaded_plugins(names: Iterable[str]) -> list[Plugin]:
    """Return the loaded plug-ins of these names."""
    return [_loaded[name] for name in names if name in _loaded]


def place_in_plugin(error: BaseException) -> str:
    """Return where in a plug-in an error was raised, `my.py, line 3`; empty if it was elsewhere."""
    files = {str(plugin.file): plugin.name for plugin in _loaded.values()}
    frames = traceback.extract_tb(error.__traceback__)
    places = [
        f"{files[one.filename]}, line {one.lineno}" for one in frames if one.filename in files
    ]
    return places[-1] if places else ""


def _is_current(name: str, names: Sequence[str]) -> bool:
    """Return whether a loaded plug-in is among `names` and its file is as it was."""
    return name in names and _loaded[name].digest == _digest(_loaded[name].file)


def _load(name: str, load: object, argument: object, what: str) -> None:
    assert callable(load)
    try:
        with register.loading(name):
            module = load(argument)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise ConfigError(
                f"{what}: there is no module {error.name}; install it, add its folder to PYTHONPATH, or give "
                "the path of a .py file"
            ) from None
        raise ConfigError(f"{what} cannot be loaded: {_reason(error)}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} cannot be loaded: {_reason(error)}; mend it") from None
    file = Path(module.__file__ or "").resolve()
    _loaded[name] = Plugin(name, file, _digest(file))


def _reason(error: BaseException) -> str:
    """Return the error and the innermost line of the plug-in that led to it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: {error.msg}"
    frames = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if not one.filename.startswith("<")
        and Path(one.filename).resolve() != Path(__file__).resolve()
    ]
    where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
    said = " ".join(str(error).split())
    return f"{where}{type(error).__name__}" + (f": {said}" if said else "")


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _find(name: str, beside: Path | None) -> Path:
    places = [Path(name).expanduser()]
    if beside is not None:
        places.append(beside / COPIES_DIR / Path(name).name)
    for place in places:
        if place.is_file():
            if place.stat().st_size > MAX_FILE_BYTES:
                raise ConfigError(
                    f"plug-in {name} has more than {MAX_FILE_BYTES:,} bytes; give the path of its code"
                )
            return place.resolve()
    raise ConfigError(
        f"plug-in {name}: there is no such file; give its path from {Path.cwd()}, or the whole path"
    )


def _digest(file: Path) -> str:
    """Return the SHA-256 of a module's file, or of all Python files of a package."""
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    total = hashlib.sha256()
    for one in files:
        total.update(one.read_bytes() if one.is_file() else b"")
    return total.hexdigest()


def _import_file(file: Path) -> object:
    name = f"cobo_dist_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError("it is no Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> object:
    """Import a module, again if it was imported before: what it registered was forgotten."""
    if not all(name.split(".")):
        raise ConfigError(
            f"{name!r} is no module; give its whole name or the path of a .py file, or plugins=[] for none"
        )
    module = sys.modules.get(name)
    return importlib.import_module(name) if module is None else importlib.reload(module)


def _import_entry_point(point: EntryPoint) -> object:
    module, _, _ = point.value.partition(":")
    loaded = importlib.import_module(module)
    point.load()
    return loaded


@cache
def _installed() -> tuple[EntryPoint, ...]:
    return tuple(_unique(entry_points(group=ENTRY_POINTS)))


def _unique(points: Iterable[EntryPoint]) -> Iterator[EntryPoint]:
    """Yield entry points, those that several entries on the path repeat once."""
    yield from {point.value: point for point in points}.values()
