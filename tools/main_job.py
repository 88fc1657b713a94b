"""What ``make run`` does: a container from Docker Hub's alpine that tells about itself.

Where no registry can be reached, the same command runs on an image that is made here and now from this machine's
static busybox, and says so. (``pycontain run alpine`` itself never takes one image for another.)
"""

from __future__ import annotations

import os
import shlex
import sys

from pycontain.engine import Engine
from pycontain.engine import images as engine_images
from pycontain.images import embedded
from pycontain.images.dialing import RegistryUnreachable
from pycontain.runtime.errors import NotFound, PycontainError

IMAGE = "alpine"
COMMAND = os.path.join(os.path.dirname(sys.executable), "pycontain")
# v1 shows the limit in a directory of the controller's own.
SCRIPT = """
. /etc/os-release; echo "system:       $PRETTY_NAME"
echo "pid 1:        $(tr '\\0\\n' '  ' </proc/1/cmdline | cut -c1-24)..."
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
        return str(embedded.ensure(engine.images))


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
