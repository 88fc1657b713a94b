"""``pycontain-runtime`` in the hands of a user who is not root, as runc's and podman's users use theirs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.kernel.host import parse_release
from tests.rootless_tools import COUNT, FIRST, LONER, UID, User, Users
from tests.runtime_tools import COMMAND

pytestmark = pytest.mark.needs("root", "userns", "newuidmap")

HINT = (
    "\nhint: let root give this user a cgroup2 directory (systemd: Delegate=yes), and name it in $.linux.cgroupsPath\n"
)


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    users = Users()
    yield users
    users.close()


@pytest.fixture(scope="module")
def both(users: Users) -> tuple[User, User]:
    return User(users), User(users, LONER)


@pytest.fixture
def user(both: tuple[User, User]) -> Iterator[User]:
    yield both[0]
    both[0].clean()


@pytest.fixture
def loner(both: tuple[User, User]) -> Iterator[User]:
    yield both[1]
    both[1].clean()


def wait_for(condition: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def script(text: str) -> tuple[str, str, str]:
    return ("sh", "-c", text)


def running(user: User, id: str, path: Path) -> int:
    """A container that was started; its first process."""
    user.runtime("create", "-b", path, id, check=True)
    user.runtime("start", id, check=True)
    pid: int = user.state(id)["pid"]
    return pid


# ---- what spec writes, and what others make of it


@pytest.mark.needs("runc")
def test_spec_has_the_shape_of_runcs(loner: User) -> None:
    found = []
    for command in ([*COMMAND], ["runc"]):
        path = loner.home / "spec"
        path.mkdir(mode=0o777)
        os.chown(path, LONER, LONER)
        loner(*command, "spec", "--rootless", "--bundle", path, check=True)
        found.append(json.loads((path / "config.json").read_text()))
        shutil.rmtree(path)
    ours, theirs = found
    for config in found:
        mounts = {mount["destination"]: mount for mount in config["mounts"]}
        assert mounts["/sys"] == {
            "destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
        }  # fmt: skip
        assert not any(o.startswith(("uid=", "gid=")) for mount in config["mounts"] for o in mount.get("options", ()))
        for key in ("uidMappings", "gidMappings"):
            assert config["linux"][key] == [{"containerID": 0, "hostID": LONER, "size": 1}]
        assert "resources" not in config["linux"]
    assert set(ours) == set(theirs) and set(ours["linux"]) == set(theirs["linux"])
    assert [m["destination"] for m in ours["mounts"]] == [m["destination"] for m in theirs["mounts"]]
    kinds = [{n["type"] for n in config["linux"]["namespaces"]} for config in found]
    assert kinds[0] - {"cgroup"} == kinds[1] - {"cgroup"} == {"pid", "ipc", "uts", "mount", "user"}


@pytest.mark.parametrize("other", ["runc", "crun"])
@pytest.mark.parametrize("ranges", [False, True])
def test_a_container_as_others_make_it(user: User, other: str, ranges: bool) -> None:
    """The same bundle by a peer, which shows that the place is one where such containers work at all."""
    if shutil.which(other) is None:
        pytest.skip(f"needs {other}: {other} is not installed")
    show = "id; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; stat -c '%t:%T %u' /dev/null /dev/zero"

    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]
        # Debian's crun knows no hybrid hosts, and this one's cgroups are somebody else's here in any case.
        config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/sys/fs/cgroup"]

    path = user.bundle(*script(show), change=change, ranges=ranges)
    ours = user.runtime("run", "-b", path, "rl-peer", check=True).stdout
    rows = [f"{0:10} {UID:10} {1:10}"]
    if ranges:
        rows.append(f"{1:10} {FIRST:10} {COUNT:10}")
    expected = ["uid=0(root) gid=0(root)", *rows, *rows, "allow" if ranges else "deny", "1:3 65534", "1:5 65534"]
    assert ours.splitlines() == expected
    cover = "umount /sys/fs/cgroup/unified 2>/dev/null" if other == "crun" else "true"
    command = user.command(other, "--root", user.home / other, "run", "--bundle", path, "rl-peer")
    # Debian's crun wants a host without a cgroup2 beside the others.
    command = ["unshare", "--mount", *command[:2], "unshare", "--mount", "sh", "-c", f'{cover}; exec "$@"', "sh", *command[2:]]
    theirs = subprocess.run(command, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL)
    assert theirs.returncode == 0, theirs.stderr
    # Without setgroups(2) peers leave the groups alone as well; with it crun and we take them away.
    assert theirs.stdout.splitlines()[1:] == expected[1:]


# ---- one id


def test_one_id(loner: User) -> None:
    text = "id -u; id -G; cat /proc/self/uid_map; hostname; cat /proc/mounts; grep Cap /proc/self/status; ls /dev; exit 3"
    done = loner.runtime("run", "-b", loner.bundle(*script(text)), "rl-one")
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == ["0", "0", f"{0:10} {LONER:10} {1:10}", "pycontain"]
    mounts = {line.split()[1]: line.split() for line in lines if line.count(" ") == 5}
    assert mounts["/sys"][2] == "sysfs" and mounts["/sys"][3].startswith("ro,nosuid,nodev,noexec")
    assert mounts["/proc"][2] == "proc"
    assert mounts["/dev/null"][2] == "devtmpfs"
    assert {"full", "null", "ptmx", "random", "shm", "stdin", "tty", "urandom", "zero"} <= set(lines)
    assert loner.root.stat().st_mode & 0o777 == 0o700 and loner.root.stat().st_uid == LONER


def test_capabilities_mean_nothing_outside(loner: User) -> None:
    def every(config: dict[str, Any]) -> None:
        caps = ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_NET_ADMIN"]
        config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), caps)
        config["root"]["readonly"] = False
        config["mounts"].append({"destination": "/tmp/shadow", "type": "bind", "source": "/etc/shadow", "options": ["bind"]})

    tries = ("mknod /tmp/disk b 254 0", "cat /tmp/shadow", "ip link set lo down", "touch /tmp/mine")
    text = "; ".join(f"{words} >/dev/null 2>&1; echo $?" for words in tries)
    done = loner.runtime("run", "-b", loner.bundle(*script(text), change=every), "rl-caps", check=True)
    assert [status != "0" for status in done.stdout.split()] == [True, True, True, False]


def test_groups_that_cannot_be_set(loner: User) -> None:
    def more(config: dict[str, Any]) -> None:
        config["process"]["user"]["additionalGids"] = [0, 5]

    done = loner.runtime("run", "-b", loner.bundle(change=more), "rl-groups")
    assert done.stderr == (
        f"pycontain-runtime: $.process.user.additionalGids[0]: the user namespace has no setgroups(2), as user {LONER} has "
        "mapped its group itself\n"
        "\nhint: map a range of /etc/subgid in $.linux.gidMappings, or leave additional groups out\n"
    )


# ---- a range


def test_a_range(user: User) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 3000]}
        config["root"]["readonly"] = False
        config["process"]["cwd"] = "/tmp"
        mounts = config["mounts"]
        mounts[[m["destination"] for m in mounts].index("/dev/pts")]["options"].append("gid=5")

    text = "id -u; id -G; touch /tmp/made; stat -c %g /dev/pts; ls -ln /tmp/made"
    path = user.bundle(*script(text), change=change, ranges=True)
    os.chmod(user.image() / "tmp", 0o1777)
    done = user.runtime("run", "-b", path, "rl-range", check=True)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["1000", "1001 5 3000", "0"]
    assert lines[3].split()[2:4] == ["1000", "1001"]
    made = os.stat(user.image() / "tmp/made")
    assert (made.st_uid, made.st_gid) == (FIRST + 999, FIRST + 1000)
    os.unlink(user.image() / "tmp/made")


def test_ranges_that_are_not_to_be_had(user: User, loner: User) -> None:
    def range_of(loner_: User) -> Path:
        return loner_.bundle(ranges=True)

    done = loner.runtime("run", "-b", range_of(loner), "rl-norange")
    assert done.stderr == (
        f"pycontain-runtime: $.linux.uidMappings: user {LONER} cannot map more than its own uid {LONER} without newuidmap, "
        f"and newuidmap refused '0 {LONER} 1 1 {FIRST} {COUNT}': newuidmap: uid range [1-65537) -> [{FIRST}-{FIRST + COUNT})"
        " not allowed\n"
        "\nhint: /etc/subuid says which ids a user may map (USER:FIRST:COUNT)\n"
    )
    environment = {"PATH": "/nonexistent", "XDG_RUNTIME_DIR": str(user.root.parent.parent)}
    found = {name: shutil.which(name) for name in ("nsenter", "setpriv")}
    command = [found.get(word) or word for word in user.command(*COMMAND, "run", "-b", range_of(user), "rl-nohelper")]
    missing = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert missing.stderr == (
        f"pycontain-runtime: $.linux.uidMappings: user {UID} cannot map more than its own uid {UID} without newuidmap, "
        "which is not in $PATH\n"
        "\nhint: apt-get install uidmap\n"
    )


# ---- a life


def test_the_whole_life(user: User) -> None:
    path = user.bundle(*script("trap 'exit 7' TERM; sleep 600 & while :; do sleep 0.05; done"), ranges=True)
    user.runtime("create", "-b", path, "--pid-file", user.home / "pid", "--no-new-keyring", "rl-life", check=True)
    pid = int((user.home / "pid").read_text())
    assert (user.state("rl-life")["status"], user.state("rl-life")["pid"]) == ("created", pid)
    assert user.runtime("exec", "rl-life", "true").stderr == (
        f"pycontain-runtime: cannot exec in container rl-life: cannot look at /proc/{pid}/ns/user: EACCES (permission denied)\n"
    )
    user.runtime("start", "rl-life", check=True)
    rows = json.loads(user.runtime("list", "--format", "json", check=True).stdout)
    assert [(row["id"], row["owner"]) for row in rows] == [("rl-life", "tester")]
    wait_for(lambda: len(members(pid)) == 3)
    told = json.loads(user.runtime("ps", "--format", "json", "rl-life", check=True).stdout)
    assert pid in told and len(told) >= 2
    assert "sleep 600" in user.runtime("ps", "rl-life", check=True).stdout
    text = "id -u; id -g; cat /proc/self/uid_map | wc -l; hostname; cat /proc/1/comm; echo 1 >/dev/null"
    inside = user.runtime("exec", "--user", "33:34", "rl-life", *script(text), check=True)
    assert inside.stdout.split() == ["33", "34", "2", "pycontain", "sh"]
    assert user.runtime("exec", "rl-life", *script("exit 5")).returncode == 5
    user.runtime("exec", "-d", "--pid-file", user.home / "exec", "rl-life", "sleep", "500", check=True)
    second = int((user.home / "exec").read_text())
    assert os.readlink(f"/proc/{second}/ns/user") == os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    assert second in json.loads(user.runtime("ps", "--format", "json", "rl-life", check=True).stdout)
    for verb in ("pause", "resume"):
        refused = user.runtime(verb, "rl-life")
        if verb == "pause":
            assert refused.stderr == f"pycontain-runtime: cannot pause a container that has no cgroup\n{HINT}"
        assert refused.returncode == 1
    refused = user.runtime("exec", "--cgroup", "below", "rl-life", "true")
    assert refused.stderr == "pycontain-runtime: --cgroup below: the container has no cgroup\n"
    user.runtime("kill", "rl-life", "TERM", check=True)
    wait_for(lambda: user.state("rl-life")["status"] == "stopped")
    assert not os.path.exists(f"/proc/{second}")
    user.runtime("delete", "rl-life", check=True)
    assert user.runtime("state", "rl-life").stderr == "pycontain-runtime: container rl-life does not exist\n"


def members(pid: int) -> list[int]:
    """Who is in the pid namespace of ``pid``, by what root can see."""
    wanted, found = os.readlink(f"/proc/{pid}/ns/pid"), []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/ns/pid") == wanted:
                found.append(int(name))
        except OSError:
            continue
    return found


def test_force_ends_everything(loner: User) -> None:
    pid = running(loner, "rl-force", loner.bundle(*script("sleep 600 & sleep 601 & exec sleep 602")))
    loner.runtime("exec", "-d", "rl-force", *script("sleep 603 & exec sleep 604"), check=True)
    wait_for(lambda: len(members(pid)) == 5)
    pids = members(pid)
    assert sorted(json.loads(loner.runtime("ps", "--format", "json", "rl-force", check=True).stdout)) == sorted(pids)
    loner.runtime("kill", "--all", "rl-force", "0", check=False)
    loner.runtime("delete", "--force", "rl-force", check=True)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_without_a_pid_namespace(loner: User) -> None:
    def host_pids(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "pid"]

    text = "sleep 600 & sleep 601 & exec sleep 602"
    pid = running(loner, "rl-hostpid", loner.bundle(*script(text), change=host_pids))
    assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    wait_for(lambda: len(json.loads(loner.runtime("ps", "--format", "json", "rl-hostpid", check=True).stdout)) == 3)
    pids = json.loads(loner.runtime("ps", "--format", "json", "rl-hostpid", check=True).stdout)
    words = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1] for pid in sorted(pids)]
    assert sorted(words) == [b"600", b"601", b"602"]
    # /proc shows the host's processes: a procfs of its own only a pid namespace of its own could have.
    inside = loner.runtime("exec", "rl-hostpid", "cat", "/proc/mounts", check=True).stdout
    assert "proc /proc proc" in inside
    loner.runtime("kill", "rl-hostpid", "KILL", check=True)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_a_terminal_for_the_user(loner: User) -> None:
    def terminal(config: dict[str, Any]) -> None:
        config["process"].update(terminal=True, consoleSize={"height": 11, "width": 22})

    path = loner.bundle(*script("stty size; tty; test -w /dev/console && echo writable"), change=terminal)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(loner.home / "console"))
        os.chown(loner.home / "console", LONER, LONER)
        server.listen()
        loner.runtime("create", "-b", path, "--console-socket", loner.home / "console", "rl-tty", check=True)
        with server.accept()[0] as connection:
            _, fds, _, _ = socket.recv_fds(connection, 100, 1)
    os.unlink(loner.home / "console")
    loner.runtime("start", "rl-tty", check=True)
    text = b""
    while b"writable" not in text:
        text += os.read(fds[0], 1000)
    os.close(fds[0])
    assert text.decode().split() == ["11", "22", "/dev/pts/0", "writable"]


def test_hooks_see_the_container(loner: User) -> None:
    log = loner.home / "hooks"

    def hooks(config: dict[str, Any]) -> None:
        read = "grep -o 'pid\": *[0-9]*' | grep -o '[0-9]*$'"
        before = f"pid=$({read}); readlink /proc/$pid/ns/user >{log}; cat /proc/$pid/uid_map >>{log}"
        config["hooks"] = {
            "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", before]}],
            "poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"id -u >>{log}"]}],
        }

    done = loner.runtime("run", "-b", loner.bundle("readlink", "/proc/self/ns/user", change=hooks), "rl-hooks", check=True)
    lines = log.read_text().splitlines()
    assert [lines[0], lines[1].split(), lines[2]] == [done.stdout.strip(), ["0", str(LONER), "1"], str(LONER)]


# ---- what is refused, and why


def change_(**linux: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["linux"].update(linux)

    return change


def no_user_namespace(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "user"]
    del config["linux"]["uidMappings"], config["linux"]["gidMappings"]


def another_user(config: dict[str, Any]) -> None:
    config["process"]["user"]["uid"] = 1000


def unmapped_option(config: dict[str, Any]) -> None:
    config["mounts"][2]["options"].append("gid=5")


def less_oom(config: dict[str, Any]) -> None:
    config["process"]["oomScoreAdj"] = -1000


def a_machine(config: dict[str, Any]) -> None:
    config["annotations"] = {"org.pycontain.isolation": "vm"}


def bound(*options: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        mount = {"destination": "/mnt", "type": "none", "source": "/dev/shm", "options": list(options)}
        config["mounts"].append(mount)

    return change


def plain_sys(config: dict[str, Any]) -> None:
    config["mounts"][5]["options"][0] = "bind"


def more_files(config: dict[str, Any]) -> None:
    config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1 << 30, "hard": 1 << 30}]


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            no_user_namespace,
            f"$.linux.namespaces: found no user namespace: without one user {LONER}, who is not root, can make no container",
            "pycontain-runtime spec --rootless",
        ),
        (another_user, "$.process.user.uid: found 1000, but the user namespace has no uid 1000", ""),
        (unmapped_option, "$.mounts[2].options[5]: found gid=5, but the user namespace has no gid 5", ""),
        (
            change_(resources={"memory": {"limit": 1 << 26}}),
            "$.linux.resources.memory.limit: there is no cgroup that this user may set it in",
            HINT[7:-1],
        ),
        (
            change_(resources={"pids": {"limit": 0}, "cpu": {"shares": 2}, "devices": [{"allow": False}]}),
            "$.linux.resources.cpu.shares: there is no cgroup that this user may set it in",
            HINT[7:-1],
        ),
        (
            change_(cgroupsPath="/rl/x"),
            f"$.linux.cgroupsPath: user {LONER} cannot have cgroup /rl/x: {{cgroups}}: EACCES (permission denied)",
            HINT[7:-1],
        ),
        (
            less_oom,
            "cannot write '-1000' to /proc/self/oom_score_adj: write: EACCES (permission denied)",
            "without root $.process.oomScoreAdj can be raised, but not be less than it was",
        ),
        (a_machine, "a container in a machine of its own needs root: $.vm, or org.pycontain.isolation", ""),
        (
            bound("bind", "exec"),
            "cannot set /mnt exec: EPERM (operation not permitted)",
            "what the host has set (ro, nosuid, nodev, noexec, atime) a user namespace cannot take off a mount",
        ),
        (
            plain_sys,
            "cannot take /sys for mount 0: EINVAL (invalid argument)",
            'something is mounted below it, which a user namespace may not uncover: use "rbind"',
        ),
        (
            more_files,
            "cannot raise the hard limit of RLIMIT_NOFILE to 1073741824: setrlimit: EPERM (operation not permitted)",
            "without root a limit can be lowered, but not be raised above its hard value",
        ),
    ],
)
def test_refused(loner: User, change: Callable[[dict[str, Any]], None], message: str, hint: str) -> None:
    done = loner.runtime("run", "-b", loner.bundle(change=change), "rl-refused")
    mount = "/sys/fs/cgroup/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"
    expected = f"pycontain-runtime: {message.format(cgroups=mount)}\n" + (f"\nhint: {hint}\n" if hint else "")
    assert (done.returncode, done.stderr) == (1, expected)
    assert loner.ids() == []


def test_what_the_host_has_set_stays(loner: User) -> None:
    """noexec of the host's /dev/shm is locked: what is asked for is set, and it stays."""
    path = loner.bundle("grep", "/mnt ", "/proc/mounts", change=bound("rbind", "nosuid", "ro"))
    flags = loner.runtime("run", "-b", path, "rl-locked", check=True).stdout.split()[3].split(",")
    assert {"ro", "nosuid", "noexec"} <= set(flags)


