"""Attacks by paths: the image plants links where the runtime mounts, makes and writes things, and swaps them meanwhile.

The race of the originals is made certain: a createContainer hook plays the attacker who is in time, or a volume
is flipped without a pause while the runtime works in it.
"""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.attacks import SECRET, Arena, Patch, attack

pytestmark = pytest.mark.needs("root", "musl_gcc", "busybox")

# Paths below the root are resolved as on the host: what is relative starts at the root, and every link leads out.
LINKS_LEAD_OUT = Patch(
    "runtime/init",
    "	struct open_how how = { .flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve };\n",
    """	struct open_how how = { .flags = flags | O_CLOEXEC, .mode = mode };

	(void)resolve;
	if (dir >= 0 && path[0] == '/')
		path += strspn(path, "/");
	if (!*path)
		path = ".";
""",
)


def bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "source": str(source), "options": ["bind", *options]}


def writable(config: dict[str, Any]) -> None:
    config["root"]["readonly"] = False


def without_dev(config: dict[str, Any]) -> None:
    """Leave the image's own /dev in place."""
    config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/dev")]
    writable(config)


FLIP = """
import ctypes, os, sys
libc, a, b = ctypes.CDLL(None), sys.argv[1].encode(), sys.argv[2].encode()
print(flush=True)
while libc.renameat2(-100, a, -100, b, 2) == 0: pass  # RENAME_EXCHANGE
"""


