"""Loading of plug-ins: modules or Python files that register something, named by the key `plugins`.

Packages that are installed may also name plug-ins, as entry points of the group `cobo_dist.plugins`.

A plug-in is its file, or its package, with the modules of its folder that it imports. Together they are its
digest, and a run folder keeps copies of them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from cobo_dist.errors import ConfigError, HostConfigError, words_of
from cobo_dist.registry import BUILT_IN, register

ENTRY_POINTS = "cobo_dist.plugins"
COPIES_DIR = "plugins"
"""Folder of a run folder that holds copies of its plug-ins' files."""

RUN_MARK = "metrics.jsonl"
"""A folder with this file is a run folder."""

MAX_FILE_BYTES = 1 << 20
MAX_COPIED_BYTES = 1 << 22
"""Bytes of a plug-in's files, up to which a run folder keeps copies."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in that is loaded: its name in the config, and its files as they were read.

    `files` are their contents by their paths from the plug-in's folder, `modules` the names under which they
    were imported.
    """

    name: str
    folder: Path
    files: Mapping[str, bytes]
    modules: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of names and contents of all files."""
        return _digest(self.files)

    @property
    def copies(self) -> Mapping[str, bytes]:
        """What a run folder keeps of it."""
        total = sum(map(len, self.files.values()))
        return self.files if total <= MAX_COPIED_BYTES else {}

    def is_as_on_disk(self) -> bool:
        """Return whether the files are as they were when they were read."""
        return _digest({name: _content(self.folder / name) for name in self.files}) == self.digest


@dataclass
class _State:
    """What this process has loaded."""

    loaded: dict[str, Plugin] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)  # where a file was found last
    broken: dict[str, str] = field(default_factory=dict)  # installed plug-ins, and why


_state = _State()


def load_plugins(names: Sequence[str], beside: Path | None = None) -> None:
    """Load the plug-ins of a config, and those of installed packages; forget those of another config.

    A plug-in that is loaded as it is now stays. A run's config, in the folder `beside`, means the copies that
    the run kept. Else a file is looked for from the working directory and from the folder of the config.

    Raises:
        ConfigError: a plug-in is missing, named twice, or cannot be loaded.
    """
    installed = {point.value: point for point in _installed()}
    for name, plugin in list(_state.loaded.items()):
        if name not in installed and not (name in names and plugin.is_as_on_disk()):
            forget_plugin(name)
    for value, point in installed.items():
        if value not in _state.loaded and value not in _state.broken:
            try:
                _load(value, point.module, None, f"the installed plug-in {point.name}")
            except ConfigError as error:
                _state.broken[value] = str(error)
    known: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise ConfigError("plugins has an empty name; give modules or paths of .py files")
        other = known.setdefault(Path(name).name, name)
        if other != name or list(names).count(name) > 1:
            raise ConfigError(
                f"plugins names {other} and {name}; give each plug-in once, by a name of its own"
            )
        if name not in _state.loaded:
            _load(name, name, beside, f"plug-in {name}")


def forget_plugin(name: str) -> None:
    """Forget what a plug-in registered, and its modules, so that it can be loaded anew."""
    register.forget(name)
    for module in _state.loaded.pop(name).modules:
        sys.modules.pop(module, None)


def used_plugins(values: Iterable[str], names: Iterable[str]) -> list[Plugin]:
    """Return the plug-ins of these names, and those that registered something that `values` name."""
    wanted, found = set(values), {name: _state.loaded[name] for name in names}
    for kind in register.kinds.values():
        for entry in kind.values():
            if entry.name in wanted and entry.source not in (BUILT_IN, *found):
                plugin = _state.loaded.get(entry.source)
                found[entry.source] = plugin or _of_script(entry.source, entry.target)
    return list(found.values())


def broken_plugins() -> str:
    """Return what to say, where a name is unknown, of installed plug-ins that cannot be loaded."""
    return "".join(f"; {why}" for why in _state.broken.values())


def place_in_plugin(error: BaseException) -> str:
    """Return where in a plug-in an error was raised, `my.py, line 3`; empty if it was elsewhere."""
    files = {
        str(plugin.folder / name): name if "/" in name else plugin.name
        for plugin in _state.loaded.values()
        for name in plugin.files
    }
    frames = traceback.extract_tb(error.__traceback__)
    places = [
        f"{files[one.filename]}, line {one.lineno}" for one in frames if one.filename in files
    ]
    return places[-1] if places else ""


@contextmanager
def blaming_plugins() -> Iterator[None]:
    """Turn an error that a plug-in raises inside into a refusal with its place."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:
        if place := place_in_plugin(error):
            said = words_of(error)
            raise ConfigError(
                f"{place}: {type(error).__name__}: {said}; mend the plug-in"
            ) from error
        raise


# -- loading -----------------------------------------------------------------------------------------