def test_a_score_that_is_higher(loner: User) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["oomScoreAdj"] = 345

    pid = running(loner, "rl-oom", loner.bundle("sleep", "60", change=change))
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "345\n"
    process = loner.home / "process.json"
    process.write_text(json.dumps({"args": ["cat", "/proc/self/oom_score_adj"], "cwd": "/", "oomScoreAdj": 456}))
    assert loner.runtime("exec", "--process", process, "rl-oom", check=True).stdout == "456\n"


def test_no_place_for_the_state(loner: User) -> None:
    bundle = loner.bundle()
    environment = {"PATH": os.environ["PATH"]}
    usual = loner.runtime("run", "--keep", "-b", bundle, "rl-usual", env=environment)
    assert usual.returncode == 0, usual.stderr
    assert loner.ids() == ["rl-usual"]  # /run/user/UID
    loner.users.root("mv", f"/run/user/{LONER}", "/run/user/gone")
    try:
        done = loner.runtime("list", env=environment)
    finally:
        loner.users.root("mv", "/run/user/gone", f"/run/user/{LONER}")
    assert done.stderr == (
        f"pycontain-runtime: there is no place for the state of user {LONER}'s containers: "
        f"XDG_RUNTIME_DIR is not set, and /run/user/{LONER} is not a directory of this user\n"
        "\nhint: export XDG_RUNTIME_DIR=DIR, or pycontain-runtime --root DIR\n"
    )
    assert loner.runtime("--root", loner.home / "state", "list", env=environment, check=True).stdout.startswith("ID")


