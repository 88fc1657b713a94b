"""Mounts, ids and propagation as the specification has them, read back from the kernel by the container's own tools
and by this host's (mountinfo, stat, findmnt), never by what made them."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, Runtime, make_rootfs, write_bundle

pytestmark = pytest.mark.needs("root")
Change = Callable[[dict[str, Any]], object]
MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A directory that a user namespace's root can reach, and pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="pycontain-mounts-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture(scope="module")
def rootfs(public: Path) -> Path:
    return make_rootfs(public / "rootfs")


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    found = Runtime(tmp_path / "state")
    yield found
    found.clean()


class Box:
    """One container of a rootfs, with mounts; ``run`` gives what it wrote."""

    def __init__(self, runtime: Runtime, rootfs: Path, path: Path) -> None:
        self.runtime, self.rootfs, self.path = runtime, rootfs, path
        self.count = 0

    def bundle(self, script: str, *mounts: dict[str, Any], change: Change | None = None) -> Path:
        def both(config: dict[str, Any]) -> None:
            config["mounts"] += mounts
            config["root"]["readonly"] = False
            if change is not None:
                change(config)

        return write_bundle(self.path / "bundle", self.rootfs, "sh", "-c", script, change=both)

    def __call__(self, script: str, *mounts: dict[str, Any], change: Change | None = None, check: bool = True) -> Any:
        self.count += 1
        bundle = self.bundle(script, *mounts, change=change)
        return self.runtime("run", "-b", bundle, f"mnt-{os.getpid()}-{self.count}", check=check)

    def mountinfo(self, *mounts: dict[str, Any], change: Change | None = None) -> dict[str, tuple[set[str], list[str]]]:
        """mount point → (flags of the mount, its optional fields: propagation) of the topmost mount there."""
        found = {}
        for line in self("cat /proc/self/mountinfo", *mounts, change=change).stdout.splitlines():
            fields = line.split(" - ")[0].split()
            found[fields[4]] = (set(fields[5].split(",")), fields[6:])
        return found


@pytest.fixture
def box(runtime: Runtime, rootfs: Path, tmp_path: Path) -> Box:
    return Box(runtime, rootfs, tmp_path)


def bind(source: object, target: str, *options: str, **more: Any) -> dict[str, Any]:
    return {"destination": target, "source": str(source), "options": list(options), **more}


def tmpfs(target: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def userns(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"].update(uidMappings=MAPS, gidMappings=MAPS)


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A directory with another mount below it: what recursive options are about."""
    outer = tmp_path / "outer"
    for path in (outer, outer / "inner"):
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "mnt-test", path], check=True)
    yield outer
    subprocess.run(["umount", "-R", outer], check=True)


def eventually(read: Callable[[], str], wanted: str) -> str:
    deadline = time.monotonic() + 20
    while wanted not in (text := read()):
        assert time.monotonic() < deadline, text
        time.sleep(0.01)
    return text


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("rro", "ro"), ("rnosuid", "nosuid"), ("rnodev", "nodev"), ("rnoexec", "noexec"), ("rnoatime", "noatime"),
        ("rnodiratime", "nodiratime"), ("rnosymfollow", "nosymfollow"), ("rrelatime", "relatime"),
    ],
)  # fmt: skip
def test_recursive_options_reach_what_is_below(box: Box, nested: Path, option: str, flag: str) -> None:
    found = box.mountinfo(bind(nested, "/v", "rbind", option), bind(nested, "/w", "rbind", option[1:]))
    assert flag in found["/v"][0] and flag in found["/v/inner"][0]
    assert flag in found["/w"][0]
    assert (flag in found["/w/inner"][0]) == (flag == "relatime")


def test_recursive_options_that_take_away(box: Box, nested: Path) -> None:
    for path in (nested, nested / "inner"):
        options = "remount,bind,ro,nosuid,nodev,noexec,noatime,nodiratime"
        subprocess.run(["mount", "-o", options, path], check=True)
    away = ("rrw", "rsuid", "rdev", "rexec", "rstrictatime", "rdiratime", "rsymfollow")
    found = box.mountinfo(bind(nested, "/v", "rbind", *away), bind(nested, "/w", "rbind", *(o[1:] for o in away)))
    for path in ("/v", "/v/inner", "/w"):
        assert found[path][0] == {"rw"}
    assert found["/w/inner"][0] == {"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"}
    found = box.mountinfo(bind(nested, "/v", "rbind", "rnostrictatime", "ratime", "rnorelatime"))
    assert "relatime" in found["/v/inner"][0]  # none of the three names another: the kernel's default


