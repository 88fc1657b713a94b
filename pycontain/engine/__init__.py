"""The engine: the only place that joins images, network and the runtime.

`Engine` is where everything is kept; its parts are made when they are first used, so that a command pays for what it
needs and `import pycontain` for nothing.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.engine.containers import Containers
    from pycontain.images.store import Store
    from pycontain.network.lease import Network

DATA = "/var/lib/pycontain"
RUN = "/run/pycontain"


class Engine:
    """Two directories (absolute after construction): ``data`` lasts, ``run`` ends with the machine's uptime.

    Without arguments they come from PYCONTAIN_ROOT and PYCONTAIN_RUN, or are /var/lib/pycontain and /run/pycontain.
    """

    def __init__(self, data: str | None = None, run: str | None = None) -> None:
        self.data = os.path.abspath(data or os.environ.get("PYCONTAIN_ROOT") or DATA)
        self.run = os.path.abspath(run or os.environ.get("PYCONTAIN_RUN") or RUN)
        self._containers: Containers | None = None
        self._images: Store | None = None
        self._network: Network | None = None

    @property
    def containers(self) -> Containers:
        if self._containers is None:
            from pycontain.engine.containers import Containers

            self._containers = Containers(self.data, self.run)
        return self._containers

    @property
    def images(self) -> Store:
        if self._images is None:
            from pycontain.images.store import Store

            self._images = Store(os.path.join(self.data, "images"))
        return self._images

    @property
    def network(self) -> Network:
        """The default bridge network."""
        if self._network is None:
            from pycontain.network.lease import Network

            self._network = Network(os.path.join(self.data, "network"))
        return self._network

    @property
    def runtime_root(self) -> str:
        """Where the OCI runtime keeps the state of the engine's containers."""
        return os.path.join(self.run, "runtime")