def test_the_option(loner: User) -> None:
    bundle = loner.bundle("echo", "ran")
    for option in ("--rootless=auto", "--rootless=true"):
        assert loner.runtime(option, "run", "-b", bundle, "rl-option", check=True).stdout == "ran\n"
    refused = loner.runtime("--rootless=false", "run", "-b", bundle, "rl-option")
    assert refused.stderr.startswith(f"pycontain-runtime: --rootless=false: user {LONER} cannot have cgroup /")
    nonsense = loner.runtime("--rootless", "maybe", "list")
    assert nonsense.stderr == "pycontain-runtime: --rootless: found 'maybe', wanted auto, true or false\n"


# ---- cgroups of the user's own


@pytest.fixture
def delegated(user: User) -> Iterator[Path]:
    """A cgroup2 directory that root has given to the user, whose commands are run below it."""
    unified = Path("/sys/fs/cgroup/unified") if os.path.isdir("/sys/fs/cgroup/unified") else Path("/sys/fs/cgroup")
    given = unified / f"pycontain-rl-{os.getpid()}"
    (given / "session").mkdir(parents=True)
    for path in (given, given / "session"):
        os.chown(path, UID, UID)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(path / name, UID, UID)
    user.cgroup = str(given / "session")
    yield given
    user.clean()
    user.cgroup = ""
    (given / "session").rmdir()
    given.rmdir()  # nothing of the containers is left in it