def test_remount(box: Box, tmp_path: Path) -> None:
    mounts = [
        tmpfs("/sb", "nosuid", "size=1m"), tmpfs("/sb", "remount", "ro", "size=2m"),
        bind(tmp_path, "/vfs", "bind", "nodev"), bind(tmp_path, "/vfs", "remount", "bind", "ro"),
    ]  # fmt: skip
    out = box("grep -E ' /(sb|vfs) ' /proc/self/mountinfo", *mounts).stdout.splitlines()
    assert len(out) == 2  # nothing was mounted a second time
    head, _, superblock = out[0].partition(" - ")
    assert set(head.split()[5].split(",")) >= {"ro", "nosuid"}  # what is not named stays
    assert {"ro", "size=2048k"} <= set(superblock.split()[2].split(","))
    assert {"ro", "nodev"} <= set(out[1].split()[5].split(","))
    done = box("true", tmpfs("/sb"), tmpfs("/sb", "remount", "size=nonsense"), check=False)
    assert done.returncode and "cannot remount /sb: size=nonsense: tmpfs: Bad value for 'size'" in done.stderr


def test_what_a_file_system_does_not_know_is_an_error(box: Box) -> None:
    done = box("true", tmpfs("/x", "frobnicate=1"), check=False)
    assert done.returncode
    assert "cannot mount tmpfs (tmpfs) on /x: frobnicate=1: mount: EINVAL (invalid argument)" in done.stderr


def test_a_relative_destination_is_below_the_root(box: Box) -> None:
    assert "/rel/x" in box.mountinfo(tmpfs("rel/x"))


