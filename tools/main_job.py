"""What ``make run`` does: a container from Docker Hub's alpine that tells about itself.

Where no registry can be reached, the same command runs on an image that is made here and now from this machine's
static busybox, and says so. (``pycontain run alpine`` itself never takes one image for another.)
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile

from pycontain.engine import Engine
from pycontain.engine import images as engine_images
from pycontain.images.dialing import RegistryUnreachable
from pycontain.runtime.errors import NotFound, PycontainError

IMAGE = "alpine"
EMBEDDED = "pycontain.local/busybox:embedded"
COMMAND = os.path.join(os.path.dirname(sys.executable), "pycontain")
# v1 shows the limit in a directory of the controller's own.
SCRIPT = """
. /etc/os-release; echo "system:       $PRETTY_NAME"
echo "pid 1:        $(tr '\\0' ' ' </proc/1/cmdline | cut -c1-20)..."
echo "address:      $(ip -4 -o addr show eth0 | awk '{print $4}')"
cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null |
    sed 's/^/memory limit: /; s/$/ bytes/'
""".strip()


def image_to_run(engine: Engine) -> str:
    """Name of the image: alpine, or the embedded one where the network has no registry for us."""
    with engine.images.pin():
        try:
            engine_images.find(engine, IMAGE)
            return IMAGE
        except NotFound:
            pass
    try:
        engine_images.pull_shown(engine, IMAGE, None, sys.stderr)
        return IMAGE
    except RegistryUnreachable as error:
        print(f"no registry can be reached ({error}): running the embedded image, this machine's busybox, instead")
        make_embedded()
        return EMBEDDED


def make_embedded() -> None:
    """Import the embedded image: one static busybox, a link for each of its applets, and a name."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise PycontainError("busybox is not installed", hint="apt-get install busybox-static")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for folder in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "usr/bin", "var"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox", filter=as_root)
        for applet in applets:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            if applet != "busybox":
                tar.addfile(entry)
        for name, text in (
            ("etc/os-release", 'ID=pycontain-embedded\nPRETTY_NAME="pycontain embedded image (busybox)"\n'),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            ("etc/group", "root:x:0:\n"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    done = subprocess.run([COMMAND, "import", "-", EMBEDDED], input=stream.getvalue(), stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        raise PycontainError("the embedded image could not be made", exit_code=done.returncode)


def as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o755
    return entry


def main() -> int:
    try:
        image = image_to_run(Engine())
    except PycontainError as error:
        print(f"make run: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    arguments = ["run", "--rm", "--memory", "64m", image, "sh", "-c", SCRIPT]
    print(f"$ pycontain {shlex.join(arguments[:-1])} '...'", flush=True)
    os.execv(COMMAND, [COMMAND, *arguments])


if __name__ == "__main__":
    sys.exit(main())
