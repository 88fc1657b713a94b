"""The whole way through, by the installed command, read back by programs and libraries that no one here wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import registry_fixture
from tests.host_tools import IMAGE, Host, cgroups, host_with_image, no_more_cgroups_than
from tests.runtime_tools import Runtime

pytestmark = pytest.mark.needs("root", "overlayfs", "bridge", "veth", "nft", "netns")
USER = ("tester", "secret word")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host_with_image(tmp_path_factory.mktemp("acceptance")) as host:
        yield host


@pytest.mark.needs("skopeo", "docker_registry", "openssl", "htpasswd")
def test_from_a_registry_with_tls_and_a_password_to_a_running_container(host: Host, tmp_path: Path) -> None:
    authority = registry_fixture.make_authority(tmp_path / "ca")
    host("save", "--format", "oci-archive", "-o", tmp_path / "image.tar", IMAGE, check=True)
    with registry_fixture.docker_registry(tmp_path / "registry", tls=authority.certificate(), user=USER) as registry:
        name = f"{registry.host}/team/image:1"
        trust = ["--dest-cert-dir", str(authority.trust), "--dest-creds", ":".join(USER)]
        archive = f"oci-archive:{tmp_path / 'image.tar'}"
        subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", *trust, archive, f"docker://{name}"], check=True)
        trust = ["--cert-dir", str(authority.trust), "--creds", ":".join(USER)]
        seen = json.loads(
            subprocess.run(["skopeo", "inspect", *trust, f"docker://{name}"], capture_output=True, check=True).stdout
        )

        config = tmp_path / "config.toml"
        config.write_text("")
        home = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "docker"), "PYCONTAIN_CONFIG": str(config)}

        def ours(*args: object, input: str = "") -> subprocess.CompletedProcess[str]:
            # The registry listens on the machine's own loopback.
            command = host.command(*args)[len(host.inside.prefix) :]
            return subprocess.run(
                command, env={**host.env, **home}, input=input, capture_output=True, text=True, timeout=50
            )

        unknown = ours("pull", name)
        assert unknown.returncode == 1
        assert unknown.stderr.count("\n") <= 3 and "certificate" in unknown.stderr and "Traceback" not in unknown.stderr
        config.write_text(f'[registry."{registry.host}"]\nca = "{authority.ca}"\n')
        refused = ours("login", "-u", USER[0], "--password-stdin", registry.host, input="wrong\n")
        assert refused.returncode == 1 and "401" in refused.stderr, refused.stderr
        logged_in = ours("login", "-u", USER[0], "--password-stdin", registry.host, input=USER[1] + "\n")
        assert logged_in.returncode == 0, logged_in.stderr
        pulled = ours("pull", name)
        assert pulled.returncode == 0, pulled.stderr
        inspected = json.loads(ours("inspect", name).stdout)[0]
        assert seen["Digest"] in json.dumps(inspected)
        blobs = os.listdir(host.data / "images/blobs/sha256")
        for digest in (seen["Digest"], *seen["Layers"]):
            assert digest.removeprefix("sha256:") in blobs
        assert os.listdir(host.data / "images/ingest") == []
    done = host("run", "--rm", "--network", "none", name, "echo", "it runs", check=True)
    assert done.stdout == "it runs\n"


def capabilities(pid: int) -> str:
    return subprocess.run(["getpcaps", str(pid)], capture_output=True, text=True, check=True).stdout


@pytest.mark.needs("getpcaps")
def test_fourteen_capabilities_by_libcap(host: Host) -> None:
    host("run", "-d", "--name", "caps", IMAGE, "sleep", "60", check=True)
    text = capabilities(host.inspect("caps")["State"]["Pid"])
    expected = "audit_write chown dac_override fowner fsetid kill mknod net_bind_service net_raw setfcap setgid setpcap setuid sys_chroot"
    for name in expected.split():
        assert f"cap_{name}" in text, text
    assert text.count("cap_") == 14, text
    host("rm", "-f", "caps", check=True)


@pytest.mark.needs("cgroup1", "cgroupspy")
def test_limits_by_cgroupspy(host: Host) -> None:
    from cgroupspy import trees  # type: ignore[import-untyped]

    before = cgroups()
    limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"]
    identifier = host("run", "-d", "--name", "limits", *limits, IMAGE, "sleep", "60", check=True).stdout.strip()
    tree = trees.Tree()
    nodes = {name: tree.get_node_by_path(f"/{name}/pycontain/{identifier}/") for name in ("memory", "cpu")}
    assert nodes["memory"].controller.limit_in_bytes == 64 << 20
    assert nodes["cpu"].controller.cfs_quota_us / nodes["cpu"].controller.cfs_period_us == 0.5
    path = next(Path("/sys/fs/cgroup").glob(f"pids/**/{identifier}/pids.max"))
    assert subprocess.run(["cat", path], capture_output=True, text=True).stdout == "20\n"
    host("rm", "-f", "limits", check=True)
    assert no_more_cgroups_than(before, host)


def test_limits_hold(host: Host) -> None:
    before = cgroups()
    hog = "x=$(head -c 100000000 /dev/zero | tr '\\0' a); echo survived"
    done = host("run", "--memory", "64m", "--rm", "--name", "hog", IMAGE, "sh", "-c", hog)
    assert (done.returncode, done.stdout) == (137, "")
    assert "OOM killed" in done.stderr, done.stderr
    bomb = "for i in $(seq 40); do sleep 5 & done; echo all"
    done = host("run", "--pids-limit", "20", "--rm", IMAGE, "sh", "-c", bomb)
    assert "can't fork" in done.stderr and done.returncode != 0
    assert no_more_cgroups_than(before, host)


@pytest.mark.needs("pyroute2")
def test_the_network_by_pyroute2(host: Host) -> None:
    script = """
