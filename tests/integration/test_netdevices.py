"""Network devices moved into a container, in a network namespace of the test's own that stands for the host's; ip(8) is the witness."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, left, write_bundle

pytestmark = pytest.mark.needs("root", "veth", "bridge", "busybox")
NAME = f"nd-{os.getpid()}"


class Host:
    """A network namespace with a pair of devices in it."""

    def __init__(self, pid: int, path: Path, rootfs: Path) -> None:
        self.pid, self.path, self.rootfs = pid, path, rootfs

    def sh(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *map(str, command)]
        with open(self.path / "out", "w+") as out, open(self.path / "err", "w+") as err:
            done = subprocess.run(inside, stdout=out, stderr=err, stdin=subprocess.DEVNULL, text=True, timeout=40)
        done.stdout, done.stderr = (self.path / "out").read_text(), (self.path / "err").read_text()
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def ip(self, *words: str, pid: int = 0) -> Any:
        """What ``ip -json`` says here, or in the network namespace of ``pid``."""
        enter = ["nsenter", f"--net=/proc/{pid or self.pid}/ns/net"]
        done = subprocess.run([*enter, "ip", "-json", "-details", *words], capture_output=True, text=True, check=True)
        return json.loads(done.stdout or "[]")

    def names(self) -> set[str]:
        return {link["ifname"] for link in self.ip("link")}

    def runtime(self, *args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.sh(*COMMAND, "--root", self.path / "state", *args, check=check)

    def create(self, devices: dict[str, Any], *, check: bool = True, **linux: Any) -> subprocess.CompletedProcess[str]:
        def change(config: dict[str, Any]) -> None:
            config["linux"].update(netDevices=devices, **linux)

        bundle = write_bundle(self.path / "bundle", self.rootfs, "sleep", "60", change=change)
        return self.runtime("create", "-b", bundle, NAME, check=check)


@contextlib.contextmanager
def netns() -> Iterator[int]:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "120"])
    try:
        while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            pass
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


@pytest.fixture
def host(tmp_path: Path, rootfs: Path) -> Iterator[Host]:
    with netns() as pid:
        found = Host(pid, tmp_path, rootfs)
        for words in (
            "link add out0 type veth peer name in0", "link set in0 address 02:00:00:00:00:07 mtu 1400", "link set in0 up",
            "link set out0 up", "addr add 10.9.8.7/24 brd 10.9.8.255 dev in0", "addr add fd00::7/64 dev in0 nodad",
            "addr add 10.7.7.7/32 peer 10.7.7.8 dev in0", "addr add 10.6.6.6/24 dev in0 valid_lft 1000 preferred_lft 900",
            "addr add 10.5.5.5/24 scope link dev in0", "addr add 10.9.9.1/24 dev out0",
        ):  # fmt: skip
            found.sh("ip", *words.split())
        yield found
        found.runtime("delete", "--force", NAME)
        assert not left(NAME)


def addresses(link: dict[str, Any]) -> set[str]:
    return {
        f"{a['local']}{'>' + a['address'] if 'address' in a else ''}/{a['prefixlen']}"
        for a in link["addr_info"]
        if a["scope"] == "global"
    }


@pytest.mark.parametrize(("new", "wanted"), [(None, "in0"), ("inner", "inner"), ("net%d", "net0")])
def test_a_device_is_moved_with_what_belongs_to_it(host: Host, new: str | None, wanted: str) -> None:
    before = host.ip("addr", "show", "in0")[0]
    host.create({"in0": {"name": new} if new else {}})
    pid = json.loads(host.runtime("state", NAME).stdout)["pid"]
    assert "in0" not in host.names()
    link = next(a for a in host.ip("addr", pid=pid) if a["ifname"] == wanted)
    assert "UP" in link["flags"]
    assert (link["address"], link["mtu"]) == ("02:00:00:00:00:07", 1400)
    assert addresses(before) - addresses(link) == {"10.6.6.6/24"}  # it was not permanent
    assert addresses(link) == {"10.9.8.7/24", "10.7.7.7>10.7.7.8/32", "fd00::7/64"}
    assert "10.5.5.5" not in str(link)  # of the link's scope only
    first = next(a for a in link["addr_info"] if a["local"] == "10.9.8.7")
    assert first["broadcast"] == "10.9.8.255" and first["label"] == wanted
    host.sh("ip", "addr", "add", "10.9.8.1/24", "dev", "out0")
    host.sh("busybox", "ping", "-c", "1", "-W", "2", "10.9.8.7")
    host.runtime("delete", "--force", NAME)
    assert "in0" not in host.names()  # a virtual device ends with its namespace


def test_a_joined_namespace_keeps_the_device(host: Host) -> None:
    with netns() as other:
        index = host.ip("link", "show", "in0")[0]["ifindex"]
        subprocess.run(["nsenter", f"--net=/proc/{other}/ns/net", "ip", "link", "add", "name", "taken", "index", str(index), "type", "bridge"], check=True)  # fmt: skip
        spaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        spaces.append({"type": "network", "path": f"/proc/{other}/ns/net"})
        host.create({"in0": {"name": "mine"}}, namespaces=spaces)
        links = {link["ifname"]: link["ifindex"] for link in host.ip("link", pid=other)}
        assert links["taken"] == index and links["mine"] not in (index, 0)
        host.runtime("delete", "--force", NAME)
        assert "mine" in {link["ifname"] for link in host.ip("link", pid=other)}  # not ours to take away


def test_what_cannot_be_moved(host: Host) -> None:
    for devices, error, linux in (
        ({"gone0": {}}, "$.linux.netDevices['gone0']: the host has no network device of that name", {}),
        ({"in0": {"name": "lo"}}, "$.linux.netDevices['in0']: the container's network namespace has a device 'lo' already", {}),
        ({"lo": {"name": "lo0"}}, "$.linux.netDevices['lo']: cannot move network device lo to lo0: EINVAL (invalid argument)", {}),
        ({"in0": {}}, "$.linux.netDevices: found devices, but no network namespace in $.linux.namespaces", {"namespaces": [{"type": "mount"}, {"type": "uts"}]}),
        (
            {"in0": {}},
            "$.linux.netDevices: the container's network namespace is the one that they are in",
            {"namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": f"/proc/{host.pid}/ns/net"}]},
        ),
    ):  # fmt: skip
        done = host.create(devices, check=False, **linux)  # type: ignore[arg-type]
        assert (done.returncode, done.stderr) == (1, f"pycontain-runtime: {error}\n")
        assert host.names() == {"lo", "in0", "out0"}


def test_devices_come_back_where_the_container_is_not_to_be(host: Host) -> None:
    before = host.ip("addr", "show", "in0")[0]
    # The second device fails; and where the devices are there, a mount does.
    for devices, linux in (({"in0": {"name": "a"}, "gone0": {}}, {}), ({"in0": {"name": "a"}}, {"maskedPaths": ["/" + "x" * 5000]})):  # fmt: skip
        done = host.create(devices, check=False, **linux)
        assert done.returncode == 1 and "warning" not in done.stderr, done.stderr
        after = host.ip("addr", "show", "in0")[0]
        keys = ("ifindex", "address", "mtu", "flags")
        assert [after[key] for key in keys] == [before[key] for key in keys]
        assert addresses(after) == addresses(before) - {"10.6.6.6/24"}
        host.sh("ip", "addr", "add", "10.6.6.6/24", "dev", "in0", "valid_lft", "1000", "preferred_lft", "900")
