"""Attacks on who a process is and what it may do: users, groups, capabilities, cgroups, devices, system calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.example import rootless
from tests.rootless_tools import LONER, Users
from tests.runtime_tools import HIERARCHIES
from tests.security.attacks import CGROUPS, SECRET, Arena, Patch, attack
from tests.security.test_runtime_paths import bind

pytestmark = pytest.mark.needs("root", "musl_gcc", "busybox", "userns")


def engine(arena: Arena, *args: str) -> subprocess.CompletedProcess[str]:
    """The build's other face, with a store of its own that has the image "evil:1"."""
    env = {**os.environ, "PYCONTAIN_ROOT": str(arena.path / "data"), "PYCONTAIN_RUN": str(arena.path / "run")}
    options: dict[str, Any] = {"env": env, "capture_output": True, "text": True, "timeout": 40, "stdin": subprocess.DEVNULL}
    if not (arena.path / "data").exists():
        tar = arena.path / "image.tar"
        subprocess.run(["tar", "-C", arena.rootfs, "-cf", tar, "."], check=True)
        subprocess.run([*arena.inside, *arena.build.engine, "import", tar, "evil:1"], check=True, **options)
    done = subprocess.run([*arena.inside, *arena.build.engine, *args], **options)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_image(arena: Arena, user: str, *args: str) -> subprocess.CompletedProcess[str]:
    volume = f"{arena.decoy}:/run/decoy"
    return engine(arena, "run", "--rm", "--network", "none", "-v", volume, "--user", user, "evil:1", *args)


