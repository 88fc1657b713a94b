"""The field of the attacks on the runtime: a throw-away host with decoys, and builds that lack one defence.

``@attack(row, *patches)`` makes two tests of one function: on the real build the attack must reach nothing, on a build
from which the patches took the defence it must reach its decoy. Patches are applied to a copy of the source tree.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.runtime_tools import COMMAND, HIERARCHIES, REPOSITORY, write_bundle

Change = Callable[[dict[str, Any]], object]
SECRET = "of the host"
CGROUPS = "pycontain-attacks"  # not the product's own place, which is swept by whoever prunes
_TREE = ("pycontain", "runtime", "images", "network")
_FAST = "CFLAGS=-O0 -std=gnu11 -w"
ATTACKS: dict[str, list[str]] = {}  # row: the tests that perform it
WEAKENINGS: set[Patch] = set()


class Patch(NamedTuple):
    """``old``, which must be in the sources of ``room`` exactly once, becomes ``new``: a stale patch fails loudly."""

    room: str  # a folder: what is in which file of it is no matter
    old: str
    new: str


def place(tree: Path, patch: Patch) -> Path:
    """The file that ``patch`` belongs in."""
    files = [path for path in (tree / patch.room).iterdir() if path.suffix in (".py", ".c", ".h")]
    found = [path for path in files for _ in range(path.read_text().count(patch.old))]
    assert len(found) == 1, f"{patch.room} has this {len(found)} times, wanted once: update the weakening\n{patch.old}"
    return found[0]


class Build:
    """A build of the product: the real one, or a copy of the tree with patches in it."""

    def __init__(self, home: Path, patches: tuple[Patch, ...]) -> None:
        self.home, self.weakened = home, bool(patches)
        self.runtime, self.engine = COMMAND, [COMMAND[0].removesuffix("-runtime")]
        self.program = REPOSITORY / "runtime/init/pycontain-init"
        if not patches:
            self.home = REPOSITORY
            return
        home.chmod(0o755)
        for name in _TREE:
            subprocess.run(["cp", "-a", REPOSITORY / name, home], check=True)
        for cache in (home / "runtime/__pycache__").glob("start.*"):
            cache.unlink()  # it is of the modules that were copied
        for patch in patches:
            path = place(home, patch)
            path.write_text(path.read_text().replace(patch.old, patch.new))
        self.program = home / "runtime/init/pycontain-init"
        if any(patch.room == "runtime/init" for patch in patches):
            self.program.unlink()
            subprocess.run(["make", "-s", "-C", self.program.parent, _FAST, "pycontain-init"], check=True, timeout=60)
        self.runtime = self._python("-ISXutf8", "pycontain-runtime", "from pycontain.runtime.main import main; main()")
        self.engine = self._python("-IXutf8", "pycontain", "from pycontain.cli import main; sys.exit(main())")

    def _python(self, flags: str, name: str, code: str) -> list[str]:
        head = f"import sys; sys.path.insert(0, {str(self.home)!r}); sys.argv[0] = {name!r}; "
        return [os.path.realpath(sys.executable), flags, "-c", head + code]


def make_image(path: Path) -> Path:
    """Busybox and its links, and the directories of a root file system."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root", "run"):
        (path / name).mkdir(parents=True)
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\n")
    shutil.copy("/bin/busybox", path / "bin/busybox")
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (path / "bin" / applet).symlink_to("busybox")
    return path


def _described(path: Path) -> list[str]:
    """Every file below ``path``: kind, mode, owner, device number, content."""
    lines = []
    for entry in [path, *sorted(path.rglob("*"))]:
        info = entry.lstat()
        content = ""
        if stat.S_ISREG(info.st_mode):
            content = repr(entry.read_bytes())
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(entry)
        lines.append(f"{entry} {info.st_mode:o} {info.st_uid}:{info.st_gid} {info.st_rdev} {content}")
    return lines


