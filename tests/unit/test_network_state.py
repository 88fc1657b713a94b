"""The files of a network: atomic, versioned, and void after a reboot."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from pycontain.network.firewall import Problem
from pycontain.network.lease import Network
from pycontain.network.links import parse_subnet
from pycontain.network.ports import Port
from pycontain.network.state import Configuration, Directory, Record, Stamp, boot_id, namespace_id
from pycontain.runtime.errors import Conflict, PycontainError


def record(address: str = "10.118.0.2", container: str = "box", **more: object) -> Record:
    made = Record(address, container, "web", boot_id(), "pc01234567", time.monotonic_ns())
    return made._replace(**more)


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> Directory:
    return Directory(str(tmp_path / "pycontain0"))


def test_what_is_written_is_read(directory: Directory) -> None:
    configuration = Configuration("0011", "pycontain0", parse_subnet("10.118.0.0/16"), 1500)
    stamp = Stamp(boot_id(), "1:2", 3, "filter", "t", True, (Problem("m", "h"), Problem("n", None)))
    first = record(ports=(Port(80, 8080), Port(53, 53, "127.0.0.1", "udp")))
    second = record("10.118.0.3", "other")
    assert not directory.exists()
    with directory as files:
        assert files.configuration() is None and files.stamp() is None and files.records() == []
        files.write_configuration(configuration)
        files.write_stamp(stamp)
        assert files.add(second) and files.add(first)
        assert not files.add(record("10.118.0.3", "third"))
        assert files.configuration() == configuration and files.stamp() == stamp
        assert files.records() == [first, second]  # by age, not by address
        files.replace(second._replace(name="new"))
        assert [entry.name for entry in files.records()] == ["web", "new"]
        files.drop(first)
        files.drop(first)
        files.write_stamp(None)
        assert files.stamp() is None and [entry.container for entry in files.records()] == ["other"]
    assert directory.exists() and configuration.gateway == "10.118.0.1"


def test_the_files_are_root_s_alone_and_carry_a_version(directory: Directory) -> None:
    with directory as files:
        files.add(record())
        files.write_configuration(Configuration("0011", "pycontain0", parse_subnet("10.118.0.0/16"), 1500))
    for folder, _, names in os.walk(directory.path):
        assert os.stat(folder).st_mode & 0o777 == 0o700
        for name in names:
            assert os.stat(f"{folder}/{name}").st_mode & 0o777 == 0o600
            if name != "lock":
                assert json.loads(pathlib.Path(folder, name).read_text())["version"] == 1


def test_an_unknown_version_is_refused_by_name(directory: Directory, tmp_path: pathlib.Path) -> None:
    with directory as files:
        files.add(record())
    path = pathlib.Path(directory.path, "leases/10.118.0.2")
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    with directory as files, pytest.raises(Conflict) as caught:
        files.records()
    assert caught.value.message == f"{path} has version 2, wanted 1: it was written by another pycontain"
    assert path.exists()
    configuration = pathlib.Path(directory.path, "network.json")
    configuration.write_text('{"bridge": "x"}')
    with pytest.raises(Conflict) as caught:
        Network(str(tmp_path)).lease("box")
    assert caught.value.message == (
        f"{configuration} has version None, wanted 1: it was written by another pycontain"
    )
    configuration.write_text("{")
    with pytest.raises(PycontainError) as broken:
        Network(str(tmp_path)).lease("box")
    assert broken.value.message == f"{configuration} is not JSON"
    assert broken.value.hint == f"without containers on the network: rm {configuration}"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", '{"version": 1}', '{"version": 1, "ports": 5}', '{"version": 1, "ports": [5]}']
)
def test_a_torn_lease_is_no_lease(directory: Directory, text: str) -> None:
    with directory as files:
        path = pathlib.Path(directory.path, "leases/10.118.0.2")
        path.write_text(text)
        assert files.records() == [] and not path.exists()
        assert files.add(record())


def test_leases_end_with_the_boot(directory: Directory) -> None:
    with directory as files:
        assert files.add(record(boot="00000000-0000-0000-0000-000000000000"))
        assert files.records() == []
        assert files.add(record())


def test_a_lease_under_another_s_name_is_no_lease(directory: Directory) -> None:
    with directory as files:
        files.add(record())
        os.rename(f"{directory.path}/leases/10.118.0.2", f"{directory.path}/leases/10.118.0.3")
        assert files.records() == []


def test_nothing_is_made_by_asking(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    assert network.lease("box") is None and network.leases() == {} and network.reconcile(set()) == []
    network.release("box")
    network.destroy()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_keeps_others_out(directory: Directory) -> None:
    script = (
        "import sys; from pycontain.network.state import Directory\n"
        "with Directory(sys.argv[1]): print('in', flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])}
    with directory:
        other = subprocess.Popen(
            [sys.executable, "-c", script, directory.path], stdout=subprocess.PIPE, text=True, env=environment
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.7)
    assert other.communicate()[0] == "in\n"


def test_namespaces_have_names() -> None:
    assert namespace_id() == namespace_id() and ":" in namespace_id()