def test_a_cgroup_that_was_given(user: User, delegated: Path) -> None:
    pid = running(user, "rl-given", user.bundle(*script("sleep 600 & exec sleep 601"), ranges=True))
    made = delegated / "pycontain-rl-given"  # beside the session's
    assert str(pid) in (made / "cgroup.procs").read_text().split()
    wait_for(lambda: len((made / "cgroup.procs").read_text().split()) == 2)
    pids = sorted(map(int, (made / "cgroup.procs").read_text().split()))
    assert json.loads(user.runtime("ps", "--format", "json", "rl-given", check=True).stdout) == pids
    user.runtime("pause", "rl-given", check=True)
    assert "frozen 1" in (made / "cgroup.events").read_text()
    assert user.state("rl-given")["status"] == "paused"
    user.runtime("resume", "rl-given", check=True)
    assert "frozen 0" in (made / "cgroup.events").read_text()
    user.runtime("exec", "-d", "--pid-file", user.home / "exec", "rl-given", "sleep", "602", check=True)
    assert (user.home / "exec").read_text() in (made / "cgroup.procs").read_text().split()
    user.runtime("kill", "--all", "rl-given", "KILL", check=True)
    wait_for(lambda: user.state("rl-given")["status"] == "stopped")
    user.runtime("delete", "rl-given", check=True)
    assert not made.exists()


