"""Attacks on the runtime, performed against the real program: the image and what runs in it are hostile.

Each test names the published hole it replays. The host's decoys must be untouched, and a harmless twin must work.
"""

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


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_cve_2019_19921_proc_or_sys_is_a_link(attack: Attack, name: str) -> None:
    assert attack.run("cat", f"/{name}/secret").returncode == 1
    attack.replace(name, attack.way_out)
    done = attack.run("cat", f"/{name}/secret")
    assert done.returncode == 1
    assert f" on /{name}" in done.stderr and done.stderr.endswith(
        "ELOOP (too many levels of symbolic links)\n"
    )


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


def test_cve_2026_41579_devices_are_made_inside(attack: Attack) -> None:
    attack.replace("dev", attack.way_out)
    done = attack.run("sh", "-c", "ls -L /dev/null /dev/fd && echo x > /dev/null && echo fine", change=without_dev)
    assert "fine" in done.stdout, done.stderr
    assert (attack.rootfs / attack.way_out.lstrip("/") / "null").is_char_device()


def test_cve_2025_31133_a_planted_null_does_not_mask(attack: Attack) -> None:
    (attack.rootfs / "dev").mkdir(exist_ok=True)
    attack.replace("dev/null", f"{attack.way_out}/secret")
    (attack.rootfs / "etc/private").write_text("inner secret")

    def change(config: dict[str, Any]) -> None:
        without_dev(config)
        config["linux"]["maskedPaths"] = ["/etc/private"]

    done = attack.run("sh", "-c", "stat -c '%F %t:%T' /etc/private /dev/null; cat /etc/private", change=change)
    assert done.stdout == "character special file 1:3\ncharacter special file 1:3\n", done.stderr


def test_cve_2025_52565_console_is_a_link(attack: Attack, tmp_path: Path) -> None:
    import pty

    from tests.runtime_tools import COMMAND

    attack.replace("dev/console", f"{attack.way_out}/secret")

    def change(config: dict[str, Any]) -> None:
        config["mounts"] = [m for m in config["mounts"] if m["destination"] not in ("/dev", "/dev/shm", "/dev/mqueue")]
        config["root"]["readonly"] = False
        config["process"]["terminal"] = True

    write_bundle(attack.bundle, attack.rootfs, "sh", "-c", "echo ran", change=change)
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [*COMMAND, "--root", str(attack.runtime.root), "run", "-b", str(attack.bundle), "evil"])
    seen = ""
    while True:
        try:
            data = os.read(fd, 4096)
        except OSError:
            break
        seen += data.decode()
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert "ELOOP (too many levels of symbolic links)" in seen
    assert "ran" not in seen


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


@pytest.mark.parametrize("fd", range(3, 12))
def test_cve_2024_21626_working_directory_on_the_host(attack: Attack, fd: int) -> None:
    handed = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    done = attack.run(
        "sh", "-c", f"pwd; ls {attack.way_out}; ls ../../../../..{attack.way_out}",
        change=lambda c: c["process"].update(cwd=f"/proc/self/fd/{fd}"), pass_fds=[handed],
    )  # fmt: skip
    os.close(handed)
    # What init itself holds open is at most the container's own root.
    assert "secret" not in done.stdout
    assert done.stdout in ("", "/\n")
    assert done.returncode == 1


def test_cve_2024_21626_exec(attack: Attack) -> None:
    write_bundle(attack.bundle, attack.rootfs, "sleep", "60")
    attack.runtime("create", "-b", attack.bundle, "evil", check=True)
    attack.runtime("start", "evil", check=True)
    assert attack.runtime("exec", "--cwd", "/tmp", "evil", "pwd").stdout == "/tmp\n"
    for fd in range(3, 12):
        done = attack.runtime("exec", "--cwd", f"/proc/self/fd/{fd}", "evil", "pwd")
        assert done.stdout in ("", "/\n"), "at most the container's own root is open there"
        assert done.stdout or f"cannot change directory to /proc/self/fd/{fd}: " in done.stderr


STEAL = """
exec 9< /proc/1/exe || echo cannot open
( i=0
  while [ $i -lt 200 ]; do
    echo overwritten 2>&- > /proc/self/fd/9 && echo written && break
    i=$((i+1)); sleep 0.01
  done > /dev/shm/result 2>&1; echo done >> /dev/shm/result ) < /dev/null &
exit 0
"""