def user_of(uid: int, gid: int, *groups: int) -> Any:
    def change(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": uid, "gid": gid, "additionalGids": list(groups)}

    return change


@attack("CVE-2016-3697", Patch("runtime/plan", "if (entry_uid == uid) if uid is not None else (fields[0] == name):", "if entry_uid == uid or fields[0] == name:"))  # fmt: skip
def test_a_number_is_a_name_in_the_image(arena: Arena) -> str:
    """The image calls a root of its own "1000"."""
    with (arena.rootfs / "etc/passwd").open("a") as file:
        file.write("1000:x:0:0::/:/bin/sh\nmallory:x:1001:1001::/:/bin/sh\n")
    twin = run_image(arena, "mallory", "sh", "-c", "id -u; cat /run/decoy/secret")
    assert twin.stdout == "1001\n"
    return run_image(arena, "1000", "sh", "-c", "id -u; cat /run/decoy/secret").stdout.removeprefix("1000\n")


@attack("CVE-2026-30892", Patch("runtime", '"uid": user["uid"], "gid": user["gid"]}', '"uid": user["uid"] if ":" in options["user"] else 0, "gid": user["gid"]}'))  # fmt: skip
def test_exec_as_a_user_without_a_group(arena: Arena) -> str:
    arena.start(change=lambda config: config["mounts"].append(bind(arena.decoy, "/run/decoy")))
    assert arena.exec("-u", "1:2", None, "sh", "-c", "id -u; id -g").stdout == "1\n2\n"
    for bad in ("1:", ":1", "1:2:3", "-1", "0x1", " 1", "4294967296", ""):
        done = arena.exec("-u", bad, None, "id")
        assert (done.returncode, done.stdout) == (1, ""), bad
        assert done.stderr.startswith("pycontain-runtime: "), bad
    seen = arena.exec("-u", "1", None, "sh", "-c", "id -u; cat /run/decoy/secret").stdout
    return seen.removeprefix("1\n")


@attack("CVE-2022-36109, CVE-2023-25173", Patch("runtime/plan", '    ops.append(("groups", groups))\n', '    if groups:\n        ops.append(("groups", groups))\n'))  # fmt: skip
def test_groups_of_the_caller_stay(arena: Arena) -> str:
    """A file for a group that the runtime's caller happens to be in."""
    (arena.decoy / "secret").chmod(0o640)
    os.chown(arena.decoy / "secret", 0, 4242)
    arena.remember()
    script = ("sh", "-c", "id -G; cat /run/decoy/secret")

    def change(config: dict[str, Any], *groups: int) -> None:
        user_of(1000, 1000, *groups)(config)
        config["mounts"].append(bind(arena.decoy, "/run/decoy"))

    assert arena.run(*script, change=lambda config: change(config, 4242)).stdout == f"1000 4242\n{SECRET}"
    done = arena.run(*script, change=change, extra_groups=[4242])
    arena.start(change=change, extra_groups=[4242])
    seen = done.stdout + arena.exec(None, *script, extra_groups=[4242]).stdout
    return seen.replace("1000\n", "")


# Busybox gives a set-group-id back before it does anything.
CAT = r"""
#include <fcntl.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	char text[64];
	ssize_t n = read(open(argv[1], O_RDONLY), text, sizeof text);
	return n < 0 || write(1, text, n) != n;
}
"""


def compile_static(source: str, program: Path) -> None:
    subprocess.run(["musl-gcc", "-static", "-x", "c", "-", "-o", program], input=source, text=True, check=True)


@attack("CVE-2022-36109, CVE-2023-25173", Patch("runtime/plan", '"gid": wanted_gid, "additionalGids": [wanted_gid]', '"gid": wanted_gid, "additionalGids": []'))  # fmt: skip
def test_a_group_is_shed(arena: Arena) -> str:
    """A file that a group may not read and all others may: a set-group-id program must not take the user out of it."""
    (arena.decoy / "secret").chmod(0o604)
    os.chown(arena.decoy / "secret", 0, 1000)
    arena.remember()
    shed = arena.rootfs / "shed"
    compile_static(CAT, shed)
    os.chown(shed, 0, 2000)
    shed.chmod(0o2755)
    assert run_image(arena, "1001:1001", "/shed", "/run/decoy/secret").stdout == SECRET
    return run_image(arena, "1000:1000", "/shed", "/run/decoy/secret").stdout


@attack(
    "CVE-2024-40635",
    Patch(
        "runtime/plan",
        '        if value > 0xFFFFFFFE:\n            raise errors.SpecError(f"$.process.user.{name}"',
        '        if False:\n            raise errors.SpecError(f"$.process.user.{name}"',
    ),
    Patch("runtime/plan", "ID_MAX: Final = 0x7FFFFFFF\n", "ID_MAX: Final = 1 << 63\n"),
)
def test_an_id_wraps(arena: Arena) -> str:
    """2^32 is 0 in 32 bits, and 2^32-1 means "leave it as it is" to setresuid(2)."""
    mounts = [bind(arena.decoy, "/run/decoy")]
    script = ("sh", "-c", "id -u; cat /run/decoy/secret")
    seen = ""
    for uid in (1 << 32, (1 << 32) - 1, 1 << 63):

        def change(config: dict[str, Any], uid: int = uid) -> None:
            user_of(uid, 1000)(config)
            config["mounts"] += mounts

        done = arena.run(*script, change=change)
        seen += done.stdout
        if not arena.build.weakened:
            assert done.stderr == f"pycontain-runtime: $.process.user.uid: found {uid}, wanted at most 4294967294\n"
    arena.start(change=lambda config: config["mounts"].extend(mounts))
    assert arena.exec("-u", str((1 << 31) - 1), None, *script).stdout == f"{(1 << 31) - 1}\n"
    done = arena.exec("-u", str(1 << 32), None, *script)
    if not arena.build.weakened:
        assert done.stderr == f"pycontain-runtime: user {1 << 32} is out of range: wanted 0 to {(1 << 31) - 1}\n"
    return seen + done.stdout


# cgroups and devices, as the host has them and where it has nothing but cgroup2


def only_cgroup2(arena: Arena) -> None:
    arena.host("umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    arena.remember()


DELEGATED = 100000


def writes_to_cgroups(arena: Arena) -> str:
    """Root of a user namespace, to whose user the cgroups are delegated; no cgroup namespace, /sys/fs/cgroup read-only."""
    decoy = f"{CGROUPS}/{arena.id}decoy"
    script = f"""
    for d in /sys/fs/cgroup /sys/fs/cgroup/*; do
        mkdir $d/evil && echo made one below its own
        for f in pids.max cgroup.max.depth cgroup.max.descendants; do
            echo 77 > $d/$f && echo set its own
            echo 77 > $d/{decoy}/$f && echo set its neighbours
        done
    done 2>/dev/null
    find /sys/fs/cgroup -name {arena.id}decoy
    ls /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | head -1 | grep -q . && echo sees its own
    """

    def change(config: dict[str, Any]) -> None:
        linux = config["linux"]
        linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "cgroup"] + [{"type": "user"}]
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": DELEGATED, "size": 65536}]

    tops = "/sys/fs/cgroup" if arena.host("stat -fc %T /sys/fs/cgroup") == "cgroup2fs\n" else "/sys/fs/cgroup/*"
    arena.host(f"for d in {tops}; do [ -L $d ] || mkdir -p $d/{decoy}; done")
    try:
        arena.write("sh", "-c", script, change=change)
        report = arena.path / "report"
        with report.open("w") as out:
            arena("create", "-b", arena.bundle, arena.id, check=True, stdout=out)
            arena.host(f"chown -R {DELEGATED} $(find /sys/fs/cgroup -maxdepth 3 -path '*{CGROUPS}/{arena.id}*')")
            arena("start", arena.id, check=True, stdout=out)
            while json.loads(arena("state", arena.id, check=True).stdout)["status"] != "stopped":
                pass
        made = arena.host("find /sys/fs/cgroup -maxdepth 4 -name evil")
        seen = report.read_text()
        assert "sees its own" in seen, seen
        return made + seen.replace("sees its own\n", "")
    finally:
        arena.host(f"for d in $(find /sys/fs/cgroup -maxdepth 4 -name evil); do rmdir $d; done; rmdir $(find /sys/fs/cgroup -maxdepth 3 -name {arena.id}decoy)")


WHOLE_TREE = (
    Patch("runtime/plan", 'return ("bind", hierarchy["mount"] + self.path, target, 0)', 'return ("bind", hierarchy["mount"], target, 0)'),
)  # fmt: skip


@attack(
    "CVE-2023-25809",
    *WHOLE_TREE,
    Patch("runtime/plan", 'ops.append(("attr", f"{target}/{name}", options.attr_set', 'ops.append(("attr", f"{target}/{name}", 0'),
)  # fmt: skip
def test_cgroups_without_a_namespace(arena: Arena) -> str:
    return writes_to_cgroups(arena)


@attack(
    "CVE-2023-25809",
    *WHOLE_TREE,
    Patch("runtime/plan", '[("attr", target, options.attr_set, options.attr_clear, 0, 0)]', "[]"),
)
def test_cgroups_without_a_namespace_where_all_is_cgroup2(arena: Arena) -> str:
    only_cgroup2(arena)
    return writes_to_cgroups(arena)


@attack("CVE-2023-25809", Patch("runtime/plan", "    if not _own_cgroups(p.ops):\n", "    if False:\n"))
def test_cgroups_of_a_user_through_sys(arena: Arena) -> str:
    """Without root /sys is the host's, bound read-only: that does not reach the cgroups below it, here the user's own."""
    unified = next(path for path in (HIERARCHIES / "unified", HIERARCHIES) if (path / "cgroup.procs").exists())
    decoy = unified / CGROUPS / arena.id / "user"
    decoy.mkdir(parents=True)
    arena.state.mkdir()
    subprocess.run(["chown", "-R", f"{LONER}:{LONER}", decoy, arena.state], check=True)
    inside, users = arena.inside, Users()
    arena.inside = [
        "nsenter", f"--mount=/proc/{users.pid}/ns/mnt", "--",
        "setpriv", f"--reuid={LONER}", f"--regid={LONER}", "--clear-groups", "--inh-caps=-all",
    ]  # fmt: skip
    script = f"cat {decoy}/cgroup.max.depth; echo 77 > {decoy}/cgroup.max.depth; mkdir {decoy}/evil; echo tried"

    def change(config: dict[str, Any]) -> None:
        config.update(json.loads(json.dumps(rootless(LONER, LONER))))
        config["process"].update(terminal=False, args=["sh", "-c", script])
        config["root"]["path"] = str(arena.rootfs)
        config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/sys/fs/cgroup"]

    try:
        done = arena.run(change=change)
        assert done.stdout == "max\ntried\n", done.stderr
        return (decoy / "cgroup.max.depth").read_text().replace("max\n", "") + "".join(map(str, decoy.glob("evil")))
    finally:
        users.close()
        arena.inside = inside
        for path in (*decoy.glob("evil"), decoy, decoy.parent):
            path.rmdir()


@contextmanager
def disk(arena: Arena) -> Iterator[tuple[int, int]]:
    """A block device of the host, with a secret on it: its major and minor number."""
    image = arena.path / "disk"
    image.write_bytes(SECRET.encode().ljust(4096, b"\0"))
    device = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=True).stdout.strip()
    try:
        number = os.stat(device).st_rdev
        yield os.major(number), os.minor(number)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def reads_a_disk(arena: Arena) -> str:
    def change(config: dict[str, Any]) -> None:
        del config["linux"]["resources"]["devices"]
        config["root"]["readonly"] = False
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_MKNOD")

    with disk(arena) as (major, minor):
        script = f"mknod /zero c 1 5 && head -c 1 /zero | wc -c; mknod /disk b {major} {minor} && head -c {len(SECRET)} /disk"
        done = arena.run("sh", "-c", script, change=change)
        assert done.stdout.startswith("1\n"), done.stderr
        seen = done.stdout.removeprefix("1\n")
        assert seen or "/disk: Operation not permitted" in done.stderr
        (arena.rootfs / "disk").unlink()
        (arena.rootfs / "zero").unlink()

        def allowed(config: dict[str, Any]) -> None:
            change(config)
            rule = {"allow": True, "type": "b", "major": major, "minor": minor, "access": "rm"}
            config["linux"]["resources"]["devices"] = [rule]

        assert arena.run("sh", "-c", script, change=allowed).stdout == f"1\n{SECRET}"
    return seen