def test_a_cgroup_by_its_path(user: User, delegated: Path) -> None:
    for path, place in ((f"/{delegated.name}/a/b", "a/b"), ("below", "below")):
        pid = running(user, "rl-path", user.bundle("sleep", "600", change=change_(cgroupsPath=path)))
        assert (delegated / place / "cgroup.procs").read_text().split() == [str(pid)]
        user.runtime("delete", "--force", "rl-path", check=True)
        assert not (delegated / place).exists()
    (delegated / "a").rmdir()  # parents stay, as they may be others'
    done = user.runtime("run", "-b", user.bundle(change=change_(cgroupsPath="/rl-elsewhere")), "rl-path")
    assert done.stderr == (
        f"pycontain-runtime: $.linux.cgroupsPath: user {UID} cannot have cgroup /rl-elsewhere: {delegated.parent}: "
        f"EACCES (permission denied)\n{HINT}"
    )


@pytest.mark.parametrize("own", [True, False])
def test_given_cgroups_are_not_the_containers(user: User, delegated: Path, own: bool) -> None:
    """CVE-2023-25809: what the user may write below /sys/fs/cgroup, the container could, through a bind of /sys."""
    where = str(delegated)

    def change(config: dict[str, Any]) -> None:
        config["mounts"][5]["options"].remove("ro")
        del config["mounts"][6]  # no cgroup mount: what /sys brings along is in sight
        if not own:
            config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]

    assert user("mkdir", f"{where}/try").returncode == 0 and user("rmdir", f"{where}/try").returncode == 0
    path = user.bundle(*script(f"ls {where}/session/cgroup.procs && mkdir {where}/made; echo $?"), change=change)
    done = user.runtime("run", "-b", path, "rl-25809", check=True)
    assert done.stdout.splitlines() == [f"{where}/session/cgroup.procs", "1"]
    assert "Read-only file system" in done.stderr
    assert not (delegated / "made").exists()


