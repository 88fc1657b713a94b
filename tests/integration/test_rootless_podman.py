"""podman in the hands of a user who is not root, with ``pycontain-runtime``: as root of podman's user namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rootless_tools import FIRST, UID, User, Users
from tests.runtime_tools import COMMAND

pytestmark = pytest.mark.needs("root", "userns", "newuidmap", "podman", "conmon")


class Podman:
    """podman with a store of the user's own, and no network."""

    def __init__(self, user: User) -> None:
        self.user = user
        store = ["--root", user.home / "store", "--runroot", user.home / "run", "--tmpdir", user.home / "tmp"]
        how = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        self._command = ["podman", *store, *how, "--runtime", COMMAND[0]]

    def __call__(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.user(*self._command, *args, cwd="/", **options)

    def run(self, *args: object) -> str:
        """Options of podman run, then ``--`` and the command; what it printed."""
        at = args.index("--")
        limits = ["--network=none", "--ulimit=nofile=1024:4096", "--ulimit=nproc=4096:4096"]
        rootfs = ["--rootfs", self.user.image()]
        done = self("run", *limits, *args[:at], *rootfs, *args[at + 1 :], check=True)
        return done.stdout


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    users = Users()
    podman = Podman(User(users))
    yield podman
    podman("rm", "--all", "--force", "--time", "0", check=True)
    podman("unshare", "rm", "-rf", podman.user.home / "store", check=True)
    podman("system", "migrate", check=True)  # ends the process that holds podman's user namespace
    podman.user.clean()
    users.close()


def test_a_life(podman: Podman) -> None:
    id = podman.run("--detach", "--name", "life", "--", "sleep", "600").strip()
    assert [c["id"] for c in json.loads(podman.user.runtime("list", "--format", "json").stdout)] == [id]
    inside = podman("exec", "--user", "33:34", "--env", "X=of podman", "life", "sh", "-c", "id -u; id -g; echo $X")
    assert inside.stdout == "33\n34\nof podman\n"
    assert "sleep 600" in podman("top", "life", check=True).stdout
    assert podman("inspect", "--format", "{{.State.Status}}", "life").stdout == "running\n"
    assert podman("kill", "--signal", "KILL", "life").returncode == 0
    assert podman("wait", "life").stdout == "137\n"
    podman("rm", "life", check=True)
    assert podman.user.ids() == []


def test_ids(podman: Podman) -> None:
    rows = [line.split() for line in podman.run("--rm", "--", "cat", "/proc/self/uid_map").splitlines()]
    assert rows == [["0", str(UID), "1"], ["1", str(FIRST), "65536"]]
    kept = podman.run("--rm", "--userns=keep-id", "--", "sh", "-c", "id -u; cat /proc/self/uid_map").splitlines()
    assert kept[0] == str(UID) and [str(UID), "0", "1"] in [line.split() for line in kept[1:]]


def test_other_maps(podman: Podman) -> None:
    """What podman binds lies where the root of these maps may not go."""
    maps = ("--uidmap=0:1:1000", "--gidmap=0:1:1000")
    assert podman.run("--rm", *maps, "--", "cat", "/proc/self/uid_map").split() == ["0", "1", "1000"]


def test_read_only(podman: Podman) -> None:
    text = "touch /here; touch /tmp/there && echo $?"
    assert podman.run("--rm", "--read-only", "--", "sh", "-c", text) == "0\n"


def test_what_is_shared_with_the_host(podman: Podman) -> None:
    assert int(podman.run("--rm", "--pid=host", "--", "sh", "-c", "ls -d /proc/[0-9]* | wc -l")) > 20
    text = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /sys/class/net"
    sysctl = "--sysctl=net.ipv4.ip_unprivileged_port_start=7"
    assert podman.run("--rm", "--pid=host", sysctl, "--", "sh", "-c", text).split() == ["7", "lo"]


def test_mounts_and_limits(podman: Podman) -> None:
    shared = podman.user.home / "shared"
    shared.mkdir()
    text = "touch /v/made; ls /v | cat; ulimit -n; cat /proc/self/oom_score_adj; tty"
    (shared / "there").touch()
    out = podman.run("--rm", "-t", f"--volume={shared}:/v:ro", "--oom-score-adj=321", "--", "sh", "-c", text)
    assert [line.strip() for line in out.splitlines()] == [
        "touch: /v/made: Read-only file system", "there", "1024", "321", "/dev/pts/0",
    ]  # fmt: skip
