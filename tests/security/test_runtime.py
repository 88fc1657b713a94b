"""More of what a hostile image meets, beside the attacks of test_runtime_*.py, which have their twins on weakened builds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import Runtime, left, make_rootfs, write_bundle

pytestmark = pytest.mark.needs("root")

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("image") / "rootfs")


class Attack:
    """A hostile image of its own, a decoy beside it, and a runtime."""

    def __init__(self, tmp_path: Path, image: Path) -> None:
        self.rootfs = tmp_path / "rootfs"
        subprocess.run(["cp", "-a", image, self.rootfs], check=True)
        self.decoy = tmp_path / "decoy"
        self.decoy.mkdir()
        (self.decoy / "secret").write_text("of the host")
        self.runtime = Runtime(tmp_path / "state")
        self.bundle = tmp_path / "bundle"
        # The way from a link in the image to the decoy, if the link were followed on the host.
        self.way_out = str(self.decoy)

    def replace(self, name: str, target: str) -> None:
        """Turn ``name`` of the image into a symbolic link."""
        path = self.rootfs / name
        subprocess.run(["rm", "-rf", path], check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def run(self, *args: str, change: Change | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        write_bundle(self.bundle, self.rootfs, *args, change=change)
        return self.runtime("run", "-b", self.bundle, "evil", **options)

    def untouched(self) -> bool:
        return os.listdir(self.decoy) == ["secret"] and (self.decoy / "secret").read_text() == "of the host"


@pytest.fixture
def attack(tmp_path: Path, image: Path) -> Iterator[Attack]:
    attack = Attack(tmp_path, image)
    yield attack
    attack.runtime.clean()
    assert attack.untouched()
    assert not left("evil")


def without_dev(config: dict[str, Any]) -> None:
    """Leave the image's own /dev in place."""
    config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/dev")]
    config["root"]["readonly"] = False


def test_cve_2021_30465_mount_target_is_a_link_to_the_host(attack: Attack) -> None:
    attack.replace("data", f"../../../../..{attack.way_out}")
    source = attack.decoy.with_name("source")
    source.mkdir()
    (source / "file").write_text("volume")

    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "/data", "source": str(source), "options": ["bind"]})
        config["root"]["readonly"] = False

    assert attack.run("sh", "-c", "cat /data/file; ls /data", change=change).stdout == "volumefile\n"
    inside = attack.rootfs / attack.way_out.lstrip("/")
    assert inside.is_dir(), "the link was resolved inside the root"


def test_cve_2024_45310_directories_are_made_inside(attack: Attack) -> None:
    attack.replace("srv", attack.way_out)

    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "/srv/deep/er", "type": "tmpfs", "source": "t"})
        config["process"]["cwd"] = "/srv/cwd"
        config["root"]["readonly"] = False

    done = attack.run("sh", "-c", "pwd -P; touch /srv/deep/er/x && echo made", change=change)
    assert done.stdout == f"{attack.way_out}/cwd\nmade\n", done.stderr


def test_ptmx_that_is_no_multiplexer_is_refused(attack: Attack) -> None:
    """CVE-2025-52565: without a devpts of the container's own, whatever the image planted is not a terminal."""
    import pty

    from tests.runtime_tools import COMMAND

    subprocess.run(["rm", "-rf", attack.rootfs / "dev"], check=True)
    (attack.rootfs / "dev/pts").mkdir(parents=True)
    (attack.rootfs / "dev/pts/ptmx").write_text("planted")

    def change(config: dict[str, Any]) -> None:
        without_dev(config)
        config["process"]["terminal"] = True

    write_bundle(attack.bundle, attack.rootfs, "true", change=change)
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [*COMMAND, "--root", str(attack.runtime.root), "run", "-b", str(attack.bundle), "evil"])
    seen = b""
    try:
        while data := os.read(fd, 4096):
            seen += data
    except OSError:
        pass
    os.close(fd)
    os.waitpid(pid, 0)
    assert b"/dev/pts/ptmx is not a pseudo-terminal multiplexer: ENODEV" in seen
    assert (attack.rootfs / "dev/pts/ptmx").read_text() == "planted"