def test_a_cgroup_namespace_of_its_own_may_be_written(user: User, delegated: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["mounts"][6]["options"].remove("ro")

    top = "/sys/fs/cgroup" if delegated.parent.name == "cgroup" else "/sys/fs/cgroup/unified"
    path = user.bundle(*script(f"mkdir {top}/inner && ls -d {top}/inner && rmdir {top}/inner"), change=change)
    assert user.runtime("run", "-b", path, "rl-cgroupns", check=True).stdout == f"{top}/inner\n"


# ---- root of a user namespace


@pytest.fixture
def fake(user: User) -> User:
    """Root of a user namespace that the user has made, with mounts of its own: where podman starts a runtime."""
    user.prefix = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount", "--propagation", "private"]
    return user


def podmans(config: dict[str, Any]) -> None:
    """The user namespace is the caller's; the network is new."""
    namespaces = [n for n in config["linux"]["namespaces"] if n["type"] != "user"]
    config["linux"]["namespaces"] = [*namespaces, {"type": "network"}]
    del config["linux"]["uidMappings"], config["linux"]["gidMappings"]
    config["mounts"][5] = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]}
    config["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}]
    config["process"]["user"] = {"uid": 33, "gid": 34, "additionalGids": [35]}


def test_fake_root(fake: User) -> None:
    text = "id -u; id -G; cat /proc/self/uid_map; stat -c %t:%T /dev/null /dev/fuse; ls /sys/class/net; grep ' /sys ' /proc/mounts"
    done = fake.runtime("run", "-b", fake.bundle(*script(text), change=podmans), "rl-fake", check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["33", "34 35"]
    assert [line.split()[:2] for line in lines[2:4]] == [["0", str(UID)], ["1", str(FIRST)]]
    assert lines[4:7] == ["1:3", "a:e5", "lo"]
    assert lines[7].startswith("sysfs /sys sysfs ro,nosuid")
    assert done.stderr == ""


def test_the_life_of_fake_roots_container(fake: User) -> None:
    """All verbs in one user namespace, as podman's are."""
    path = fake.bundle("sleep", "600", change=podmans)
    runtime = " ".join(COMMAND)
    text = f"""
        {runtime} create -b {path} rl-fake && {runtime} start rl-fake && {runtime} ps --format json rl-fake &&
        {runtime} exec rl-fake id -G && {runtime} exec --user 0 rl-fake cat /proc/self/oom_score_adj &&
        {runtime} kill rl-fake KILL && sleep 0.3 && {runtime} delete rl-fake && {runtime} list -q
    """
    done = fake(*script(text), check=True)
    lines = done.stdout.splitlines()
    assert json.loads(lines[0]) and lines[1:3] == ["34 35", "0"] and len(lines) == 3


def test_a_user_namespace_in_a_user_namespace(fake: User) -> None:
    """As podman's --userns=keep-id: fake root may map what it has, with its own hand."""

    def change(config: dict[str, Any]) -> None:
        maps = [{"containerID": 0, "hostID": 1, "size": 1000}, {"containerID": 1000, "hostID": 0, "size": 1}]
        config["linux"].update(uidMappings=maps, gidMappings=maps)
        config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5]}
        config["process"]["oomScoreAdj"] = 77

    text = "id -u; id -G; cat /proc/self/oom_score_adj; cat /proc/self/uid_map"
    done = fake.runtime("run", "-b", fake.bundle(*script(text), change=change), "rl-nested", check=True)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["1000", "1000 5", "77"]
    assert [line.split() for line in lines[3:]] == [["0", "1", "1000"], ["1000", "0", "1"]]