def test_cve_2019_5736_the_runtimes_program_cannot_be_overwritten(attack: Attack) -> None:
    """A hook inside the container, with every capability, takes hold of pid 1's program while that is still init."""
    (attack.rootfs / "steal").write_text(STEAL)

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "/steal"], "env": ["PATH=/bin"]}]}

    done = attack.run("sh", "-c", "sleep 3; readlink /proc/1/exe; cat /dev/shm/result", change=change)
    assert done.stdout.splitlines()[1:] == ["done"], done.stdout + done.stderr
    harmless = attack.runtime("run", "-b", write_bundle(attack.bundle, attack.rootfs, "echo", "again"), "evil")
    assert harmless.stdout == "again\n"


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


def test_cve_2022_29162_nothing_is_inheritable(attack: Attack) -> None:
    write_bundle(attack.bundle, attack.rootfs, "sleep", "60")
    attack.runtime("create", "-b", attack.bundle, "evil", check=True)
    attack.runtime("start", "evil", check=True)
    pid = attack.runtime.state("evil")["pid"]
    assert "CapInh:\t0000000000000000" in Path(f"/proc/{pid}/status").read_text()
    assert "CapInh:\t0000000000000000" in attack.runtime("exec", "evil", "cat", "/proc/self/status").stdout


def test_cve_2022_36109_supplementary_groups_are_exact(attack: Attack) -> None:
    done = attack.run(
        "id", "-G", change=lambda c: c["process"].update(user={"uid": 5, "gid": 6, "additionalGids": [9]})
    )
    assert done.stdout == "6 9\n"
    done = attack.run("id", "-G", change=lambda c: c["process"].update(user={"uid": 0, "gid": 0}))
    assert done.stdout == "0\n"


@pytest.mark.parametrize("uid", [1 << 32, (1 << 32) - 1, 1 << 63])
def test_cve_2024_40635_ids_do_not_wrap(attack: Attack, uid: int) -> None:
    done = attack.run("id", "-u", change=lambda c: c["process"].update(user={"uid": uid, "gid": 0}))
    assert done.stderr == f"pycontain-runtime: $.process.user.uid: found {uid}, wanted at most 4294967294\n"


def test_crun_cve_2026_30892_exec_as_a_user(attack: Attack) -> None:
    write_bundle(attack.bundle, attack.rootfs, "sleep", "60")
    attack.runtime("create", "-b", attack.bundle, "evil", check=True)
    attack.runtime("start", "evil", check=True)
    assert attack.runtime("exec", "-u", "1", "evil", "id", "-u").stdout == "1\n"
    assert attack.runtime("exec", "-u", "1:2", "evil", "sh", "-c", "id -u; id -g").stdout == "1\n2\n"
    for bad in ("1:", ":1", "1:2:3", "-1", "0x1", " 1", "4294967296", ""):
        done = attack.runtime("exec", "-u", bad, "evil", "id")
        assert (done.returncode, done.stdout) == (1, ""), bad
        assert done.stderr.startswith("pycontain-runtime: "), bad


def test_ghsa_g54h_devices_are_denied_unless_allowed(attack: Attack) -> None:
    def change(config: dict[str, Any]) -> None:
        del config["linux"]["resources"]["devices"]
        config["root"]["readonly"] = False
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_MKNOD")

    script = "mknod /mem c 1 1 && mknod /zero c 1 5 && head -c 1 /zero | wc -c; head -c 1 /mem"
    done = attack.run("sh", "-c", script, change=change)
    assert done.stdout == "1\n"
    assert "/mem: Operation not permitted" in done.stderr


def test_cve_2025_52881_sysctls_go_to_the_kernel_and_nowhere_else(attack: Attack) -> None:
    """A volume over /proc/sys takes what is written by path; the private procfs does not look there."""
    fake = attack.decoy.with_name("fake")
    (fake / "net/ipv4").mkdir(parents=True)
    (fake / "net/ipv4/ip_forward").write_text("untouched")

    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "/proc/sys", "source": str(fake), "options": ["rbind"]})
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
        config["linux"]["readonlyPaths"] = []

    script = "cat /proc/sys/net/ipv4/ip_forward; umount /proc/sys; cat /proc/sys/net/ipv4/ip_forward"

    def with_mount_rights(config: dict[str, Any]) -> None:
        change(config)
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")

    done = attack.run("sh", "-c", script, change=with_mount_rights)
    assert done.stdout == "untouched1\n", done.stderr
    assert (fake / "net/ipv4/ip_forward").read_text() == "untouched"


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
                subprocess.run(["bash", "-c", command], pass_fds=[plan.fileno(), channel.fileno()], timeout=10)


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
