"""Users who are not root, as the tests need them: known to /etc/passwd in a private mount namespace only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycontain.runtime.example import rootless
from tests.runtime_tools import COMMAND, REPOSITORY, make_rootfs

# Other ids than those of whoever runs these tests at the same time.
UID = 1_000_000 + os.getpid() % 100_000 * 2  # with a range in /etc/subuid and /etc/subgid
LONER = UID + 1  # without
FIRST, COUNT = (1 << 30) + os.getpid() % 10_000 * 65536, 65536

# $1: a directory that everybody may enter. The last line tells that all is there; the reader goes on reading.
_HOLDER = f"""
set -e
cd "$1"
mkdir -m 755 etc run
for name in passwd group; do cp /etc/$name etc/; done
printf 'tester:x:{UID}:{UID}::/:/bin/sh\\nloner:x:{LONER}:{LONER}::/:/bin/sh\\n' >>etc/passwd
printf 'tester:x:{UID}:\\nloner:x:{LONER}:\\n' >>etc/group
echo tester:{FIRST}:{COUNT} >etc/subuid
cp etc/subuid etc/subgid
for name in passwd group subuid subgid; do
    [ -e /etc/$name ] || touch /etc/$name
    mount --bind etc/$name /etc/$name
done
mount -o remount,noexec /dev/shm
for uid in {UID} {LONER}; do install -d -m 700 -o $uid -g $uid run/$uid; done
mkdir -p -m 755 /run/user
mount --bind run /run/user
echo ready
exec cat
"""


class Users:
    """A mount namespace with both users in it. ``home``: a directory that they may read, one below it for each."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="pycontain-rootless-", dir="/tmp"))
        self.home.chmod(0o755)
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HOLDER, "sh", str(self.home)]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.pid = self._holder.pid
        self._reveal()

    def _reveal(self) -> None:
        """The checkout may lie where only root may go: what is in its way is replaced by an empty directory."""
        closed = [path for path in REPOSITORY.resolve().parents if not path.stat().st_mode & 1]
        if closed:
            script = (
                'mkdir "$1/hold" && mount --bind "$2" "$1/hold" && mount -t tmpfs -o mode=755 tmpfs "$3" &&'
                ' mkdir -p "$2" && mount --move "$1/hold" "$2" && rmdir "$1/hold"'
            )
            done = self.root("sh", "-c", script, "sh", self.home, REPOSITORY.resolve(), closed[-1])
            assert done.returncode == 0, done.stderr

    def root(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command of root's in the mount namespace."""
        command = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=50, **options)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        for file in (self._holder.stdin, self._holder.stdout):
            assert file is not None
            file.close()
        shutil.rmtree(self.home)


class User:
    """One of the users: commands in that user's name, ``pycontain-runtime`` first of all."""

    def __init__(self, users: Users, uid: int = UID) -> None:
        self.users = users
        self.uid = uid
        self.home = users.home / str(uid)
        self.home.mkdir(mode=0o755)
        os.chown(self.home, uid, uid)
        self.root = users.home / f"run/{uid}/pycontain/oci"
        self.cgroup = ""  # the cgroup2 directory that commands are run in
        self.prefix: list[str] = []  # in front of each command

    def command(self, *args: object) -> list[str]:
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--inh-caps=-all"]
        enter = ["nsenter", f"--mount=/proc/{self.users.pid}/ns/mnt"]
        join = ["sh", "-c", f'echo 0 >{self.cgroup}/cgroup.procs; exec "$@"', "sh"] if self.cgroup else []
        return [*enter, *join, *become, *self.prefix, *map(str, args)]

    def __call__(self, *args: object, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command in the user's name. Output goes through files: a container that stays would hold a pipe open."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            environment = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
            environment["XDG_RUNTIME_DIR"] = str(self.users.home / f"run/{self.uid}")
            options = {"stdin": subprocess.DEVNULL, "timeout": 50, "env": environment, **options}
            done = subprocess.run(self.command(*args), text=True, stdout=out, stderr=err, **options)
            out.seek(0)
            err.seek(0)
            done.stdout, done.stderr = out.read(), err.read()
        if check and done.returncode:
            raise AssertionError(f"{args}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def runtime(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return self(*COMMAND, *args, **options)

    def state(self, id: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.runtime("state", id, check=True).stdout)
        return state

    def ids(self) -> list[str]:
        return os.listdir(self.root) if self.root.exists() else []

    def image(self) -> Path:
        """A root file system of the user's own."""
        path = self.home / "rootfs"
        if not path.exists():
            make_rootfs(path)
            subprocess.run(["chown", "-hR", f"{self.uid}:{self.uid}", path], check=True)
        return path

    def bundle(self, *args: str, change: Callable[[dict[str, Any]], object] | None = None, ranges: bool = False) -> Path:
        """A bundle as ``spec --rootless`` writes it; ``ranges``: with the ids of /etc/subuid from 1 on."""
        config = json.loads(json.dumps(rootless(self.uid, self.uid)))
        config["ociVersion"] = "1.0.2"  # what Debian's crun knows
        config["process"]["terminal"] = False
        config["process"]["args"] = list(args) or ["true"]
        config["root"] = {"path": str(self.image())}
        if ranges:
            for key in ("uidMappings", "gidMappings"):
                config["linux"][key].append({"containerID": 1, "hostID": FIRST, "size": COUNT})
        if change is not None:
            change(config)
        path = self.home / "bundle"
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(config))
        return path

    def clean(self) -> None:
        """Delete every container, and prove that nothing of them is left."""
        self.prefix = []
        for id in self.ids():
            self.runtime("delete", "--force", id, check=True)
        assert self.ids() == []
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and self._mine(pid)]
        assert left == []

    def _mine(self, pid: str) -> bool:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False
        uid = int(status.partition("\nUid:")[2].split()[0])
        return "State:\tZ" not in status and (uid == self.uid or FIRST <= uid < FIRST + COUNT)