def test_cve_2019_5736_reexecuted_init_obeys_nobody(attack: Attack) -> None:
    attack.replace("bin/again", "/proc/self/exe")
    done = attack.run("/bin/again", "3", "2")
    assert (done.returncode, done.stdout, done.stderr) == (125, "", "")
    usage = attack.run("/bin/again")
    assert (usage.returncode, usage.stderr) == (125, "pycontain-init is started by pycontain, with a plan\n")


def test_nothing_of_python_is_mapped_in_the_container(attack: Attack) -> None:
    """While init waits to be started, it is visible to whoever execs into the container."""
    write_bundle(attack.bundle, attack.rootfs, "sleep", "60")
    attack.runtime("create", "-b", attack.bundle, "evil", check=True)
    pid = attack.runtime.state("evil")["pid"]
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "memfd:pycontain-init" in maps
    assert "python" not in maps and ".so" not in maps and str(attack.runtime.root) not in maps
    assert os.readlink(f"/proc/{pid}/exe") == "/memfd:pycontain-init (deleted)"


def test_cve_2016_9962_the_waiting_process_keeps_its_descriptors_to_itself(attack: Attack) -> None:
    write_bundle(attack.bundle, attack.rootfs, "sleep", "60")
    attack.runtime("create", "-b", attack.bundle, "evil", check=True)
    done = attack.runtime(
        "exec",
        "evil",
        "sh",
        "-c",
        "for f in /proc/1/fd/* /proc/1/root /proc/1/exe; do readlink $f; done; cat /proc/1/maps; cat /proc/self/fd/0; echo tried",
    )
    assert done.stdout == "tried\n", done.stdout
    assert "Permission denied" in done.stderr
    attack.runtime("start", "evil", check=True)
    twin = attack.runtime("exec", "evil", "sh", "-c", "readlink /proc/1/exe")
    assert twin.stdout.startswith("/bin/busybox"), "the program itself may be looked at"


def test_cve_2021_43784_a_plan_that_lies_about_its_lengths(tmp_path: Path) -> None:
    from pycontain.runtime.namespaces import INIT
    from pycontain.runtime.plan.ops import encode

    good = encode([("hostname", "x")])
    for at in range(len(good)):
        for value in (0, 255):
            if good[at] == value:
                continue
            bad = good[:at] + bytes([value]) + good[at + 1 :]
            (tmp_path / "plan").write_bytes(bad)
            with open(tmp_path / "plan") as plan, open(tmp_path / "channel", "wb") as channel:
                command = f"exec 5<&{plan.fileno()} 6>&{channel.fileno()}; exec unshare -u {INIT} 5 2"
                done = subprocess.run(["bash", "-c", command], pass_fds=[plan.fileno(), channel.fileno()], timeout=10)
            # The name is another, or nothing was done; no signal, which the shell would add 128 for.
            assert done.returncode in (0, 125), (at, value)


def test_state_is_for_root_alone(attack: Attack) -> None:
    write_bundle(attack.bundle, attack.rootfs, "sleep", "60")
    attack.runtime("create", "-b", attack.bundle, "evil", check=True)
    for path in (attack.runtime.root, attack.runtime.root / "evil"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (attack.runtime.root / "evil/state.json").stat().st_mode & 0o777 == 0o600


def test_a_shared_host_proc_is_not_written_through(attack: Attack) -> None:
    """A sysctl of the host is refused before anything is made."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    done = attack.run("true", change=lambda c: c["linux"].update(sysctl={"kernel.core_pattern": "|/bin/sh"}))
    assert json.dumps("it is not of a namespace")[1:-1] in done.stderr
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
