"""Facts about this host and what is stored, for ``info``."""

from __future__ import annotations

import os
import time

from pycontain.engine import images, machines
from pycontain.runtime.kernel import hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.engine import Engine


def collect(engine: Engine) -> dict[str, Any]:
    """Names and values in the order they are shown; "Machines" is a group of them. Creates nothing where nothing was
    stored yet.
    """
    import pycontain

    states = [container.status() for container in engine.containers.all()]
    kernel = os.uname()
    return {
        "Version": pycontain.__version__,
        "Containers": len(states),
        "Running": states.count("running"),
        "Paused": states.count("paused"),
        "Stopped": len(states) - states.count("running") - states.count("paused"),
        "Images": len(list(images.images(engine))) if os.path.isdir(os.path.join(engine.data, "images")) else 0,
        "Data": engine.data,
        "State": engine.run,
        "Storage": "overlay",
        "Cgroups": hierarchies.detect(),
        "Seccomp": "default",
        "Kernel": kernel.release,
        "Architecture": kernel.machine,
        "Processors": os.cpu_count() or 1,
        "Memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "Root": os.geteuid() == 0,
        "Machines": machines.facts(time.time()),
    }