DENY_LIST = Patch("runtime", 'deny = {"allow": False, "type": "a", "access": "rwm"}', 'deny = {"allow": True, "type": "a", "access": "rwm"}')  # fmt: skip


@pytest.mark.needs("loop")
@attack("GHSA-g54h-m393-cpwq", DENY_LIST)
def test_a_device_that_no_rule_names(arena: Arena) -> str:
    return reads_a_disk(arena)


@pytest.mark.needs("loop")
@attack("GHSA-g54h-m393-cpwq", DENY_LIST)
def test_a_device_that_no_rule_names_where_all_is_cgroup2(arena: Arena) -> str:
    only_cgroup2(arena)
    return reads_a_disk(arena)


# Says what the kernel answered, or that the filter did (EPERM); "add TEXT" and "drop ID" are the host's side.
PROBE = r"""
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#define USER_KEYRING -4
int main(int argc, char **argv)
{
	char text[64] = "";
	if (argc == 4 && !strcmp(argv[1], "add"))
		return printf("%ld\n", syscall(SYS_add_key, "user", argv[2], argv[3], strlen(argv[3]), USER_KEYRING)) < 0;
	if (argc == 3 && !strcmp(argv[1], "drop"))
		return syscall(SYS_keyctl, 9, atol(argv[2]), USER_KEYRING) < 0;
	long key = syscall(SYS_keyctl, 10, USER_KEYRING, "user", argv[1], 0);
	if (key > 0 && syscall(SYS_keyctl, 11, key, text, sizeof text - 1) > 0)
		printf("keyring: %s\n", text);
	if (socket(38, SOCK_SEQPACKET, 0) >= 0 || errno != EPERM)
		printf("AF_ALG: %s\n", strerror(errno));
	if (syscall(SYS_io_uring_setup, 0, NULL) >= 0 || errno != EPERM)
		printf("io_uring: %s\n", strerror(errno));
	return printf("pid %d\n", getpid()) < 0;
}
"""