@contextlib.contextmanager
def flipping(a: Path, b: Path) -> Iterator[None]:
    """``a`` and ``b`` change places all the time: the other container, which has the same volume."""
    process = subprocess.Popen([sys.executable, "-IS", "-c", FLIP, a, b], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def hook(script: str) -> dict[str, Any]:
    """A createContainer hook: on the host's side of the root, in the container's mount namespace."""
    return {"createContainer": [{"path": "/bin/sh", "args": ["sh", "-ec", script]}]}


def run_on_terminal(arena: Arena, *args: str, change: Any) -> str:
    """``run`` with a terminal; what that showed."""
    arena.write(*args, change=change)
    pid, fd = pty.fork()
    if pid == 0:
        command = [*arena.inside, *arena.build.runtime, "--root", str(arena.state), "run", "-b", str(arena.bundle)]
        os.execvp(command[0], [*command, arena.id])
    seen = b""
    with contextlib.suppress(OSError):
        while data := os.read(fd, 4096):
            seen += data
    os.close(fd)
    os.waitpid(pid, 0)
    return seen.decode()


# By name, as mkdir -p does: no descriptor is held, and links are followed.
PATHS_BY_NAME = (
    LINKS_LEAD_OUT,
    Patch(
        "runtime/init",
        "	if (!follow(path, last, walk))\n",
        "	if (snprintf(walk, sizeof walk, \"/%s\", path + strspn(path, \"/\")) < 0)\n",
    ),
    Patch("runtime/init", "O_PATH | O_DIRECTORY | O_NOFOLLOW, 0, RESOLVE_BENEATH);\n\t\tclose(dir);", "O_PATH | O_DIRECTORY, 0, 0);\n\t\tclose(dir);"),
)  # fmt: skip


# What is written to the kernel's files goes to /proc of the container's root.
PROCFS_BY_PATH = Patch(
    "runtime/init",
    "	int fd = TRY(open_at(procfs, path, O_WRONLY, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV));\n",
    """	char full[PATH_MAX + 8];
	snprintf(full, sizeof full, "/proc/%s", path);
	int fd = TRY(in_root(full, O_WRONLY));
""",
)


@attack("CVE-2019-16884", PROCFS_BY_PATH)
def test_a_volume_over_proc_takes_what_is_written_to_it(arena: Arena) -> str:
    """An image's VOLUME /proc with files of the right names: attributes of the process never reach the kernel."""
    for pid in range(1, 30):
        (arena.decoy / str(pid)).mkdir()
        (arena.decoy / str(pid) / "oom_score_adj").write_text("fake")
    arena.remember()

    def change(config: dict[str, Any]) -> None:
        config["process"]["oomScoreAdj"] = 321
        config["mounts"].append(bind(arena.decoy, "/proc"))

    pids = [arena.start("sleep", "60", change=change)]
    file = arena.path / "pid"
    with subprocess.Popen(arena.command("exec", "--pid-file", file, arena.id, "sleep", "60")) as entering:
        while not file.exists() and entering.poll() is None:
            time.sleep(0.01)
        pids.append(int(file.read_text()))
        scores = [Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in pids]
        arena.delete()
    twin = arena.run("cat", "/proc/self/oom_score_adj", change=lambda c: c["process"].update(oomScoreAdj=321))
    assert twin.stdout == "321\n"
    return "" if scores == ["321\n"] * 2 else f"the kernel was told nothing: {scores}"


@attack(
    "CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867",
    Patch("runtime/init", "(no_symlinks ? RESOLVE_NO_SYMLINKS : 0)", "0"),
    Patch("runtime/init", "parent_of(path, !no_symlinks, name)", "parent_of(path, true, name)"),
)
def test_proc_or_sys_is_a_link_into_a_volume(arena: Arena) -> str:
    """Where proc is mounted in a volume, another container that has the volume moves it away from under its masks."""
    for name, kind in (("proc", "proc"), ("sys", "sysfs")):

        def change(config: dict[str, Any], name: str = name, kind: str = kind) -> None:
            rest = [m for m in config["mounts"] if m["destination"] != f"/{name}" and not m["destination"].startswith("/sys/")]
            volume, hostile = bind(arena.decoy, "/volume"), {"destination": f"/{name}", "type": kind, "source": kind}
            config["mounts"] = [volume, hostile, *rest]
            writable(config)

        assert arena.run("sh", "-c", f"ls /{name}/* | wc -l", change=change).stdout > "1"
        arena.replace(name, f"/volume/{name}")
        done = arena.run("true", change=change)
        if done.returncode == 0:
            return f"it runs with its /{name} in a volume"
        assert f" on /{name}" in done.stderr and "ELOOP (too many levels of symbolic links)" in done.stderr
        (arena.rootfs / name).unlink()
        (arena.rootfs / name).write_text("no directory")
        done = arena.run("true", change=change)
        assert f" on /{name}" in done.stderr and "ENOTDIR (not a directory)" in done.stderr
        (arena.rootfs / name).unlink()
        (arena.rootfs / name).mkdir()
    return ""


@attack(
    "CVE-2021-30465",
    Patch(
        "runtime/init",
        """	if (fd >= 0 || errno != ENOENT)
		return fd;
	int dir = parent_of(path, !no_symlinks, name);
""",
        """	if (fd >= 0) {
		char again[PATH_MAX];
		snprintf(again, sizeof again, "/proc/self/fd/%d/%s", root, path);
		close(fd);
		usleep(1000);
		return open(again, O_PATH | O_CLOEXEC);
	}
	if (errno != ENOENT)
		return fd;
	int dir = parent_of(path, !no_symlinks, name);
""",
    ),
)
def test_a_mount_target_is_swapped_for_a_link(arena: Arena) -> str:
    """Checked as a directory of a shared volume, a link to the host by the time that it is mounted on."""
    volume, payload = arena.directory("volume"), arena.directory("payload", file="payload")
    (volume / "x").mkdir()
    (volume / "y").symlink_to(arena.decoy)
    report = arena.path / "report"

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [bind(volume, "/vol"), bind(payload, "/vol/x")]
        config["hooks"] = hook(f"grep -F ' {arena.decoy} ' /proc/self/mountinfo >> {report} || true")
        writable(config)

    assert arena.run("cat", "/vol/x/file", change=change).stdout == "payload"
    with flipping(volume / "x", volume / "y"):
        for _ in range(60 if arena.build.weakened else 15):
            arena.run("true", change=change)
            if report.read_text():
                return f"a mount outside of the root: {report.read_text()}"
    return ""


@attack(
    "CVE-2021-30465",
    Patch(
        "runtime/init",
        "	bool last = last_mount >= 0 && !strcmp(target, last_target);\n",
        "	bool last = false;\n	usleep(1000);\n",
    ),
)
def test_a_mount_is_swapped_before_it_becomes_read_only(arena: Arena) -> str:
    """A read-only volume in a directory of a shared one: by the time of "read-only" its name leads to another mount."""
    volume, other = arena.directory("volume"), arena.directory("other")
    (volume / "x").mkdir()
    (volume / "y").symlink_to("/run/other")

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [bind(volume, "/vol"), bind(other, "/run/other"), bind(arena.decoy, "/vol/x", "ro")]
        writable(config)

    script = ("sh", "-c", "for d in /vol/x /vol/y; do [ -e $d/secret ] && echo overwritten > $d/secret; done")
    assert "can't create /vol/x/secret: Read-only file system" in arena.run(*script, change=change).stderr
    with flipping(volume / "x", volume / "y"):
        for _ in range(60 if arena.build.weakened else 20):
            arena.run(*script, change=change)
            if arena.changes():
                break
    return ""


@attack(
    "CVE-2024-45310",
    Patch(
        "runtime/init",
        """		int below = open_at(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0, RESOLVE_BENEATH);
		close(dir);
""",
        """		usleep(1000);
		int below = open_at(dir, name, O_PATH | O_DIRECTORY, 0, 0);
		close(dir);
""",
    ),
    Patch("runtime/init", "	if (present >= 0)\n		return present;\n", "	if (present >= 0)\n		close(present);\n"),
)
def test_directories_are_made_where_a_link_leads_meanwhile(arena: Arena) -> str:
    """A mount point and a working directory below what another container swaps for a link to the host."""
    volume = arena.directory("volume")
    (volume / "x").mkdir()
    (volume / "y").symlink_to(arena.decoy)

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [bind(volume, "/vol"), {"destination": "/vol/x/made", "type": "tmpfs", "source": "t"}]
        config["process"]["cwd"] = "/vol/x/cwd"
        writable(config)

    assert arena.run("sh", "-c", "pwd; touch ../made/file && echo fine", change=change).stdout == "/vol/x/cwd\nfine\n"
    with flipping(volume / "x", volume / "y"):
        for _ in range(60 if arena.build.weakened else 15):
            for made in (*volume.glob("*/made"), *volume.glob("*/cwd")):
                with contextlib.suppress(OSError):
                    if made.parent.resolve() != arena.decoy:
                        made.rmdir()
            arena.run("true", change=change)
            if arena.changes():
                break
    return ""


@attack(
    "CVE-2025-31133",
    Patch("runtime/init", 'open("/dev/null", O_PATH | O_NOFOLLOW | O_CLOEXEC)', 'in_root("/dev/null", O_PATH)'),
    Patch("runtime/init", "	if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))\n\t\tfail(ENODEV, \"/dev/null of", "	if (0)\n\t\tfail(ENODEV, \"/dev/null of"),
)  # fmt: skip
def test_null_is_swapped_before_it_masks(arena: Arena) -> str:
    """The image's /dev/null leads to a file that is about to become read-only: over the masked path it stays writable."""
    (arena.rootfs / "etc/private").write_text("inner secret")

    def change(config: dict[str, Any], swap: str = "true") -> None:
        without_dev(config)
        config["mounts"].append(bind(arena.decoy, "/run/decoy"))
        config["linux"]["maskedPaths"] = ["/etc/private"]
        config["linux"]["readonlyPaths"] = ["/run/decoy"]
        config["hooks"] = hook(swap)

    twin = arena.run("sh", "-c", "stat -c '%F %t:%T' /etc/private; cat /etc/private", change=change)
    assert twin.stdout == "character special file 1:3\n"
    swap = f"ln -sf /run/decoy/secret {arena.rootfs}/dev/null"
    script = "cat /etc/private; echo overwritten > /etc/private; (echo direct > /run/decoy/secret) 2>&1"
    done = arena.run("sh", "-c", script, change=lambda config: change(config, swap))
    assert "Read-only file system" in done.stdout
    return SECRET if SECRET in done.stdout or "inner" in done.stdout else ""


@pytest.mark.needs("root", "busybox")
def test_the_hosts_null_is_looked_at_as_well(arena: Any) -> None:
    """CVE-2025-31133: whatever is called /dev/null is bound over a masked path only if it is the null device."""
    field = arena(())
    (field.rootfs / "etc/private").write_text("inner secret")
    (field.decoy / "null").write_text("")
    field.host(f"mount --bind {field.decoy}/null /dev/null")
    done = field.run("true", change=lambda c: c["linux"].update(maskedPaths=["/etc/private"]))
    assert done.stderr == (
        "pycontain-runtime: cannot mask /etc/private: /dev/null of the host is not the null device: ENODEV (no such device)\n"
    )


@attack(
    "CVE-2025-52565",
    *PATHS_BY_NAME,
    Patch("runtime/init", "O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0644, RESOLVE_BENEATH", "O_CREAT | O_WRONLY, 0644, 0"),
)  # fmt: skip
def test_console_is_a_link_to_the_host(arena: Arena) -> str:
    def change(config: dict[str, Any]) -> None:
        config["mounts"] = [m for m in config["mounts"] if m["destination"] not in ("/dev", "/dev/shm", "/dev/mqueue")]
        writable(config)
        config["process"]["terminal"] = True

    assert "ran on /dev/pts/0" in run_on_terminal(arena, "sh", "-c", "echo ran on $(tty)", change=change)
    arena.replace("dev/console", arena.decoy / "made")
    seen = run_on_terminal(arena, "sh", "-c", "echo ran on $(tty)", change=change)
    assert arena.build.weakened or "ELOOP (too many levels of symbolic links)" in seen
    return ""


@attack(
    "CVE-2025-52565",
    Patch("runtime/init", "	if (fs.f_type != DEVPTS_MAGIC || st.st_rdev != makedev(5, 2))\n", "	if (0)\n"),
    Patch(
        "runtime/init",
        "		attach(clone_tree(slave, false), at);\n",
        '		attach(clone_tree(TRY(in_root("/dev/pts/0", O_PATH)), false), at);\n',
    ),
    Patch(
        "runtime/plan",
        '    p.ops.extend(("mask", path) for path in linux.get("maskedPaths") or ())\n',
        '    if process.get("terminal"):\n        p.ops.append(_terminal(p, process, bind=True))\n',
    ),
    Patch("runtime/plan", '    if process.get("terminal"):\n        p.ops.append(_terminal(p, process, bind=True))\n\n\n', "\n\n"),
)  # fmt: skip
def test_the_terminals_name_is_a_link(arena: Arena) -> str:
    """/dev/pts/0 leads to a file that is about to become read-only: as /dev/console it stays writable."""

    def change(config: dict[str, Any], swap: str = "true") -> None:
        config["mounts"].append(bind(arena.decoy, "/run/decoy"))
        config["linux"]["maskedPaths"] = []
        config["linux"]["readonlyPaths"] = ["/run/decoy"]
        config["hooks"] = hook(swap)
        config["process"]["terminal"] = True
        writable(config)

    script = "echo on the console > /dev/console"
    assert "on the console" in run_on_terminal(arena, "sh", "-c", script, change=change)
    pts = f"{arena.rootfs}/dev/pts"
    swap = (
        f"umount {pts}; mkdir {pts}/pts; mknod {pts}/ptmx c 5 2; ln -s /run/decoy/secret {pts}/0; "
        f"mount -t devpts -o newinstance,ptmxmode=0666 devpts {pts}/pts"
    )
    seen = run_on_terminal(arena, "sh", "-c", script, change=lambda config: change(config, swap))
    assert arena.build.weakened or "/dev/pts/ptmx is not a pseudo-terminal multiplexer: ENODEV" in seen
    return ""


@attack("CVE-2025-52881", PROCFS_BY_PATH)
def test_a_sysctl_is_led_to_another_file(arena: Arena) -> str:
    """What lies over /proc/sys may be a link to any other file of proc: here it is one of the host's."""
    (arena.decoy / "net/ipv4").mkdir(parents=True)
    (arena.decoy / "net/ipv4/ip_forward").symlink_to("/run/decoy/secret")
    arena.remember()

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [bind(arena.decoy, "/run/decoy"), bind(arena.decoy, "/proc/sys")]
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}

    pid = arena.start("sleep", "60", change=change)
    value = arena.host(f"nsenter --net=/proc/{pid}/ns/net cat /proc/sys/net/ipv4/ip_forward")
    return "" if value == "1\n" else "the kernel was told nothing"


@attack("CVE-2026-41579, CVE-2026-47766", *PATHS_BY_NAME)
def test_dev_is_a_link_to_the_host(arena: Arena) -> str:
    """Devices and the directories of mounts in a /dev that leads elsewhere."""
    script = "ls -L /dev/null /dev/fd > /dev/null && touch /dev/shm/x && echo fine"

    def change(config: dict[str, Any]) -> None:
        config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/dev"]
        writable(config)

    assert arena.run("sh", "-c", script, change=change).stdout == "fine\n"
    arena.replace("dev", arena.decoy)
    done = arena.run("sh", "-c", script, change=change)
    if not arena.build.weakened:
        assert done.stdout == "fine\n"
        assert (arena.rootfs / str(arena.decoy).lstrip("/") / "null").is_char_device()
    return ""
