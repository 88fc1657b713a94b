"""How ``pycontain-runtime`` starts: its modules out of one file, where that is older than none of them.

Finding, opening and checking twenty modules one by one costs 2.7 ms of a start of 15; taking their code out of
one file a quarter of that, and the steps of the import system, 0.03 ms a module, fall away as well. The file is a cache
beside the interpreter's own (``__pycache__``), for one version of Python, and is trusted as those are. Where it is
missing or stale the modules are imported as ever and the file is written anew; where it cannot be written nothing is
lost but the time. The launcher reads it, and runs this module's code out of it too.
"""

from __future__ import annotations

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import NoReturn

    Entry = tuple[str, str, int, bool, bytes]  # name, source, its mtime in ns, whether a package, its code marshalled

# What ``pycontain-runtime run`` imports, each after what it needs; a test holds this list against what it really does.
MODULES = (
    "pycontain", "pycontain.runtime", "pycontain.runtime.errors", "pycontain.runtime.main", "pycontain.runtime.channel",
    "pycontain.runtime.plan", "pycontain.runtime.plan.ops", "pycontain.runtime.namespaces", "pycontain.runtime.spec",
    "pycontain.runtime.jsontext", "pycontain.runtime.kernel", "pycontain.runtime.paths",
    "pycontain.runtime.kernel.cgroup", "pycontain.runtime.kernel.host", "pycontain.runtime.plan.mounts",
    "pycontain.runtime.plan.identity", "pycontain.runtime.plan.plan", "pycontain.runtime.state",
    "pycontain.runtime.creation", "pycontain.runtime.kernel.cgroup_v1", "pycontain.runtime.kernel.cgroup_v2",
)  # fmt: skip
# Only one of these is wanted on any host, and that is found out later.
_LATER = MODULES[-2:]


class Finder:
    """An importer (``sys.meta_path``) of code objects that are in memory."""

    entries: dict[str, Entry] = {}

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return _spec(cls.entries[name]) if name in cls.entries else None

    @staticmethod
    def create_module(spec: object) -> None:
        return None

    @classmethod
    def exec_module(cls, module: ModuleType) -> None:
        exec(marshal.loads(cls.entries.pop(module.__name__)[4]), module.__dict__)  # noqa: S102, S302


def _spec(entry: Entry) -> ModuleSpec:
    name, source, _, package, _ = entry
    spec = ModuleSpec(name, Finder, origin=source, is_package=package)  # type: ignore[arg-type]
    spec.has_location = True
    if package:
        spec.submodule_search_locations = [source.rpartition("/")[0]]
    return spec


def _is_fresh(entries: list[Entry]) -> bool:
    try:
        return all(posix.stat(source).st_mtime_ns == mtime for _, source, mtime, _, _ in entries)
    except OSError:
        return False


def _make(entry: Entry) -> None:
    """What an import does, less its looking for things."""
    name, source, _, package, code = entry
    spec = _spec(entry)
    module = type(sys)(name)
    names = module.__dict__
    parent, _, last = name.rpartition(".")
    names.update(__file__=source, __package__=spec.parent, __spec__=spec)
    if package:
        names["__path__"] = spec.submodule_search_locations
    sys.modules[name] = module
    exec(marshal.loads(code), names)  # noqa: S102, S302
    if parent:
        setattr(sys.modules[parent], last, module)


def write(cache: str) -> None:
    """Make the cache from the modules' own; atomic, and nothing where the directory is not ours to write."""
    import ast
    from importlib import import_module

    if not posix.access(cache.rpartition("/")[0], posix.W_OK):
        return
    entries, code = [], None
    for name in (*MODULES, "pycontain.runtime.start"):  # this one last: its code goes in front too
        spec = import_module(name).__spec__
        assert spec is not None and spec.origin is not None
        mtime = posix.stat(spec.origin).st_mtime_ns
        with open(spec.origin, "rb", buffering=0) as file:
            # Without docstrings and annotations, which nobody reads here: 0.5 ms less to load.
            tree = ast.parse(file.readall(), spec.origin)
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                node.annotation = None
            elif isinstance(node, ast.FunctionDef):
                node.returns = None
        code = compile(tree, spec.origin, "exec", dont_inherit=True, optimize=2)
        package = spec.submodule_search_locations is not None
        entries.append((name, spec.origin, mtime, package, marshal.dumps(code)))
    temporary = f"{cache}.{posix.getpid()}"
    try:
        with open(temporary, "wb") as file:
            marshal.dump((code, entries), file)
        posix.rename(temporary, cache)
    except OSError:
        return


def main(cache: str, entries: list[Entry]) -> NoReturn:
    """``entries``: what the launcher has read from ``cache``, or none."""
    if entries and _is_fresh(entries):
        # create and run want all of it, the other verbs less; a word that only looks like one costs 1 ms.
        whole = "run" in sys.argv or "create" in sys.argv
        Finder.entries = {entry[0]: entry for entry in entries}
        sys.meta_path.insert(0, Finder)
        entries.clear()  # what was made is a quarter of a megabyte that nothing needs any more
        for name in MODULES if whole else ():
            if name not in _LATER:
                _make(Finder.entries.pop(name))
    else:
        write(cache)
    from pycontain.runtime.main import main

    main()