def _load(name: str, target: str, beside: Path | None, what: str) -> None:
    """Import a module or a file, and note what it registers."""
    before, bytecode = dict(sys.modules), sys.dont_write_bytecode
    path = list(sys.path)
    # A file that was edited within a second of its bytecode would be taken for unchanged.
    sys.dont_write_bytecode = True
    try:
        with register.loading(name):
            module = _import_file(target, beside) if is_path(target) else _import(target, beside)
            own = _own_modules(module, before)
            _state.loaded[name] = _plugin(name, module, own)
    except HostConfigError:
        raise
    except ConfigError as error:
        raise HostConfigError(f"{what}: {error}") from None
    except (Exception, SystemExit) as error:
        raise HostConfigError(f"{what} cannot be loaded: {_reason(error)}; mend it") from None
    finally:
        sys.dont_write_bytecode, sys.path[:] = bytecode, path


def _import(name: str, beside: Path | None) -> ModuleType:
    if name.startswith("."):
        raise ConfigError(
            "a module has no leading dot; give its whole name, or the path of a .py file"
        )
    for loaded in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
        del sys.modules[
            loaded
        ]  # what it registered was forgotten, or belongs to whoever imported it
    if _is_run(beside):
        assert beside is not None
        sys.path.insert(0, str(beside / COPIES_DIR))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"there is no module {error.name}; install it, add its folder to PYTHONPATH, or give "
            "the path of a .py file"
        ) from None


def _import_file(path: str, beside: Path | None) -> ModuleType:
    file = _find(path, beside)
    name = f"cobo_dist_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError("it is no Python file; give one that ends in .py")
    sys.path.insert(0, str(file.parent))  # it may import its neighbours
    importlib.invalidate_caches()
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _state.places[path] = file
    return module


def is_path(name: str) -> bool:
    """Return whether a plug-in is named by its file and not as a module."""
    return name.endswith(".py") or "/" in name


def _is_run(folder: Path | None) -> bool:
    return folder is not None and (folder / RUN_MARK).exists() and (folder / COPIES_DIR).is_dir()


def _find(name: str, beside: Path | None) -> Path:
    places = [Path(name).expanduser()]
    if beside is not None:
        places.append(beside / name)
        if _is_run(beside):
            places.insert(0, beside / COPIES_DIR / Path(name).name)
    if name in _state.places:
        places.append(_state.places[name])
    for place in places:
        if place.is_file():
            if place.stat().st_size > MAX_FILE_BYTES:
                raise ConfigError(
                    f"it has more than {MAX_FILE_BYTES:,} bytes; give the path of its code"
                )
            return place.resolve()
    raise ConfigError(f"there is no such file; give its path from {Path.cwd()}, or the whole path")


def _own_modules(module: ModuleType, before: Mapping[str, ModuleType]) -> dict[str, Path]:
    """Return names and files of a plug-in's modules: of its package, or of its folder and imported by it."""
    file = Path(module.__file__ or "").resolve()
    folder = file.parent
    libraries = {Path(sysconfig.get_paths()[key]).resolve() for key in ("purelib", "stdlib")}
    found = {module.__name__: file}
    top = module.__name__.partition(".")[0]
    for name, one in list(sys.modules.items()):
        place = getattr(one, "__file__", None)
        if place is None or name in found:
            continue
        path = Path(place).resolve()
        imported_here = before.get(name) is not one and folder in path.parents
        if name.startswith(f"{top}.") or name == top or (imported_here and folder not in libraries):
            found[name] = path
    return found


def _plugin(name: str, module: ModuleType, own: Mapping[str, Path]) -> Plugin:
    top = own.get(module.__name__.partition(".")[0], Path(module.__file__ or "").resolve())
    paths = set(own.values())
    if top.name == "__init__.py":
        paths |= set(top.parent.rglob("*.py"))
        folder = top.parent.parent
    else:
        folder = Path(module.__file__ or "").resolve().parent
    inside = sorted(path for path in paths if folder in path.parents)
    files = {path.relative_to(folder).as_posix(): _content(path) for path in inside}
    return Plugin(name, folder, files, tuple(own))


def _of_script(source: str, target: Any) -> Plugin:
    """Return what a script or a notebook registers itself, which no config can load."""
    try:
        code = inspect.getsource(target)
    except (OSError, TypeError):
        code = getattr(target, "__qualname__", source)
    return Plugin(source, Path(), {f"{source}.py": code.encode()})


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _digest(files: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(hashlib.sha256(name.encode()).digest())
        total.update(hashlib.sha256(files[name]).digest())
    return total.hexdigest()


def _reason(error: BaseException) -> str:
    """Return the error and the innermost line of the plug-in that led to it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: {error.msg}"
    frames = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if not one.filename.startswith("<") and Path(one.filename).resolve() != Path(__file__)
    ]
    where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
    said = words_of(error)
    return f"{where}{type(error).__name__}" + (f": {said}" if said else "")


@cache
def _installed() -> tuple[EntryPoint, ...]:
    """Return entry points, those that several folders of the path repeat once."""
    return tuple({point.value: point for point in entry_points(group=ENTRY_POINTS)}.values())