import json, sys
from pyroute2 import IPRoute
with IPRoute() as ip:
    links = {l.get("ifname"): l for l in ip.get_links()}
    index = links["eth0"]["index"]
    addresses = [(a.get("address"), a["prefixlen"]) for a in ip.get_addr(index=index, family=2)]
    gateways = [r.get("gateway") for r in ip.get_routes(family=2) if r["dst_len"] == 0]
    print(json.dumps([sorted(links), links["lo"]["flags"] & 1, addresses, gateways]))
"""
    host("run", "-d", "--name", "net", IMAGE, "sleep", "60", check=True)
    inspected = host.inspect("net")
    command = ["nsenter", f"--net=/proc/{inspected['State']['Pid']}/ns/net", sys.executable, "-c", script]
    links, up, addresses, gateways = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (links, up) == (["eth0", "lo"], 1)
    settings = inspected["NetworkSettings"]
    assert addresses == [[settings["IPAddress"], settings["IPPrefixLen"]]]
    assert gateways == [settings["Gateway"]]
    ping = host("run", "--rm", IMAGE, "ping", "-c", "1", "-W", "2", settings["Gateway"])
    assert ping.returncode == 0, ping.stdout
    assert host("run", "--rm", IMAGE, "ping", "-c", "1", "-W", "2", "net").returncode == 0
    host("rm", "-f", "net", check=True)


def test_a_published_port_from_another_namespace(host: Host) -> None:
    from tests.host_tools import Namespace

    outside = Namespace()
    try:
        host.inside(
            "ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", outside.pid, check=True
        )
        host.inside("ip", "address", "add", "192.0.2.1/24", "dev", "wire", check=True)
        host.inside("ip", "link", "set", "wire", "up", check=True)
        outside("ip", "address", "add", "192.0.2.2/24", "dev", "wire", check=True)
        outside("ip", "link", "set", "wire", "up", check=True)
        serve = "while :; do echo answer | nc -l -p 80; done"
        host("run", "-d", "--name", "web", "-p", "8080:80", IMAGE, "sh", "-c", serve, check=True)
        script = "import socket,sys\ns=socket.create_connection((sys.argv[1],8080),3); s.settimeout(5); print(s.recv(99).decode().strip())"

        def ask(place: Any, address: str) -> str:
            deadline = time.monotonic() + 10
            while True:
                done: subprocess.CompletedProcess[str] = place(sys.executable, "-c", script, address)
                if done.stdout.strip() or time.monotonic() > deadline:
                    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]
                time.sleep(0.2)

        assert ask(outside, "192.0.2.1") == "answer"
        assert ask(host.inside, "127.0.0.1") == "answer"
        taken = host("run", "--rm", "-p", "8080:80", IMAGE, "true")
        assert taken.returncode == 125 and "EADDRINUSE" in taken.stderr
        host("rm", "-f", "web", check=True)
        gone = outside(sys.executable, "-c", script, "192.0.2.1")
        assert "ConnectionRefusedError" in gone.stderr
        host.inside("ip", "link", "del", "wire", check=True)
    finally:
        outside.close()


@pytest.mark.needs("skopeo", "umoci")
def test_a_bundle_made_by_umoci(host: Host, tmp_path: Path) -> None:
    host("save", "--format", "oci-archive", "-o", tmp_path / "image.tar", IMAGE, check=True)
    layout = f"{tmp_path / 'layout'}:it"
    copy = ["skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{tmp_path / 'image.tar'}", f"oci:{layout}"]
    subprocess.run(copy, check=True)
    subprocess.run(["umoci", "unpack", "--image", layout, tmp_path / "bundle"], check=True, capture_output=True)
    config = json.loads((tmp_path / "bundle/config.json").read_text())
    config["process"].update(terminal=False, args=["sh", "-c", "echo from umoci; exit 6"])
    (tmp_path / "bundle/config.json").write_text(json.dumps(config))
    runtime = Runtime(tmp_path / "state")
    done = runtime("run", "-b", tmp_path / "bundle", "t-umoci")
    assert (done.returncode, done.stdout) == (6, "from umoci\n"), done.stderr
    runtime.clean()


def test_nothing_is_left(host: Host) -> None:
    """Last in this file: whatever ran above is gone."""
    assert host.left() == {}