class Arena:
    """A host with a mount namespace of its own, a decoy of root's, and a hostile image."""

    _count = 0

    def __init__(self, path: Path, image: Path, build: Build) -> None:
        Arena._count += 1
        self.id = f"attack{os.getpid()}n{Arena._count}"
        self.path, self.build = path, build
        self.rootfs, self.decoy, self.bundle, self.state = (path / n for n in ("rootfs", "decoy", "bundle", "state"))
        subprocess.run(["cp", "-a", image, self.rootfs], check=True)
        self.decoy.mkdir()
        (self.decoy / "secret").write_text(SECRET)
        (self.decoy / "secret").chmod(0o600)
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 1000"]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.inside = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]
        self.remember()

    def remember(self) -> None:
        """What the host is like, before the attack."""
        self._before = self._now()

    def _now(self) -> list[str]:
        return [*_described(self.decoy), *Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines()]

    def changes(self) -> list[str]:
        """What the attack changed of the decoy and of the host's mounts."""
        lines = difflib.ndiff(self._before, self._now())
        return [line for line in lines if line[0] in "+-"]

    def host(self, script: str) -> str:
        """A shell script on the host."""
        done = subprocess.run([*self.inside, "sh", "-ec", script], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def command(self, *args: object) -> list[str]:
        return [*self.inside, *self.build.runtime, "--root", str(self.state), *map(str, args)]

    def __call__(self, *args: object, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
        """The build's runtime. Output goes through files: a created container inherits it."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            options = {"stdout": out, "stderr": err, "stdin": subprocess.DEVNULL, "timeout": 40, **options}
            done = subprocess.run(self.command(*args), text=True, **options)
            out.seek(0)
            err.seek(0)
            done.stdout, done.stderr = out.read(), err.read()
        assert "bug:" not in done.stderr, done.stderr
        assert not check or not done.returncode, f"{args}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def write(self, *args: str, change: Change | None = None) -> None:
        self.bundle_for(self.id, self.bundle, *args, change=change)

    def bundle_for(self, id: str, path: Path, *args: str, change: Change | None = None) -> Path:
        def placed(config: dict[str, Any]) -> None:
            config["linux"]["cgroupsPath"] = f"/{CGROUPS}/{id}"
            if change is not None:
                change(config)

        return write_bundle(path, self.rootfs, *args, change=placed)

    def run(self, *args: str, change: Change | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        self.write(*args, change=change)
        return self("run", "-b", self.bundle, self.id, **options)

    def start(self, *args: str, change: Change | None = None, **options: Any) -> int:
        """Create and start; the first process's pid."""
        self.write(*(args or ("sleep", "60")), change=change)
        self("create", "-b", self.bundle, self.id, check=True, **options)
        self("start", self.id, check=True)
        pid: int = json.loads(self("state", self.id, check=True).stdout)["pid"]
        return pid

    def exec(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """``exec`` in the container; options of the verb come first, then ``ID`` is put in place of None."""
        return self("exec", *(self.id if arg is None else arg for arg in args), **options)

    def delete(self) -> None:
        self("delete", "--force", self.id, check=True)

    def replace(self, name: str, target: object) -> None:
        """Turn ``name`` of the image into a symbolic link."""
        path = self.rootfs / name
        subprocess.run(["rm", "-rf", path], check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(str(target))

    def directory(self, name: str, **files: str) -> Path:
        """A directory of the host, such as a volume."""
        path = self.path / name
        path.mkdir()
        for key, value in files.items():
            (path / key).write_text(value)
        return path

    def close(self) -> None:
        real = [*self.inside, *COMMAND, "--root", str(self.state)]
        ids = sorted(os.listdir(self.state)) if self.state.exists() else []
        try:
            for id in ids:
                subprocess.run([*real, "delete", "--force", id], check=True, timeout=30)
            tops = [*HIERARCHIES.glob(f"*/{CGROUPS}"), *HIERARCHIES.glob(CGROUPS)]
            assert [top for top in tops for id in ids if (top / id).exists()] == []
            for top in tops:
                with contextlib.suppress(OSError):  # another's arena may be there
                    top.rmdir()
        finally:
            self._holder.kill()
            self._holder.wait()
            assert self._holder.stdout is not None
            self._holder.stdout.close()
            subprocess.run(["rm", "-rf", self.path], check=True)


def attack(row: str, *patches: Patch) -> Callable[[Callable[[Arena], str]], Callable[..., None]]:
    """A test of ``row`` on the real build, and on one that ``patches`` have weakened.

    The function performs the attack, asserts that a harmless twin works, and returns what the attack got hold of
    ("" for nothing); changes of the host are found without its help.
    """
    assert patches
    WEAKENINGS.update(patches)

    def decorate(function: Callable[[Arena], str]) -> Callable[..., None]:
        @pytest.mark.parametrize("weakened", [False, True], ids=[f"{row}-held", f"{row}-weakened"])
        def test(weakened: bool, arena: Callable[[tuple[Patch, ...]], Arena]) -> None:
            field = arena(patches if weakened else ())
            reached = function(field)
            changes = field.changes()
            if weakened:
                assert reached or changes, "without its defence the attack must reach its decoy: it shows nothing"
            else:
                assert (reached, changes) == ("", [])

        test.__name__, test.__doc__ = function.__name__, function.__doc__
        if function.__name__ not in (known := ATTACKS.setdefault(row, [])):  # a module may be imported twice
            known.append(function.__name__)
        return test

    return decorate
