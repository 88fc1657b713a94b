"""How the commands start: their modules out of one file, where that is older than none of them.

Finding, opening and checking twenty modules one by one costs 2.7 ms of a start of 15; taking their code out of
one file a quarter of that, and the steps of the import system, 0.03 ms a module, fall away as well. The file is a cache
beside the interpreter's own (``__pycache__``), for one version of Python, and is trusted as those are. Where it is
missing or stale the modules are imported as ever and the file is written anew; where it cannot be written nothing is
lost but the time. The launcher reads it, and runs this module's code out of it too. ``pycontain`` has a file of its
own, of which it takes what is imported, when it is imported.

The file: each module's code by itself, as ``marshal`` has it; then (this module's code, [Entry, ...]), and the size of
that in 8 bytes.
"""

from __future__ import annotations

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, NoReturn

    # name, source, its mtime in ns, whether a package, place and size of its code
    Entry = tuple[str, str, int, bool, int, int]

# What ``pycontain-runtime run`` imports, each after what it needs; a test holds this list against what it really does.
MODULES = (
    "pycontain", "pycontain.runtime", "pycontain.runtime.errors", "pycontain.runtime.main", "pycontain.runtime.channel",
    "pycontain.runtime.paths", "pycontain.runtime.namespaces", "pycontain.runtime.spec", "pycontain.runtime.plan",
    "pycontain.runtime.plan.ops", "pycontain.runtime.jsontext", "pycontain.runtime.kernel",
    "pycontain.runtime.kernel.cgroup", "pycontain.runtime.kernel.host", "pycontain.runtime.plan.mounts",
    "pycontain.runtime.plan.identity", "pycontain.runtime.plan.plan", "pycontain.runtime.state",
    "pycontain.runtime.control", "pycontain.runtime.creation",
    "pycontain.runtime.kernel.cgroup_v1", "pycontain.runtime.kernel.cgroup_v2",
)  # fmt: skip
# Only one of these is wanted on any host, and that is found out later.
_LATER = MODULES[-2:]
# The folders of either command's modules, by the folder that its cache belongs to.
_ROOMS = {
    "runtime": ("runtime", "runtime/kernel", "runtime/plan"),
    "pycontain": ("", "commands", "engine", "images", "network", "runtime", "runtime/kernel", "runtime/plan"),
}


class Finder:
    """An importer (``sys.meta_path``) of what is in the cache."""

    entries: dict[str, Entry] = {}
    cache = ""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        entry = cls.entries.get(name)
        return _spec(entry) if entry else None

    @staticmethod
    def create_module(spec: object) -> None:
        return None

    @classmethod
    def exec_module(cls, module: ModuleType) -> None:
        fd = posix.open(cls.cache, posix.O_RDONLY | posix.O_CLOEXEC)
        exec(_code(fd, cls.entries.pop(module.__name__)), module.__dict__)  # noqa: S102
        posix.close(fd)


def _spec(entry: Entry) -> ModuleSpec:
    name, source, _, package, _, _ = entry
    spec = ModuleSpec(name, Finder, origin=source, is_package=package)  # type: ignore[arg-type]
    spec.has_location = True
    spec.cached = ""  # there is none, and what would look for one may not be there (see embedded)
    if package:
        spec.submodule_search_locations = [source.rpartition("/")[0]]
    return spec


def _is_fresh(cache: str, entries: list[Entry]) -> bool:
    try:
        if entries[-1][1] != f"{_top(cache)}/runtime/start.py":
            return False  # of a tree that was copied, cache and all
        return all(posix.stat(entry[1]).st_mtime_ns == entry[2] for entry in entries)
    except (OSError, ValueError, IndexError):  # a file is gone, or the cache is of another version
        return False


def _code(fd: int, entry: Entry) -> Any:
    return marshal.loads(posix.pread(fd, entry[5], entry[4]))  # noqa: S302


def _make(fd: int, entry: Entry) -> None:
    """What an import does, less its looking for things."""
    name, source, _, package, _, _ = entry
    spec = _spec(entry)
    module = type(sys)(name)
    names = module.__dict__
    parent, _, last = name.rpartition(".")
    names.update(__file__=source, __package__=spec.parent, __spec__=spec)
    if package:
        names["__path__"] = spec.submodule_search_locations
    sys.modules[name] = module
    exec(_code(fd, entry), names)  # noqa: S102
    if parent:
        setattr(sys.modules[parent], last, module)


