"""Images that lie in their configuration or their files: refused or contained, and the host is untouched."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from pycontain.images.reference import parse
from tests import images_tools
from tests.engine_tools import IMAGE, Host

pytestmark = pytest.mark.needs("root", "overlayfs")
RUN = ("run", "--rm", "--network", "none")


@functools.cache
def base_layer(host: Host) -> bytes:
    """The base image's only layer, as a plain tar."""
    from pycontain.engine import images
    from pycontain.images.compression import Limits, Plain

    with host.engine.images.pin():
        base = images.find(host.engine, IMAGE)
        with host.engine.images.open(base.manifest.layers[0].digest) as stream:
            plain = Plain(stream, Limits())
            return b"".join(iter(lambda: plain.read(1 << 20), b""))


def hostile(host: Host, *items: images_tools.Item, config: dict[str, Any] | None = None) -> str:
    """An image of the base image's files, with ``items`` on top, and with this configuration."""
    store = host.engine.images
    with store.pin():
        layers = [base_layer(host), images_tools.layer(items)]
        descriptor = images_tools.image(store, *layers, compress=None, config={"Cmd": ["true"], **(config or {})})
        store.set_ref(str(parse("hostile")), descriptor)
    return "hostile"


@pytest.mark.parametrize(
    "config",
    [
        {"Env": ["A=b\0c"]},
        {"Cmd": ["tr\0ue"]},
        {"Entrypoint": ["sh\0"]},
        {"WorkingDir": "/a\0b"},
        {"User": "0\nroot"},
        {"User": "4294967296"},
        {"User": "2147483648:0"},
        {"Volumes": {"/": {}}},
        {"Volumes": {"relative": {}}},
        {"Volumes": {"/a\0b": {}}},
        {"Cmd": []},
        {"Cmd": [""]},
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(host: Host, config: dict[str, Any]) -> None:
    done = host(*RUN, hostile(host, config=config), status=125)
    assert done.stderr.startswith("pycontain: ")
    assert "bug" not in done.stderr


def test_paths_of_the_configuration_stay_inside(host: Host, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = images_tools.symlink("link", str(outside))
    climb = "../" * 20 + str(outside).lstrip("/")
    config = {"WorkingDir": f"/link/{climb}/work", "Volumes": {"/link/volume": {}, f"/{climb}/other": {}}}
    host(*RUN, hostile(host, link, config=config), "true")
    assert os.listdir(outside) == []


def test_passwd_and_group_may_be_anything_and_only_they_are_read(host: Host, tmp_path: Path) -> None:
    secret = tmp_path / "passwd"
    secret.write_text("ghost:x:7:7::/:/bin/sh\n")
    host(*RUN, "-u", "ghost", hostile(host, images_tools.symlink("etc/passwd", str(secret))), "id", status=125)
    for item in (
        images_tools.entry("etc/passwd", "fifo"),
        images_tools.file("etc/passwd", b"x" * (2 << 20)),
        images_tools.file("etc/passwd", b"ghost:x:0\0:0::/:\n" * 10),
    ):
        done = host(*RUN, "-u", "ghost", hostile(host, item), "id", status=125)
        assert "bug" not in done.stderr, done.stderr
    # The harmless twin.
    assert (
        host.out(*RUN, "-u", "ghost", hostile(host, images_tools.file("etc/passwd", secret.read_bytes())), "id", "-u")
        == "7\n"
    )


def test_the_three_files_of_etc_are_never_written_through_links(host: Host, tmp_path: Path) -> None:
    outside = tmp_path / "hosts"
    outside.write_text("mine")
    links = [images_tools.symlink(f"etc/{name}", str(outside)) for name in ("hosts", "hostname", "resolv.conf")]
    host(*RUN, hostile(host, *links), "sh", "-c", "echo x > /etc/hosts", status=None)
    assert outside.read_text() == "mine"


def test_a_stop_signal_that_is_none_does_not_make_it_unstoppable(host: Host) -> None:
    name = hostile(host, config={"StopSignal": "SIGFROB", "Cmd": ["sleep", "1000"]})
    host("run", "-d", "--init", "--network", "none", "--name", "deaf", name)
    host("stop", "-t", "1", "deaf")
    host("rm", "deaf")


def test_labels_are_data(host: Host) -> None:
    name = hostile(host, config={"Labels": {"io.containers.capabilities": "ALL", "a": "\x1b[31mred"}})
    assert "00000000a80425fb" in host.out(*RUN, name, "cat", "/proc/self/status")
    host("create", "--name", "loud", name)
    assert "\x1b" not in host.out("ps", "-a", "--format", "json")
    host("rm", "loud")


def test_a_container_that_swaps_its_passwd_gains_nothing_by_exec(host: Host) -> None:
    host("run", "-d", "--network", "none", "--name", "swap", IMAGE, "sleep", "1000")
    host("exec", "swap", "sh", "-c", "rm /etc/passwd; mkfifo /etc/passwd")
    assert host("exec", "-u", "nobody", "swap", "id", status=1).stderr.startswith("pycontain: user 'nobody' is not in")
    host("exec", "swap", "sh", "-c", "rm /etc/passwd; ln -s /proc/1/root/../../../etc/passwd /etc/passwd")
    host("exec", "-u", "nobody", "swap", "id", status=1)
    assert host.out("exec", "-u", "65534", "swap", "id", "-u") == "65534\n"
    host("rm", "-f", "swap")
