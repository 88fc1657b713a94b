"""What every level promises: the program runs and is heard, its status comes back, limits hold, nothing is left."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pycontain.isolation import users
from pycontain.isolation.bundle import USER
from pycontain.isolation.child import Child
from pycontain.isolation.levels import LEVELS, level
from pycontain.isolation.model import Bind, Job
from pycontain.isolation.sweeping import remove_cgroup
from pycontain.isolation.world import World, make_cgroup
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.kernel.hierarchies import hierarchies, mode_of
from tests import machine_tools

pytestmark = pytest.mark.needs("root")
NATIVE = ("process", "chroot", "container", "container-noseccomp", "hardened", "rootless", "runc", "crun")
MEMORY, PIDS = 100 << 20, 60


def available(world: World, name: str) -> None:
    why = level(name).missing(world)
    if why is not None:
        pytest.skip(f"needs the level {name}: {why}")


def left(world: World) -> list[str]:
    """What a tenant could have left: cgroups below the cap, directories, mounts."""
    found = [str(path) for tree in hierarchies() for path in Path(tree.mount + world.cap).glob("tenant-*")]
    found += [name for name in os.listdir(world.public) if name.startswith("tenant-")]
    return found + [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if world.public in line]


@pytest.mark.parametrize("name", NATIVE)
def test_a_job_runs_is_timed_and_leaves_nothing(world: World, name: str) -> None:
    available(world, name)
    data = Path(world.scratch("data"))
    (data / "said").write_text("through a bind\n")
    script = "cat {data}/said; touch {data}/new 2>/dev/null && echo written; echo $NAME >&2; exit 7"
    job = Job(("/bin/sh", "-c", script), binds=(Bind(str(data), "/data"),), environment={"NAME": "given"})
    found = level(name).run(world, job)
    # A process without a mount namespace or a root of its own has what root has.
    written = b"written\n" if name == "process" else b""
    assert (found.status, found.stdout, found.stderr) == (7, b"through a bind\n" + written, b"given\n")
    assert found.first is not None and 0 < found.first <= found.total
    assert level(name).run(world, Job(("/bin/sh", "-c", "sh -c 'kill -9 $$'; exit $?"))).status == 128 + 9
    with pytest.raises(PycontainError, match="no end within 0.5 s"):
        level(name).run(world, Job(("/bin/sleep", "100")), timeout=0.5)
    assert left(world) == []


@pytest.mark.parametrize("name", (*NATIVE, "runsc"))
def test_a_tenant_speaks_is_joined_and_is_stopped(world: World, name: str) -> None:
    available(world, name)
    job = Job(("/bin/sh", "-c", "echo up; echo to standard error >&2; exec sleep 100"), MEMORY, PIDS, 0.5)
    tenant = level(name).start(world, job)
    try:
        assert tenant.line() == "up"
        pids = tenant.pids()
        assert pids and all(Path(f"/proc/{pid}").exists() for pid in pids)
        found = tenant.exec(("/bin/sh", "-c", "echo here; exit 3"))
        assert (found.status, found.stdout) == (3, b"here\n")
        # A user has a cgroup, and so limits, on cgroup v2 alone.
        limited = name not in ("process", "chroot") and (name != "rootless" or mode_of(hierarchies()) == "v2")
        assert limits(pids) == ({(str(MEMORY), str(PIDS))} if limited else set())
        with pytest.raises(PycontainError, match=r"wrote no line within 0.2 s: to standard error"):
            tenant.line(0.2)
    finally:
        tenant.stop()
        tenant.stop()
    assert [pid for pid in pids if runs(pid)] == []
    assert left(world) == []


def test_what_crun_has_not_yet_written_down_is_waited_for(world: World) -> None:
    available(world, "crun")
    tenant = level("crun").start(world, Job(("/bin/sh", "-c", "echo up; exec sleep 100")))
    try:
        assert tenant.line() == "up"
        (folder,) = Path(world.directory, "state/crun").iterdir()
        status = folder / "status"
        until = time.monotonic() + 10
        while not status.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        late = status.rename(folder / "late")
        timer = threading.Timer(0.3, late.rename, (status,))
        timer.start()
        assert tenant.exec(("/bin/sh", "-c", "echo here")).stdout == b"here\n"
        timer.join()
    finally:
        tenant.stop()


def runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def limits(pids: list[int]) -> set[tuple[str, str]]:
    """(memory, pids) of the cgroups called ``container`` that these processes are in, as cat(1) reads them."""
    found = set()
    for pid in pids:
        lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        values = []
        for controller, v1, v2 in (("memory", "memory.limit_in_bytes", "memory.max"), ("pids", "pids.max", "pids.max")):
            tree = next(item for item in hierarchies() if controller in item.controllers or not item.controllers and item.unified)
            place = next(place for _, names, place in lines if (controller in names.split(",") if tree.controllers else not names))
            if place.endswith("/container"):
                path = f"{tree.mount}{place}/{v1 if tree.controllers else v2}"
                values.append(subprocess.run(["cat", path], capture_output=True, text=True, check=True).stdout.strip())
        if values:
            found.add((values[0], values[1]))
    return found


@pytest.mark.needs(*machine_tools.NEEDS)
def test_a_machine_is_a_level_like_any_other(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(machine_tools.settings(tmp_path)))
    assert level("vm-tcg").lacks(world) is None
    # Without a limit of memory: it is a clone of the template that all tests have.
    tenant = level("vm-tcg").start(world, Job(("/bin/sh", "-c", "uname -r; exec sleep 100"), pids=PIDS))
    try:
        assert tenant.line(50) != os.uname().release  # a new template is booted first
        assert any(b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tenant.pids())
        found = tenant.exec(("/bin/sh", "-c", "cat /sys/fs/cgroup/pids.max; exit 3"))
        assert (found.status, found.stdout.decode().split()) == (3, [str(PIDS)])
    finally:
        tenant.stop()
    assert left(world) == []


def test_the_control_has_no_defence_left(world: World) -> None:
    script = "readlink /proc/self/ns/pid; readlink /proc/self/ns/net; grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status; ls -d /host/proc/1"
    found = level("runc").run(world, Job(("/bin/sh", "-c", script), opened=True)).stdout.decode().split()
    ours = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Cap"))
    assert found == [
        os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/net"),
        "CapEff:", ours["CapBnd"], "CapBnd:", ours["CapBnd"], "Seccomp:", "0", "/host/proc/1",
    ]  # fmt: skip


def test_a_closed_installation_is_opened_up_for_a_user(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "closed/inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("read by a user")
    (tmp_path / "closed").chmod(0o700)
    group = make_cgroup(f"{world.cap}/user")

    def read(mounts: int | None) -> bytes:
        child = Child(world.probe, ["/bin/cat", str(inner / "file")], group, user=USER, mounts=mounts)
        try:
            child.go()
            found = child.wait(20)
            assert found is not None
            return found.stdout
        finally:
            child.close()

    assert read(None) == b""
    monkeypatch.setattr(users, "needed", lambda _: [str(inner)])
    assert read(users._reachable(world)) == b"read by a user"
    remove_cgroup(group)


def test_a_job_that_cannot_run_says_why(world: World) -> None:
    for name in ("process", "chroot", "container"):
        found = level(name).run(world, Job(("/no/such/program",)))
        assert found.status and b"/no/such/program" in found.stderr
    assert left(world) == []


def test_the_levels_go_from_none_to_most() -> None:
    names = "process chroot container container-noseccomp hardened rootless runc crun runsc vm-tcg vm-kvm"
    assert [item.name for item in LEVELS] == names.split()