def write(cache: str) -> None:
    """Make the cache from the modules' own; atomic, and nothing where the directory is not ours to write."""
    import __future__

    import ast
    from importlib import import_module
    from importlib.util import find_spec

    if not posix.access(cache.rpartition("/")[0], posix.W_OK):
        return
    entries: list[Entry] = []
    codes, code, at = [], None, 0
    # This module last: its code goes into the head too.
    for name in (*MODULES, *_rest(cache), "pycontain.runtime.start"):
        spec = import_module(name).__spec__ if name in MODULES else find_spec(name)
        assert spec is not None and spec.origin is not None
        mtime = posix.stat(spec.origin).st_mtime_ns
        with open(spec.origin, "rb", buffering=0) as file:
            # Without docstrings and annotations, which nobody reads here: 0.5 ms less to load.
            tree = ast.parse(file.readall(), spec.origin)
        tree.body = [node for node in tree.body if not isinstance(node, ast.ImportFrom) or node.module != "__future__"]
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                node.annotation = None
            elif isinstance(node, ast.FunctionDef):
                node.returns = None
        flags = __future__.annotations.compiler_flag
        code = compile(tree, spec.origin, "exec", flags, dont_inherit=True, optimize=2)
        package = spec.submodule_search_locations is not None
        codes.append(marshal.dumps(code))
        entries.append((name, spec.origin, mtime, package, at, len(codes[-1])))
        at += len(codes[-1])
    codes.append(marshal.dumps((code, entries)))
    codes.append(len(codes[-1]).to_bytes(8, "little"))
    temporary = f"{cache}.{posix.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.writelines(codes)
        posix.rename(temporary, cache)
    except OSError:
        return


def _rest(cache: str) -> list[str]:
    """The other modules of a command: found in the cache where they are imported."""
    top = _top(cache)
    found = []
    for inner in _ROOMS[_room(cache)]:
        names = (file.partition(".")[0] for file in sorted(posix.listdir(f"{top}/{inner}")) if file.endswith(".py"))
        package = f"pycontain.{inner.replace('/', '.')}".rstrip(".")
        found += [package if name == "__init__" else f"{package}.{name}" for name in names]
    return [name for name in found if name not in MODULES and not name.endswith((".start", ".__main__"))]


def main(cache: str, entries: list[Entry]) -> None:
    """``entries``: what the launcher has read from ``cache``, or none."""
    if _is_fresh(cache, entries):
        _use(cache, entries)
    else:
        from pycontain.runtime.start import write  # the file's: what runs here may be the code of an older one

        write(cache)
    face = "pycontain.runtime.main" if _room(cache) == "runtime" else "pycontain.cli"
    __import__(face, fromlist=["main"]).main()


def _top(cache: str) -> str:
    """The folder of all modules, ``pycontain``."""
    return cache.rpartition("/__pycache__/")[0].removesuffix("/runtime")


def _room(cache: str) -> str:
    """The folder that the cache belongs to."""
    return cache.split("/")[-3]


def _use(cache: str, entries: list[Entry]) -> None:
    # create and run want all of it, the other verbs less; a word that only looks like one costs 1 ms.
    whole = _room(cache) == "runtime" and ("run" in sys.argv or "create" in sys.argv)
    Finder.cache, Finder.entries = cache, {entry[0]: entry for entry in entries}
    sys.meta_path.insert(0, Finder)
    if whole:
        fd = posix.open(cache, posix.O_RDONLY | posix.O_CLOEXEC)
        for name in MODULES:
            if name not in _LATER:
                _make(fd, Finder.entries.pop(name))
        posix.close(fd)


# In the launcher's own interpreter (init/embedded.c), of which only the core is there: no files can be imported, there
# are no standard streams and no codecs but UTF-8, Latin-1 and ASCII.


class Late:
    """The last importer: an extension module by its path, anything else once the interpreter is complete."""

    folder = suffix = ""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = f"{cls.folder}/{name}{cls.suffix}"
        if path is None and posix.access(file, posix.R_OK):
            return ModuleSpec(name, cls, origin=file)  # type: ignore[arg-type]
        _complete()
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path)  # type: ignore[arg-type]
        return next((spec for spec in found if spec), None)

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        import _imp

        return _imp.create_dynamic(spec)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        import _imp

        _imp.exec_dynamic(module)


class Stream:
    """A standard stream for ``print``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        while data:
            data = data[posix.write(self.fd, data) :]

    def flush(self) -> None:
        pass


def _open(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
    if "b" not in mode:
        _complete()  # for its codecs
    import _io

    return _io.open(file, mode, *rest, **more)


def _complete() -> None:
    if Late in sys.meta_path:
        sys.meta_path.remove(Late)
        import _launcher

        _launcher.complete()


def embedded(cache: str, entries: list[Entry], extensions: str, suffix: str) -> NoReturn:
    """``main`` where the launcher has the interpreter in it; its extension modules are ``extensions/NAMEsuffix``."""
    if not _is_fresh(cache, entries):
        import _launcher

        _launcher.ordinary()  # it makes the cache anew
    Late.folder, Late.suffix = extensions, suffix
    sys.meta_path.append(Late)
    sys.stdout, sys.stderr = Stream(1), Stream(2)
    __builtins__["open"] = _open
    _use(cache, entries)
    try:
        from pycontain.runtime.main import main

        main()
    except BaseException:
        _complete()  # for the words of it
        raise
