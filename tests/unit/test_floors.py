"""The floors of docs/architecture.md: no import runs upwards, and the start path stays light.

Read from the source by ``ast``, so that an import inside a function or under TYPE_CHECKING counts as well.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROOMS = ("pycontain", "images", "network", "runtime")

# The floors of the runtime, from the ground up. A module imports from its own floor and from those below.
RUNTIME = (
    {"errors", "jsontext", "light", "paths", "sockets"},
    {"kernel", "spec", "state"},
    {"plan"},
    {"channel", "executor", "terminal", "idmaps", "rootless", "seccomp_agent", "handover", "shared_mounts"},
    {"dialogue", "failure", "namespaces", "vm"},
    {"control", "creation", "ending", "example", "features", "hooks", "netdevices", "starting"},
    {"lifecycle", "checkpoint", "update", "events"},
    {"main", "making", "verbs"},
    {"start", "start_cache"},
)
GROUND = tuple(f"pycontain.runtime.{room}" for room in ("errors", "kernel", "spec", "jsontext", "light", "paths"))
# It looks at every room from above, and is used by one command.
COMPARISON = "pycontain.isolation"
FACES = ("pycontain.cli", "pycontain.api", "pycontain.commands", "pycontain.__main__")

# Modules written in C, or frozen into the interpreter and imported by it anyway: none costs a tenth of a millisecond.
LIGHT = {
    "__future__", "_frozen_importlib", "_json", "_launcher", "_signal", "_socket", "_stat", "_struct", "errno", "fcntl", "marshal", "os", "posix", "select", "stat",
    "sys", "termios", "time",
}  # fmt: skip
OFF_START_PATH = {
    f"pycontain.runtime.{name}" for name in ("kernel.syscalls", "kernel.systemd", "plan.describe", "failure", "terminal", "seccomp_agent", "shared_mounts", "netdevices", "start_cache")
}

# Names of control files that only one version of cgroups has. Each side keeps to its own.
V1_WORDS = (
    r"limit_in_bytes|usage_in_bytes|cfs_quota|cfs_period|freezer\.state|oom_control|devices\.(allow|deny)|blkio\."
    r"|net_(cls|prio)\.|event_control|cpuacct\."
)
V2_WORDS = (
    r"memory\.(max|high|low|swap\.max|events)\b|cpu\.(max|weight)\b|cgroup\.(freeze|subtree_control)\b|\.rsvd\.max"
    r"|\bio\.(max|weight|bfq|stat)"
)


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    """(dotted name, path, tree) of every module of the four rooms."""
    for room in ROOMS:
        prefix = "" if room == "pycontain" else "pycontain."
        for folder, _, files in os.walk(os.path.join(ROOT, room)):  # does not follow pycontain's links
            for file in sorted(files):
                if file.endswith(".py"):
                    path = os.path.join(folder, file)
                    dotted = os.path.relpath(path, ROOT)[:-3].replace(os.sep, ".").removesuffix(".__init__")
                    with open(path) as source:
                        yield prefix + dotted, path, ast.parse(source.read(), path)


ALL = {name: (path, tree) for name, path, tree in modules()}
OFF_START_PATH |= {name for name in ALL if name.startswith("pycontain.runtime.vm.")}


def imports(name: str) -> Iterator[tuple[str, int]]:
    """(module, line) for everything that module ``name`` imports, as absolute dotted names."""
    path, tree = ALL[name]
    package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in ALL else base), node.lineno


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def runtime_floor(name: str) -> int:
    room = name.removeprefix("pycontain.runtime").lstrip(".").partition(".")[0]
    if not room:
        return 0  # the package itself, which imports nothing
    for floor, rooms in enumerate(RUNTIME):
        if room in rooms:
            return floor
    raise AssertionError(f"{name} stands on no floor: give it one in {os.path.basename(__file__)}")


def may_import(name: str, other: str) -> bool:
    if within(name, "pycontain.runtime"):
        return within(other, "pycontain.runtime") and runtime_floor(other) <= runtime_floor(name)
    for room in ("pycontain.images", "pycontain.network"):
        if within(name, room):
            return within(other, room, *GROUND)
    if within(name, "pycontain.engine"):
        rooms = ("pycontain.engine", "pycontain.images", "pycontain.network", "pycontain.runtime")
        # The package itself holds the version and where the code is; its other names are faces, and lazy.
        return other == "pycontain" or (within(other, *rooms) and not within(other, "pycontain.runtime.main", "pycontain.runtime.verbs"))
    if within(name, COMPARISON):
        return not within(other, *FACES)
    # What is left is a face.
    if within(other, COMPARISON):
        return name == "pycontain.commands.isolation"
    return other == "pycontain" or within(other, "pycontain.engine", "pycontain.runtime.errors", *FACES)


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_import_runs_upwards(name: str) -> None:
    path, _ = ALL[name]
    wrong = [
        f"{os.path.relpath(path, ROOT)}:{line} imports {other}"
        for other, line in imports(name)
        if within(other, "pycontain") and not may_import(name, other)
    ]
    assert wrong == []


def test_the_rule_itself_tells_up_from_down() -> None:
    assert may_import("pycontain.runtime.lifecycle", "pycontain.runtime.plan.ops")
    assert not may_import("pycontain.runtime.plan.ops", "pycontain.runtime.lifecycle")
    assert not may_import("pycontain.runtime.spec", "pycontain.images.reference")
    assert not may_import("pycontain.images.store", "pycontain.runtime.lifecycle")
    assert not may_import("pycontain.images.store", "pycontain.network.lease")
    assert not may_import("pycontain.network.lease", "pycontain.engine")
    assert not may_import("pycontain.cli", "pycontain.images.store")
    assert not may_import("pycontain.engine.run", "pycontain.cli")
    assert not may_import("pycontain.engine.run", "pycontain.isolation.model")
    assert not may_import("pycontain.api", "pycontain.isolation.model")


@pytest.mark.parametrize("name", sorted(name for name in ALL if within(name, "pycontain.runtime")))
def test_start_path_imports_nothing_heavy(name: str) -> None:
    if name in OFF_START_PATH:
        return
    path, tree = ALL[name]
    heavy = []
    for node in tree.body:  # only what runs on import: function bodies and TYPE_CHECKING blocks may import more
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for module in names:
            if module not in LIGHT and not (within(module, "pycontain") and module not in OFF_START_PATH):
                heavy.append(f"{os.path.relpath(path, ROOT)}:{node.lineno} imports {module}")
    assert heavy == []


@pytest.mark.parametrize("name", sorted(ALL))
def test_cgroup_versions_keep_to_their_own_files(name: str) -> None:
    _, tree = ALL[name]
    words = []
    if "cgroup_v1" not in name:
        words.append(V1_WORDS)
    if "cgroup_v2" not in name and not name.endswith("systemd_properties"):
        words.append(V2_WORDS)
    found = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 120
        for pattern in words
        if re.search(pattern, node.value)
    ]
    assert found == []
