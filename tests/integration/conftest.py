"""What several files of integration tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import machine_tools
from tests.engine_tools import Host
from tests.runtime_tools import make_rootfs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The bodies of a file that is marked ``both_executors`` run over both, but for those that say why not."""
    marked = {marker.name for marker in metafunc.definition.iter_markers()}
    if "executor" not in metafunc.fixturenames or "both_executors" not in marked:
        return
    vm = pytest.param("vm", marks=pytest.mark.needs(*machine_tools.NEEDS))
    values = ["namespaces"] if "namespaces_only" in marked else ["namespaces", vm]
    metafunc.parametrize("executor", values, indirect=True)


@pytest.fixture
def executor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Where the test's containers run: ``namespaces``, or ``vm`` with settings of the tests' own."""
    name = str(getattr(request, "param", "namespaces"))
    if name == "vm":
        monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(machine_tools.settings(tmp_path_factory.mktemp("vm"))))
    return name


@pytest.fixture(scope="session")
def rootfs() -> Iterator[Path]:
    """One root file system for all that write nothing into it: unpacking takes its time in the test machine.

    Where everybody can reach it, as the root of a user namespace is nobody to the host.
    """
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as public:
        os.chmod(public, 0o755)
        yield make_rootfs(Path(public, "rootfs"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """An engine with an image, for the tests of one file."""
    made = Host(tmp_path_factory.mktemp("engine"))
    made.seed()
    yield made
    made.close()


@pytest.fixture
def host(machine: Host, executor: str) -> Iterator[Host]:
    """Every test leaves nothing behind: no record, name, lease, mount, cgroup, link or process."""
    machine.executor = executor
    yield machine
    machine.executor = "namespaces"
    left = machine.left()
    machine.clear()  # one failure is enough
    assert left == []
