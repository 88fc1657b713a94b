"""What every level promises: the program runs and is heard, its status comes back, limits hold, nothing is left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pycontain.isolation.levels import LEVELS, level
from pycontain.isolation.model import Bind, Job
from pycontain.isolation.world import World
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.kernel.cgroup import hierarchies

pytestmark = pytest.mark.needs("root")
NATIVE = ("process", "chroot", "container", "container-noseccomp", "hardened", "runc", "crun")


def available(world: World, name: str) -> None:
    why = level(name).missing(world)
    if why is not None:
        pytest.skip(f"needs the level {name}: {why}")


def left(world: World) -> list[str]:
    """What a tenant could have left: cgroups below the cap, directories, mounts."""
    found = [str(path) for tree in hierarchies() for path in Path(tree.mount + world.cap).glob("tenant-*")]
    found += os.listdir(world.public)
    return found + [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if world.public in line]


@pytest.mark.parametrize("name", NATIVE)
def test_a_job_runs_is_timed_and_leaves_nothing(world: World, tmp_path: Path, name: str) -> None:
    available(world, name)
    tmp_path.chmod(0o755)
    (tmp_path / "said").write_text("through a bind\n")
    job = Job(("/bin/sh", "-c", "cat {data}/said; echo $NAME >&2; exit 7"), binds=(Bind(str(tmp_path), "/data"),), environment={"NAME": "given"})
    found = level(name).run(world, job)
    assert (found.status, found.stdout, found.stderr) == (7, b"through a bind\n", b"given\n")
    assert found.first is not None and 0 < found.first <= found.total
    first = level(name).run(world, Job(("/probe", "first")))
    assert json.loads(first.stdout) == {"probe": "first", "said": "here"}
    assert level(name).run(world, Job(("/bin/sh", "-c", "sh -c 'kill -9 $$'; exit $?"))).status == 128 + 9
    with pytest.raises(PycontainError, match="no end within 0.5 s"):
        level(name).run(world, Job(("/bin/sleep", "100")), timeout=0.5)
    assert left(world) == []


def test_the_levels_are_told_apart_by_their_names() -> None:
    assert [item.name for item in LEVELS] == "process chroot container container-noseccomp hardened rootless runc crun runsc vm-tcg vm-kvm".split()
