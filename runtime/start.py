"""How ``pycontain-runtime`` starts: its modules out of one file, where that is newer than none of them.

Finding, opening and checking twenty modules one by one costs 2.7 ms of a start of 15; reading their code objects from
one file costs a quarter of that. The file is a cache beside the interpreter's own (``__pycache__``), for one version of
Python, and is trusted as those are. Where it is missing or stale the modules are imported as ever and the file is
written anew; where it cannot be written nothing is lost but the time.
"""

from __future__ import annotations

import _frozen_importlib
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import NoReturn

    Entry = tuple[str, int, bool, bytes]  # source, its mtime in ns, whether it is a package, its code object marshalled

HERE = __file__.rpartition("/")[0]
CACHE = f"{HERE}/__pycache__/start.{sys.implementation.cache_tag}"
# What ``pycontain-runtime run`` imports; a test holds this list against what it really does.
MODULES = (
    "errors", "main", "lifecycle", "paths", "jsontext", "spec", "namespaces", "channel", "plan", "plan.ops",
    "plan.plan", "plan.identity", "plan.mounts", "kernel", "kernel.cgroup", "kernel.host", "kernel.cgroup_v1", "state",
)  # fmt: skip


class Finder:
    """An importer (``sys.meta_path``) of code objects that are in memory."""

    entries: dict[str, Entry] = {}

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> _frozen_importlib.ModuleSpec | None:
        entry = cls.entries.get(name)
        if entry is None:
            return None
        spec = _frozen_importlib.ModuleSpec(name, cls, origin=entry[0], is_package=entry[2])  # type: ignore[arg-type]
        spec.has_location = True
        if entry[2]:
            spec.submodule_search_locations = [entry[0].rpartition("/")[0]]
        return spec

    @staticmethod
    def create_module(spec: object) -> None:
        return None

    @classmethod
    def exec_module(cls, module: ModuleType) -> None:
        exec(marshal.loads(cls.entries.pop(module.__name__)[3]), module.__dict__)  # noqa: S102, S302


def read() -> dict[str, Entry]:
    """The cache, or {} where there is none, or one that is older than a source."""
    try:
        with open(CACHE, "rb", buffering=0) as file:
            entries: dict[str, Entry] = marshal.loads(file.readall())  # noqa: S302
        for source, mtime, _, _ in entries.values():
            if posix.stat(source).st_mtime_ns != mtime:
                return {}
    except (OSError, ValueError, EOFError, TypeError):
        return {}
    return entries


def write() -> None:
    """Make the cache from the modules' own; atomic, and nothing where the directory is not ours to write."""
    from importlib import import_module

    if not posix.access(f"{HERE}/__pycache__", posix.W_OK):
        return
    entries = {}
    for short in MODULES:
        module = import_module(f"pycontain.runtime.{short}")
        spec = module.__spec__
        assert spec is not None and spec.origin is not None
        mtime = posix.stat(spec.origin).st_mtime_ns
        with open(spec.origin, "rb", buffering=0) as file:
            # Without docstrings, which nobody reads here: 0.4 ms less to load.
            code = compile(file.readall(), spec.origin, "exec", dont_inherit=True, optimize=2)
        package = spec.submodule_search_locations is not None
        entries[module.__name__] = (spec.origin, mtime, package, marshal.dumps(code))
    temporary = f"{CACHE}.{posix.getpid()}"
    try:
        with open(temporary, "wb") as file:
            marshal.dump(entries, file)
        posix.rename(temporary, CACHE)
    except OSError:
        return


def main() -> NoReturn:
    Finder.entries = read()
    if Finder.entries:
        sys.meta_path.insert(0, Finder)
    else:
        write()
    from pycontain.runtime.main import main

    main()
