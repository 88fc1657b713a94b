"""More of what a hostile image meets, beside the attacks of test_runtime_*.py, which have their twins on weakened builds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.namespaces import INIT
from pycontain.runtime.plan.ops import encode
from tests.security.attacks import Arena
from tests.security.test_runtime_paths import bind, run_on_terminal, without_dev, writable

pytestmark = pytest.mark.needs("root", "busybox")


@pytest.fixture
def field(arena: Callable[[tuple[()]], Arena]) -> Arena:
    return arena(())


def test_a_mount_target_that_is_a_link_is_made_inside(field: Arena) -> None:
    field.replace("data", f"../../../../..{field.decoy}")
    source = field.directory("source", file="volume")

    def change(config: dict[str, Any]) -> None:
        config["mounts"].append(bind(source, "/data"))
        writable(config)

    assert field.run("sh", "-c", "cat /data/file; ls /data", change=change).stdout == "volumefile\n"
    inside = field.rootfs / str(field.decoy).lstrip("/")
    assert inside.is_dir(), "the link was resolved inside the root"
    assert not field.changes()


def test_directories_are_made_inside(field: Arena) -> None:
    field.replace("srv", field.decoy)

    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "/srv/deep/er", "type": "tmpfs", "source": "t"})
        config["process"]["cwd"] = "/srv/cwd"
        writable(config)

    done = field.run("sh", "-c", "pwd -P; touch /srv/deep/er/x && echo made", change=change)
    assert done.stdout == f"{field.decoy}/cwd\nmade\n", done.stderr
    assert not field.changes()


def test_ptmx_that_is_no_multiplexer_is_refused(field: Arena) -> None:
    """CVE-2025-52565: without a devpts of the container's own, whatever the image planted is not a terminal."""
    (field.rootfs / "dev/pts").mkdir()
    (field.rootfs / "dev/pts/ptmx").write_text("planted")

    def change(config: dict[str, Any]) -> None:
        without_dev(config)
        config["process"]["terminal"] = True

    seen = run_on_terminal(field, "true", change=change)
    assert "/dev/pts/ptmx is not a pseudo-terminal multiplexer: ENODEV" in seen
    assert (field.rootfs / "dev/pts/ptmx").read_text() == "planted"


def test_reexecuted_init_obeys_nobody(field: Arena) -> None:
    """CVE-2019-5736: the image's program is a link to what executes it."""
    field.replace("bin/again", "/proc/self/exe")
    done = field.run("/bin/again", "3", "2")
    assert (done.returncode, done.stdout, done.stderr) == (125, "", "")
    usage = field.run("/bin/again")
    assert (usage.returncode, usage.stderr) == (125, "pycontain-init is started by pycontain, with a plan\n")


def created(field: Arena) -> int:
    """A container that waits to be started; its first process."""
    field.write("sleep", "60")
    field("create", "-b", field.bundle, field.id, check=True)
    pid: int = json.loads(field("state", field.id, check=True).stdout)["pid"]
    return pid


def test_nothing_of_python_is_mapped_in_the_container(field: Arena) -> None:
    """While init waits to be started, it is visible to whoever execs into the container."""
    pid = created(field)
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "memfd:pycontain-init" in maps
    assert "python" not in maps and ".so" not in maps and str(field.state) not in maps
    assert os.readlink(f"/proc/{pid}/exe") == "/memfd:pycontain-init (deleted)"


def test_the_waiting_process_keeps_its_descriptors_to_itself(field: Arena) -> None:
    created(field)
    script = "for f in /proc/1/fd/* /proc/1/root /proc/1/exe; do readlink $f; done; cat /proc/1/maps /proc/self/fd/0; echo tried"
    done = field.exec(None, "sh", "-c", script)
    assert done.stdout == "tried\n", done.stdout
    assert "Permission denied" in done.stderr
    field("start", field.id, check=True)
    twin = field.exec(None, "sh", "-c", "readlink /proc/1/exe")
    assert twin.stdout == "/bin/busybox\n", "the program itself may be looked at"


def test_a_plan_that_lies_about_its_lengths(tmp_path: Path) -> None:
    """CVE-2021-43784: init itself, given a plan with one byte changed."""
    good = encode([("hostname", "x")])
    for at in range(len(good)):
        for value in {0, 255} - {good[at]}:
            (tmp_path / "plan").write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
            with open(tmp_path / "plan") as plan, open(tmp_path / "channel", "wb") as channel:
                command = f"exec 5<&{plan.fileno()} 6>&{channel.fileno()}; exec unshare -u {INIT} 5 2"
                done = subprocess.run(["bash", "-c", command], pass_fds=[plan.fileno(), channel.fileno()], timeout=10)
            # The name is another, or nothing was done; no signal, which the shell would add 128 for.
            assert done.returncode in (0, 125), (at, value)


def test_state_is_for_root_alone(field: Arena) -> None:
    created(field)
    for path in (field.state, field.state / field.id):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (field.state / field.id / "state.json").stat().st_mode & 0o777 == 0o600


def test_a_sysctl_of_the_host_is_refused(field: Arena) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    done = field.run("true", change=lambda c: c["linux"].update(sysctl={"kernel.core_pattern": "|/bin/sh"}))
    assert "it is not of a namespace" in done.stderr
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