def test_the_hosts_sys_where_the_network_is_the_hosts(fake: User) -> None:
    def change(config: dict[str, Any]) -> None:
        podmans(config)
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] not in ("network", "ipc")]
        config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/dev/mqueue"]

    done = fake.runtime("run", "-b", fake.bundle("ls", "/sys/class/net", change=change), "rl-hostnet", check=True)
    assert sorted(done.stdout.split()) == sorted(os.listdir("/sys/class/net"))


def test_no_user_namespaces_for_users(user: User) -> None:
    """user.max_user_namespaces is a user namespace's own: another one that forbids them stands for such a host."""
    user.prefix = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount"]
    text = f"echo 0 >/proc/sys/user/max_user_namespaces && exec {' '.join(COMMAND)} run -b {user.bundle()} rl-nouserns"
    done = user(*script(text))
    assert done.stderr == (
        "pycontain-runtime: cannot clone the first process into new namespaces: user,mount,uts,ipc,pid: "
        "ENOSPC (no space left on device)\n"
        "\nhint: this host lets users have no user namespaces: sysctl -w user.max_user_namespaces=28633\n"
    )
    assert user.ids() == []


def test_a_clock_of_its_own(loner: User) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "time"})
        config["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000_000}}

    done = loner.runtime("run", "-b", loner.bundle("cat", "/proc/uptime", change=change), "rl-time")
    if parse_release(os.uname().release) < (6, 2):  # there execve does not take a process into its children's
        assert done.stderr.endswith("a new time namespace beside a new user namespace wants Linux 6.2\n")
    else:
        assert float(done.stdout.split()[0]) > 1e9, done.stderr


@pytest.mark.needs("cgroup2")
def test_limits_in_a_given_cgroup(user: User, delegated: Path) -> None:
    """Where root has given the controllers along with the directory, they limit."""
    (delegated.parent / "cgroup.subtree_control").write_text("+memory +pids +cpu")

    def change(config: dict[str, Any]) -> None:
        config["linux"]["resources"] = {
            "memory": {"limit": 32 << 20},
            "pids": {"limit": 20},
            "cpu": {"quota": 50_000, "period": 100_000},
            "devices": [{"allow": False, "access": "rwm"}],
        }

    pid = running(user, "rl-limits", user.bundle("sleep", "600", change=change))
    made = delegated / "pycontain-rl-limits"
    assert (made / "cgroup.procs").read_text().split() == [str(pid)]
    assert [(made / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")] == [
        str(32 << 20), "20", "50000 100000",
    ]  # fmt: skip
    assert user.runtime("exec", "rl-limits", *script("dd if=/dev/zero of=/dev/shm/x bs=1M count=48; exit 3")).returncode
    assert "oom_kill 0\n" not in (made / "memory.events").read_text()


def test_sources_that_only_the_user_may_reach(user: User) -> None:
    """The container's root is somebody else to the host; what is bound is taken by the user."""
    (user.home / "secret/shared").mkdir(parents=True)
    (user.home / "secret/shared/file").write_text("of the user")
    (user.home / "secret").chmod(0o700)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", user.home / "secret"], check=True)

    def change(config: dict[str, Any]) -> None:
        for key in ("uidMappings", "gidMappings"):
            config["linux"][key] = [{"containerID": 0, "hostID": FIRST, "size": COUNT}]
        config["mounts"].append({"destination": "/mnt", "source": str(user.home / "secret/shared"), "options": ["bind"]})

    done = user.runtime("run", "-b", user.bundle(*script("id -u; cat /mnt/file"), change=change), "rl-secret")
    assert done.stdout.split()[:1] == ["0"] and done.stdout.endswith("of the user"), done.stderr


@pytest.mark.needs("cgroup1")
def test_given_hierarchies_of_v1(user: User) -> None:
    """Of the hierarchies of cgroup v1 those are used that were given."""
    name = f"pycontain-rl-{os.getpid()}"
    given = [Path("/sys/fs/cgroup", kind, name) for kind in ("pids", "freezer")]
    for path in given:
        path.mkdir()
        os.chown(path, UID, UID)
    try:
        change = change_(cgroupsPath=f"/{name}/x", resources={"pids": {"limit": 20}})
        pid = running(user, "rl-v1", user.bundle("sleep", "600", change=change))
        for path in given:
            assert (path / "x/cgroup.procs").read_text().split() == [str(pid)]
        assert (given[0] / "x/pids.max").read_text() == "20\n"
        user.runtime("pause", "rl-v1", check=True)
        assert (given[1] / "x/freezer.state").read_text() == "FROZEN\n"
        user.runtime("resume", "rl-v1", check=True)
        user.runtime("delete", "--force", "rl-v1", check=True)
        lacking = change_(cgroupsPath=f"/{name}/x", resources={"memory": {"limit": 1 << 26}})
        done = user.runtime("run", "-b", user.bundle(change=lacking), "rl-v1")
        assert done.stderr.startswith("pycontain-runtime: $.linux.resources.memory.limit: "), done.stderr
        assert not any((path / "x").exists() for path in given)
    finally:
        user.clean()
        for path in given:
            path.rmdir()


def test_root_looks_after_a_users_container(user: User) -> None:
    running(user, "rl-ours", user.bundle("sleep", "600", ranges=True))
    root = [*COMMAND, "--root", user.root]
    assert user.users.root(*root, "exec", "--user", "5:6", "rl-ours", "id", "-u").stdout == "5\n"
    done = user.users.root(*root, "delete", "--force", "rl-ours")
    assert (done.returncode, done.stderr) == (0, "")
    assert user.ids() == []


def test_memory_that_is_not_executable_by_itself(loner: User) -> None:
    """vm.memfd_noexec, a pid namespace's own: init is said to be a program."""
    if not os.path.exists("/proc/sys/vm/memfd_noexec"):
        pytest.skip("needs Linux 6.3: no /proc/sys/vm/memfd_noexec")
    path = loner.bundle("echo", "ran")
    runtime = [*COMMAND, "--root", loner.root, "run", "-b", path, "rl-memfd"]
    become = ["setpriv", f"--reuid={LONER}", f"--regid={LONER}", "--clear-groups"]

    def run(value: int) -> subprocess.CompletedProcess[str]:
        text = f'echo {value} >/proc/sys/vm/memfd_noexec && exec "$@"'
        apart = ["unshare", "--pid", "--fork", "--mount", "--mount-proc"]
        return loner.users.root(*apart, *script(text), "sh", *become, *runtime)

    assert run(1).stdout == "ran\n"
    assert run(2).stderr == (
        "pycontain-runtime: cannot hold pycontain-init in memory: EACCES (permission denied)\n"
        "\nhint: sysctl -w vm.memfd_noexec=1\n"
    )


def test_the_agent_gets_the_filters_listener(user: User) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(user.home / "agent"))
        os.chown(user.home / "agent", UID, UID)
        agent.listen()
        rule = {"names": ["swapon"], "action": "SCMP_ACT_NOTIFY"}
        filter_ = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(user.home / "agent"), "syscalls": [rule]}

        def change(config: dict[str, Any]) -> None:
            config["linux"]["seccomp"] = filter_
            config["process"]["user"] = {"uid": 1000, "gid": 1000}

        user.runtime("run", "-b", user.bundle("true", change=change, ranges=True), "rl-notify", check=True)
        with agent.accept()[0] as connection:
            data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 1)
    os.unlink(user.home / "agent")
    assert json.loads(data)["state"]["id"] == "rl-notify"
    assert os.readlink(f"/proc/self/fd/{fds[0]}") == "anon_inode:seccomp notify"
    os.close(fds[0])


