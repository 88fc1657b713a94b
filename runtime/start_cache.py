"""Makes the file that the commands start from, after a change (start.py says what it is for, and what is in it)."""

from __future__ import annotations
import __future__

import ast
import marshal
import posix
from importlib.util import find_spec

from pycontain.runtime import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

    from pycontain.runtime.start import Module, Place

# The folders of either command's modules, by the folder that its cache belongs to.
_ROOMS = {
    "runtime": ("runtime", "runtime/kernel", "runtime/plan"),
    "pycontain": ("", "commands", "engine", "images", "network", "runtime", "runtime/kernel", "runtime/plan"),
}

_ALL = ("pycontain", "pycontain.runtime", "pycontain.runtime.errors", "pycontain.runtime.main")
_STATE = (*_ALL, "pycontain.runtime.paths", "pycontain.runtime.jsontext", "pycontain.runtime.state")
_HIERARCHIES = (
    "pycontain.runtime.kernel", "pycontain.runtime.kernel.files", "pycontain.runtime.kernel.hierarchies",
)  # fmt: skip
_DIALOGUE = ("pycontain.runtime.channel", "pycontain.runtime.sockets", "pycontain.runtime.dialogue")
# What ``pycontain-runtime create`` imports, each after what it needs.
MODULES = (
    *_STATE, *_HIERARCHIES, "pycontain.runtime.kernel.cgroup", *_DIALOGUE, "pycontain.runtime.namespaces",
    "pycontain.runtime.spec", "pycontain.runtime.plan",
    "pycontain.runtime.plan.ops", "pycontain.runtime.kernel.host", "pycontain.runtime.plan.mounts",
    "pycontain.runtime.plan.rights", "pycontain.runtime.plan.plan", "pycontain.runtime.creation",
    "pycontain.runtime.making",
)  # fmt: skip
# The modules of the verbs that an engine calls for every container, but for those that not every host or container
# wants; a test holds these lists against what is really imported. A word that only looks like a verb costs 1 ms.
VERBS = {
    "run": (*MODULES, "pycontain.runtime.starting", "pycontain.runtime.ending"),
    "create": MODULES,
    "start": (*_STATE, *_DIALOGUE, "pycontain.runtime.starting"),
    "delete": (*_STATE, *_HIERARCHIES, "pycontain.runtime.ending"),
    "exec": (
        *MODULES, "pycontain.runtime.control", "pycontain.runtime.starting", "pycontain.runtime.ending",
        "pycontain.runtime.lifecycle", "pycontain.runtime.verbs",
    ),
}


def write(cache: str) -> None:
    """Make the cache from the modules' own; atomic, and nothing where the directory is not ours to write."""
    if not posix.access(cache.rpartition("/")[0], posix.W_OK):
        return
    start._cache = cache  # which the functions there go by; this process has no other
    pieces = [posix.urandom(8)]
    modules: dict[str, Module] = {}
    codes: dict[str, CodeType] = {}

    def append(value: Any) -> Place:
        pieces.append(marshal.dumps(value))
        return sum(map(len, pieces[:-1])), len(pieces[-1])

    for name in ("pycontain", *_names()):
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        modules[name] = (name, posix.stat(spec.origin).st_mtime_ns, spec.submodule_search_locations is not None)
        if spec.origin != start._source(modules[name]):
            return
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
        codes[name] = compile(tree, spec.origin, "exec", flags, dont_inherit=True, optimize=2)
    places = {name: (modules[name], append(code)) for name, code in codes.items()}
    words = VERBS if start._room() == "runtime" else {}
    sets = {names: append(([modules[n] for n in names], [codes[n] for n in names])) for names in set(words.values())}
    verbs = {verb: sets[names] for verb, names in words.items()}
    here = "pycontain.runtime.start"
    place = append((codes[here], (pieces[0], start._top(), modules[here], verbs, append(places))))
    pieces.append(place[1].to_bytes(8, "little"))
    temporary = f"{cache}.{posix.getpid()}"
    try:
        with open(temporary, "wb", buffering=0) as file:
            file.write(b"".join(pieces))
        posix.rename(temporary, cache)
    except OSError:
        return


def _names() -> list[str]:
    """All modules of the command that the cache belongs to."""
    found = []
    for inner in _ROOMS[start._room()]:
        files = sorted(posix.listdir(f"{start._top()}/{inner}"))
        names = (file.partition(".")[0] for file in files if file.endswith(".py"))
        package = f"pycontain.{inner.replace('/', '.')}".rstrip(".")
        found += [package if name == "__init__" else f"{package}.{name}" for name in names if name != "__main__"]
    return found