def test_links_as_sources(box: Box, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("/nowhere/at all")
    (tmp_path / "good").symlink_to(tmp_path / "file")
    mounts = [
        bind(tmp_path / "link", "/run/copied/link", "bind", "copy-symlink"),
        bind(tmp_path / "file", "/run/plain", "bind", "copy-symlink"),
        bind(tmp_path / "good", "/run/followed", "bind"),
        bind(tmp_path / "link", "/run/itself", "bind", "src-nofollow"),
    ]
    script = "readlink /run/copied/link; cat /run/plain; echo; cat /run/followed; echo; readlink /run/itself"
    out = box(script, tmpfs("/run"), *mounts).stdout.splitlines()
    assert out == ["/nowhere/at all", "content", "content", "/nowhere/at all"]
    (self_made := box.rootfs / "etc/there").write_text("image's")
    done = box("true", bind(tmp_path / "link", "/etc/there", "bind", "copy-symlink"), check=False)
    assert "something else is there than the link to copy: EEXIST" in done.stderr
    self_made.unlink()


def test_tmpcopyup_copies_what_is_there(box: Box, tmp_path: Path) -> None:
    tree = box.rootfs / "tree"
    (tree / "a/b").mkdir(parents=True)
    os.chown(tree, 5, 6)
    os.chmod(tree, 0o1755)
    (tree / "a/file").write_bytes(b"x" * 100_000)
    os.chown(tree / "a/file", 7, 8)
    os.chmod(tree / "a/file", 0o4751)
    os.setxattr(tree / "a/file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(tree / "a/b", "user.note", b"kept")
    os.utime(tree / "a/file", (1000, 2000))
    (tree / "out").symlink_to("/etc/shadow")
    os.mkfifo(tree / "fifo")
    os.chmod(tree / "fifo", 0o622)
    os.mknod(tree / "null", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket"))
    with open(tree / "sparse", "wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"island")
    script = (
        "cd /tree; stat -c '%n %F %a %u %g %s %Y' . a a/file out fifo null socket | sort; readlink out;"
        " stat -c '%s' sparse; du -k sparse | cut -f1; dd if=sparse bs=4096 skip=134217728 count=1 2>/dev/null | head -c 6;"
        " echo; sleep 30"
    )
    try:
        bundle = box.bundle(script, tmpfs("/tree", "tmpcopyup", "size=1m", "nodev", "ro"))
        with open(tmp_path / "out", "w") as out:
            box.runtime("create", "-b", bundle, "mnt-copy", check=True, stdout=out)
        box.runtime("start", "mnt-copy", check=True)
        pid = box.runtime.state("mnt-copy")["pid"]
        text = eventually(lambda: (tmp_path / "out").read_text(), "island\n")
        inside = Path(f"/proc/{pid}/root/tree")
        assert os.getxattr(inside / "a/b", "user.note") == b"kept"
        assert os.getxattr(inside / "a/file", "security.capability")[4:8] == bytes.fromhex("00040000")
        assert (inside / "a/file").read_bytes() == b"x" * 100_000
        with pytest.raises(OSError, match="Read-only"):
            (inside / "a/new").touch()
        lines = text.splitlines()
        when = {line.split()[0]: line.rpartition(" ")[0] for line in lines if line.count(" ") > 4}
        assert when["."] == ". directory 1755 5 6 160"
        assert "a/file regular file 4751 7 8 100000 2000" in lines
        assert when["out"].startswith("out symbolic link 777 0 0")
        assert when["fifo"] == "fifo fifo 622 0 0 0"
        assert when["null"] == "null character special file 640 0 0 0"
        assert when["socket"].startswith("socket socket ")
        assert lines[-4:] == ["/etc/shadow", str(1 << 40), "4", "island"]
        assert (tree / "fifo").is_fifo()  # the image's own are as they were
    finally:
        subprocess.run(["rm", "-rf", tree], check=True)


def test_tmpcopyup_ends_with_the_tmpfs(box: Box) -> None:
    tree = box.rootfs / "bomb"
    tree.mkdir()
    try:
        (tree / "big").write_bytes(b"x" * (3 << 20))
        done = box("true", tmpfs("/bomb", "tmpcopyup", "size=1m"), check=False)
        assert done.returncode
        assert "cannot mount tmpfs (tmpfs) on /bomb with a copy of what is there: size=1m: sendfile: ENOSPC" in done.stderr
        deep = tree / "/".join(["d"] * 130)
        deep.mkdir(parents=True)
        (tree / "big").unlink()
        done = box("true", tmpfs("/bomb", "tmpcopyup"), check=False)
        assert "tmpcopyup: directories more than 128 deep: ELOOP" in done.stderr
    finally:
        subprocess.run(["rm", "-rf", tree], check=True)


@contextlib.contextmanager
def other(*options: str) -> Iterator[tuple[int, str]]:
    """A process in namespaces of its own: its pid, and where the first of them is to be found."""
    kind = {"--user": "user", "--mount": "mnt", "--ipc": "ipc", "--uts": "uts", "--net": "net", "--pid": "pid_for_children"}
    path, own = "", "/proc/self/ns/" + kind[options[0]]
    holder = subprocess.Popen(["unshare", *options, "--fork" if options[0] == "--pid" else "--", "sleep", "60"])
    try:
        path = f"/proc/{holder.pid}/ns/{kind[options[0]]}"
        while os.readlink(path) == os.readlink(own):
            time.sleep(0.01)
        yield holder.pid, path
    finally:
        holder.kill()
        holder.wait()


@pytest.fixture
def owned(public: Path) -> Iterator[Path]:
    """A tmpfs (its ids can be mapped) with files of users 0 and 1000, and a mount below it."""
    path = public / "owned"
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "mnt-test", path], check=True)
    (path / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "mnt-test", path / "below"], check=True)
    for at in (path, path / "below"):
        (at / "root").touch()
        (at / "user").touch()
        os.chown(at / "user", 1000, 1001)
    yield path
    subprocess.run(["umount", "-R", path], check=True)


SEEN = "cd /v; stat -c '%n %u:%g' root user below/root below/user; touch new; stat -c '%u:%g' new"


def test_ids_mapped_as_the_mount_says(box: Box, owned: Path) -> None:
    maps: dict[str, Any] = {
        "uidMappings": [{"containerID": 0, "hostID": 7000, "size": 500}, {"containerID": 1000, "hostID": 0, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": 8000, "size": 2000}, {"containerID": 5000, "hostID": 0, "size": 1}],
    }
    out = box(SEEN, bind(owned, "/v", "rbind", "idmap", **maps)).stdout.split("\n")
    assert out[:5] == ["root 7000:8000", "user 0:9001", "below/root 0:0", "below/user 1000:1001", "0:0"]
    new = (owned / "new").stat()
    assert (new.st_uid, new.st_gid) == (1000, 5000)  # root of the container is user 1000 of the file system
    out = box(SEEN, bind(owned, "/v", "rbind", "ridmap", **maps)).stdout.split("\n")
    assert out[:4] == ["root 7000:8000", "user 0:9001", "below/root 7000:8000", "below/user 0:9001"]
    out = box(SEEN, bind(owned, "/v", "rbind", **maps)).stdout.split("\n")
    assert out[:2] == ["root 7000:8000", "user 0:9001"]
    out = box(SEEN, bind(owned, "/v", "rbind", "idmap=uids=0-7000-500#1000-0-1;gids=0-8000-2000")).stdout.split("\n")
    assert out[:2] == ["root 7000:8000", "user 0:9001"]


def test_ids_mapped_as_the_container_has_them(box: Box, owned: Path) -> None:
    out = box(SEEN, bind(owned, "/v", "rbind", "ridmap"), change=userns).stdout.split("\n")
    assert out[:5] == ["root 0:0", "user 1000:1001", "below/root 0:0", "below/user 1000:1001", "0:0"]
    assert (owned / "new").stat().st_uid == 0
    out = box(SEEN.replace("touch new; stat -c '%u:%g' new", ""), bind(owned, "/v", "rbind"), change=userns).stdout
    assert out.split("\n")[0] == "root 65534:65534"  # without a map its owner is nobody


def test_what_cannot_be_mapped_says_so(box: Box, owned: Path) -> None:
    """Of a mount that is mapped already the kernel maps no ids again."""
    mounts = [bind("/proc", "/v", "bind", "idmap", uidMappings=MAPS, gidMappings=MAPS)]
    done = box("true", *mounts, change=lambda c: c["linux"].pop("maskedPaths"), check=False)
    assert done.returncode
    assert (
        "cannot take /proc for mount 0, its ids mapped: users 0 100000 65536, groups 0 100000 65536: EINVAL (invalid argument)"
        in done.stderr
    )


def test_a_joined_user_namespace_maps_too(box: Box, owned: Path) -> None:
    with other("--user") as (pid, path):
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 100000 65536\n")

        def join(config: dict[str, Any]) -> None:
            config["linux"]["namespaces"].append({"type": "user", "path": path})

        script = "readlink /proc/self/ns/user; cat /proc/self/uid_map; id -u; cat /dev/null; " + SEEN
        out = box(script, bind(owned, "/v", "rbind", "ridmap"), change=join).stdout.split("\n")
        assert out[0] == os.readlink(path)
        assert out[1].split() == ["0", "100000", "65536"] and out[2] == "0"
        assert out[3:8] == ["root 0:0", "user 1000:1001", "below/root 0:0", "below/user 1000:1001", "0:0"]


# ---- the root's propagation: four kinds, each of this mount or of all below it




@pytest.mark.parametrize("kind", ["private", "slave", "shared", "unbindable"])
@pytest.mark.parametrize("recursive", ["", "r"])
def test_propagation_of_the_root(box: Box, kind: str, recursive: str) -> None:
    found = box.mountinfo(
        tmpfs("/below"), change=lambda c: c["linux"].update(rootfsPropagation=recursive + kind)
    )  # fmt: skip
    for path in ("/", "/below"):
        optional = found[path][1]
        spread = kind if path == "/" or recursive else "private"
        if spread == "slave":  # of a host whose mounts are private it is the slave of nobody
            assert not any(field.startswith("shared") for field in optional)
        else:
            wanted = {"private": None, "shared": "shared:", "unbindable": "unbindable"}[spread]
            assert any(field.startswith(wanted) for field in optional) if wanted else not optional


SHARED_HOST = """
set -e
mount --make-rprivate /
mkdir -p {0}/host/vol {0}/host/plain
mount -t tmpfs mnt-test {0}/host
mount --make-shared {0}/host
mkdir {0}/host/vol {0}/host/rootfs {0}/host/plain
mount --rbind {1} {0}/host/rootfs
{2} --root {0}/state create -b {0}/bundle mnt-shared < /dev/null > {0}/out 2>&1
{2} --root {0}/state start mnt-shared
mkdir {0}/host/vol/late
mount -t tmpfs late {0}/host/vol/late
i=0; until grep -q done {0}/out; do sleep 0.05; i=$((i+1)); [ $i -lt 200 ]; done
grep ' - tmpfs inside ' /proc/self/mountinfo | cut -d' ' -f5
echo end
cat {0}/out
{2} --root {0}/state delete --force mnt-shared
grep -c {0}/host/rootfs /proc/self/mountinfo
"""


@pytest.mark.parametrize(("root", "option"), [("shared", "rshared"), ("rslave", "rshared"), ("rslave", "rslave"), ("private", "rslave")])
def test_what_the_host_and_the_container_see_of_each_others_mounts(
    box: Box, tmp_path: Path, root: str, option: str
) -> None:
    """A volume of a shared mount: with a shared root its rshared is a peer of the host's; nothing else ever reaches it."""

    def change(config: dict[str, Any]) -> None:
        config["root"] = {"path": str(tmp_path / "host/rootfs")}
        config["linux"]["rootfsPropagation"] = root
        config["process"]["capabilities"] = {k: ["CAP_SYS_ADMIN"] for k in ("bounding", "effective", "permitted")}
        config["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]

    script = (
        "mkdir -p /vol/in /other/in /in; mount -t tmpfs inside /vol/in; mount -t tmpfs inside /other/in; mount -t tmpfs inside /in;"
        " i=0; while [ $i -lt 40 ] && ! grep -q ' /vol/late ' /proc/self/mountinfo; do sleep 0.05; i=$((i+1)); done;"
        " grep -c ' /vol/late ' /proc/self/mountinfo; echo done; sleep 60"
    )
    host = tmp_path / "host"
    box.bundle(script, bind(host / "vol", "/vol", "rbind", option), bind(host / "plain", "/other", "rbind"), change=change)
    command = SHARED_HOST.format(tmp_path, box.rootfs, COMMAND[0])
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=60)
    here, _, there = done.stdout.partition("end\n")
    peers = (root, option) == ("shared", "rshared")
    assert here.split() == ([str(host / "vol/in")] if peers else []), done.stdout + done.stderr
    assert there.split()[:2] == ["0" if root == "private" else "1", "done"]
    assert there.split()[-1] == "1"  # the bind that this test has made


# ---- namespaces: of others, by their files, and none of its own


@pytest.mark.parametrize(
    ("kind", "option", "file"),
    [("ipc", "--ipc", "ipc"), ("uts", "--uts", "uts"), ("network", "--net", "net"), ("pid", "--pid", "pid"), ("mount", "--mount", "mnt")],
)
def test_a_namespace_that_is_joined(box: Box, kind: str, option: str, file: str) -> None:
    with other(option) as (_, path):
        def change(config: dict[str, Any]) -> None:
            for namespace in config["linux"]["namespaces"]:
                if namespace["type"] == kind:
                    namespace["path"] = path
            if kind == "uts":
                config.pop("hostname", None)

        out = box(f"readlink /proc/self/ns/{file}; cat /etc/os-release | head -1", change=change).stdout
        assert out.split("\n")[0] == os.readlink(path)


def test_a_namespace_of_another_type_is_refused(box: Box) -> None:
    def change(config: dict[str, Any]) -> None:
        next(n for n in config["linux"]["namespaces"] if n["type"] == "ipc")["path"] = "/proc/self/ns/uts"

    done = box("true", change=change, check=False)
    assert done.returncode
    assert "cannot join the ipc namespace through descriptor" in done.stderr and "EINVAL" in done.stderr


@pytest.mark.parametrize("joined", [False, True])
def test_exec_enters_the_root_of_a_container_that_shares_mounts(box: Box, joined: bool) -> None:
    """setns(2) leads to the root of the namespace, which is not the container's: it would be the host's files."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(other("--mount"))[1] if joined else ""

        def change(config: dict[str, Any]) -> None:
            spaces = [n for n in config["linux"]["namespaces"] if n["type"] != "mount"]
            config["linux"].update(namespaces=spaces, maskedPaths=[], readonlyPaths=[])
            config["mounts"] = [{"destination": "/proc", "type": "proc", "source": "proc"}] if joined else []
            if joined:
                spaces.append({"type": "mount", "path": path})

        (box.rootfs / "only-here").write_text("the container's")
        box.runtime("create", "-b", box.bundle("sleep 60", change=change), "mnt-exec", check=True)
        box.runtime("start", "mnt-exec", check=True)
        done = box.runtime("exec", "mnt-exec", "sh", "-c", "cat /only-here; pwd; [ -e /work -o -e /boot ] || echo; ls -d /..")
        assert (done.returncode, done.stdout.split("\n")[0]) == (0, "the container's/"), done.stderr
        box.runtime("delete", "--force", "mnt-exec", check=True)


def test_time_namespace_offsets(box: Box) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "time"})
        config["linux"]["timeOffsets"] = {"boottime": {"secs": 86400, "nanosecs": 5}, "monotonic": {"secs": -1}}

    out = box("cat /proc/self/timens_offsets /proc/uptime", change=change).stdout.splitlines()
    assert [line.split() for line in out[:2]] == [["monotonic", "-1", "0"], ["boottime", "86400", "5"]]
    outside = float(Path("/proc/uptime").read_text().split()[0])
    assert 86400 <= float(out[2].split()[0]) - outside + 60 < 86600


# ---- devices


def test_devices_are_exactly_those_asked_for(box: Box) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["devices"] = [
            {"path": "/dev/deep/er/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o604, "uid": 3, "gid": 4},
            {"path": "/srv/elsewhere", "type": "u", "major": 1, "minor": 3},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o640},
            {"path": "/dev/high", "type": "b", "major": 259, "minor": 1048575},
        ]

    script = "stat -c '%n %F %a %u %g %t:%T' /dev/deep/er/zero /srv/elsewhere /dev/pipe /dev/high"
    assert box(script, tmpfs("/srv"), change=change).stdout.splitlines() == [
        "/dev/deep/er/zero character special file 604 3 4 1:5",
        "/srv/elsewhere character special file 666 0 0 1:3",
        "/dev/pipe fifo 640 0 0 0:0",
        "/dev/high block special file 666 0 0 103:fffff",
    ]


@pytest.mark.parametrize("there", ["file", "device", "link"])
def test_something_else_in_the_place_of_a_device_is_an_error(box: Box, there: str) -> None:
    """config-linux.md, "Devices"; a default device takes its place."""
    for name in ("asked", "null"):
        path = box.rootfs / "dev" / name
        path.unlink(missing_ok=True)
        if there == "file":
            path.write_text("")
        elif there == "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        else:
            path.symlink_to("/etc/passwd")

    def change(config: dict[str, Any], asked: bool = True) -> None:
        config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/dev")]
        if asked:
            config["linux"]["devices"] = [{"path": "/dev/asked", "type": "c", "major": 1, "minor": 3}]

    done = box("true", change=change, check=False)
    assert done.returncode
    assert "cannot make character device 1:3 /dev/asked (mode 0666, owner 0:0): something else is there" in done.stderr
    out = box("stat -c %F.%t:%T /dev/null", change=lambda c: change(c, asked=False)).stdout
    assert out == "character special file.1:3\n"
    subprocess.run(["sh", "-c", f"rm -rf {box.rootfs}/dev/*"], check=True)
    assert "root" in (box.rootfs / "etc/passwd").read_text()


def test_devices_in_a_user_namespace_are_the_hosts(box: Box) -> None:
    def change(config: dict[str, Any], **more: Any) -> None:
        userns(config)
        config["linux"]["devices"] = [{"path": "/dev/ptmx0", "type": "p"}, {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, **more}]

    out = box("for d in null zero full random urandom tty kmsg; do stat -c '%n %F %t:%T' /dev/$d; done; echo > /dev/null", change=change)
    assert [line.split()[-1] for line in out.stdout.splitlines()] == ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "1:b"]
    done = box("true", change=lambda c: change(c, minor=12), check=False)
    assert "cannot bind the host's character device 1:12 /dev/kmsg: the host has another device there: ENODEV" in done.stderr
    done = box("true", change=lambda c: change(c, fileMode=0o7), check=False)
    assert "/dev/kmsg: the host's node has another mode: EPERM" in done.stderr
    done = box("true", change=lambda c: change(c, gid=5), check=False)
    assert done.stderr == (
        "pycontain-runtime: $.linux.devices[1].gid: in a user namespace the device is the host's node, with its owner\n"
    )


def test_the_image_has_a_link_for_its_dev(box: Box) -> None:
    """Wherever it leads, it leads inside."""
    dev = box.rootfs / "dev"
    dev.rename(box.rootfs / "dev.kept")
    (box.rootfs / "etc/real").mkdir(exist_ok=True)
    try:
        dev.symlink_to("../../../etc/real")
        out = box("readlink /dev; stat -c '%F %t:%T' /etc/real/null; [ -e /etc/real/pts/ptmx ] && echo pts").stdout
        assert out.splitlines() == ["../../../etc/real", "character special file 1:3", "pts"]
        assert not os.listdir(box.rootfs / "etc/real")
    finally:
        dev.unlink()
        (box.rootfs / "dev.kept").rename(dev)


def test_masked_and_read_only_paths(box: Box, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_text("secret")
    (tmp_path / "link").symlink_to("sub/file")

    def change(config: dict[str, Any]) -> None:
        config["linux"].update(maskedPaths=["/v/sub", "/w/link", "/not/there"], readonlyPaths=["/w/sub", "/not/there"])

    script = (
        "ls /v/sub | wc -l; touch /v/sub/x 2>&1; wc -c < /w/link; wc -c < /w/sub/file; touch /w/sub/y 2>&1; touch /w/z && echo ok"
    )
    out = box(script, bind(tmp_path, "/v", "bind"), bind(tmp_path, "/w", "bind"), change=change).stdout.splitlines()
    assert out == [
        "0", "touch: /v/sub/x: Read-only file system", "0", "0", "touch: /w/sub/y: Read-only file system", "ok",
    ]  # fmt: skip
    assert (tmp_path / "sub/file").read_text() == "secret"


@pytest.mark.parametrize("namespaced", [True, False])
def test_cgroups_in_the_container(box: Box, namespaced: bool) -> None:
    def change(config: dict[str, Any]) -> None:
        if not namespaced:
            config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]

    script = "cat /proc/self/cgroup; mkdir /sys/fs/cgroup/$(ls /sys/fs/cgroup | head -1)/x 2>&1; find /sys/fs/cgroup -name cgroup.procs -maxdepth 2 | xargs grep -c ."
    out = box(script, change=change).stdout
    assert "Read-only file system" in out or "Permission denied" in out
    paths = {line.split(":", 2)[2] for line in out.splitlines() if line[:1].isdigit() and line.count(":") >= 2}
    assert (paths == {"/"}) == namespaced
    counted = [line for line in out.splitlines() if "cgroup.procs:" in line]
    assert counted and all(int(line.rpartition(":")[2]) < 6 for line in counted)  # the container's own, not the host's


def test_sysctls_of_every_namespace(box: Box) -> None:
    wanted = {
        "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "12", "kernel.sem": "32\t64\t8\t16",
        "user.max_user_namespaces": "0", "net/ipv6/conf/lo/disable_ipv6": "1",
    }  # fmt: skip
    files = [f"/proc/sys/{key.replace('.', '/')}" for key in wanted]
    before = [Path(file).read_text() for file in files]

    def change(config: dict[str, Any]) -> None:
        userns(config)
        config["linux"]["sysctl"] = wanted

    assert box(f"cat {' '.join(files)}", change=change).stdout.splitlines() == list(wanted.values())
    assert [Path(file).read_text() for file in files] == before


def test_data_of_file_systems_and_their_flags(box: Box) -> None:
    mounts = [
        tmpfs("/t", "sync", "lazytime", "nr_inodes=77", "mode=711", "uid=5", "noatime", "silent", "defaults"),
        {"destination": "/proc2", "type": "proc", "source": "proc", "options": ["hidepid=invisible", "nosuid"]},
        {"destination": "/mq", "type": "mqueue", "source": "mqueue", "options": ["noexec"]},
        {"destination": "/pts2", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0622", "gid=7"]},
        {"destination": "/sys2", "type": "sysfs", "source": "sysfs", "options": ["ro", "rnodev", "private", "rslave"]},
    ]
    script = "grep -E ' /(t|proc2|mq|pts2|sys2) ' /proc/self/mountinfo; stat -c '%a %u' /t; stat -c %a /pts2/ptmx"
    lines = box(script, *mounts).stdout.splitlines()
    rows = {line.split()[4]: line.split(" - ") for line in lines if " - " in line}
    assert {"sync", "lazytime", "nr_inodes=77", "mode=711", "uid=5"} <= set(rows["/t"][1].split()[2].split(","))
    assert "noatime" in rows["/t"][0]
    assert "hidepid=invisible" in rows["/proc2"][1] and "nosuid" in rows["/proc2"][0]
    assert rows["/mq"][1].startswith("mqueue") and "noexec" in rows["/mq"][0]
    assert "gid=7" in rows["/pts2"][1]
    assert {"ro", "nodev"} <= set(rows["/sys2"][0].split()[5].split(","))
    assert lines[-2:] == ["711 5", "622"]