def test_a_score_in_a_user_namespace_of_roots(user: User) -> None:
    def change(config: dict[str, Any]) -> None:
        for key in ("uidMappings", "gidMappings"):
            config["linux"][key] = [{"containerID": 0, "hostID": FIRST, "size": COUNT}]
        config["process"]["oomScoreAdj"] = 123

    name = f"rl-roots-{os.getpid()}"
    process = user.home / "process.json"
    process.write_text(json.dumps({"args": ["cat", "/proc/self/oom_score_adj"], "cwd": "/", "oomScoreAdj": 124}))
    runtime = [*COMMAND, "--root", user.home / "roots"]
    user.bundle("sleep", "600", change=change)
    start = [*runtime, "run", "--detach", "-b", user.home / "bundle", name]
    assert user.users.root(*script('exec "$@" >/dev/null 2>&1'), "sh", *start).returncode == 0
    try:
        pid = json.loads(user.users.root(*runtime, "state", name).stdout)["pid"]
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "123\n"
        assert user.users.root(*runtime, "exec", "--process", process, name).stdout == "124\n"
    finally:
        user.users.root(*runtime, "delete", "--force", name)


def test_sources_that_only_root_may_reach(user: User) -> None:
    folder = user.home / "roots-own"
    (folder / "shared").mkdir(parents=True, exist_ok=True)
    (folder / "shared/file").write_text("of root")
    folder.chmod(0o700)

    def change(config: dict[str, Any]) -> None:
        for key in ("uidMappings", "gidMappings"):
            config["linux"][key] = [{"containerID": 0, "hostID": FIRST, "size": COUNT}]
        config["mounts"].append({"destination": "/mnt", "source": str(folder / "shared"), "options": ["rbind", "ro"]})

    path = user.bundle("cat", "/mnt/file", change=change)
    done = user.users.root(*COMMAND, "--root", user.home / "roots", "run", "-b", path, f"rl-source-{os.getpid()}")
    assert (done.stdout, done.stderr) == ("of root", "")