@attack(
    "AF_ALG, keyring, io_uring",
    Patch("runtime/plan", '"defaultAction": "SCMP_ACT_ERRNO",\n        "defaultErrnoRet": 1,\n', '"defaultAction": "SCMP_ACT_ALLOW",\n'),
)  # fmt: skip
def test_new_kernel_surface_under_the_default_profile(arena: Arena) -> str:
    """A key of root's user keyring, which all of root's containers share; the kernel's crypto; its rings."""
    probe = arena.rootfs / "probe"
    compile_static(PROBE, probe)
    code = f"import sys, json; sys.path.insert(0, {str(arena.build.home)!r}); from pycontain.runtime.plan import seccomp, rights; print(json.dumps(seccomp.default_profile(rights.DEFAULT_CAPS)))"
    profile = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    name = f"{arena.id}decoy"
    key = subprocess.run([probe, "add", name, SECRET], capture_output=True, text=True, check=True).stdout.strip()
    try:
        done = arena.run("/probe", name, change=lambda config: config["linux"].update(seccomp=profile))
        arena.start(change=lambda config: config["linux"].update(seccomp=profile))
        more = arena.exec(None, "/probe", name)
    finally:
        subprocess.run([probe, "drop", key], check=True)
    assert "pid 1\n" in done.stdout and "pid " in more.stdout, done.stderr
    return "".join(line for line in (done.stdout + more.stdout).splitlines(True) if not line.startswith("pid "))
