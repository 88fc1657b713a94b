"""From image configuration and options to config.json: the field's defaults, and the specification's schema."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pycontain.images.config import (
    CAPABILITIES,
    DEFAULT_CAPABILITIES,
    RunOptions,
    capabilities,
    command_line,
    environment,
    to_spec,
)
from pycontain.images.manifest import ImageConfig
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.plan import rights

IMAGE = ImageConfig("linux", "amd64", None, (), cmd=("/bin/sh",), env=("PATH=/bin", "A=1"))
EVERYTHING = RunOptions(
    args=["echo", "x"],
    env=["A=2"],
    cwd="/w",
    user={"uid": 1, "gid": 2, "additionalGids": [3]},
    home="/home/x",
    terminal=True,
    console_size=(24, 80),
    hostname="box",
    read_only=True,
    mounts=[{"destination": "/a/b", "type": "bind", "source": "/x", "options": ["rbind", "ro"]}],
    tmpfs={"/t": "size=1m,exec"},
    cap_add=["CAP_NET_ADMIN"],
    cap_drop=["CAP_CHOWN"],
    seccomp={"defaultAction": "SCMP_ACT_ALLOW"},
    no_new_privileges=True,
    memory=64 << 20,
    memory_swap=-1,
    cpu_quota=50_000,
    cpu_shares=512,
    cpuset_cpus="0-1",
    pids_limit=20,
    oom_score_adj=100,
    ulimits=[{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
    devices=[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "access": "rw"}],
    sysctl={"net.ipv4.ip_forward": "1"},
    labels={"k": "v"},
    namespaces={"network": "/proc/1/ns/net", "pid": "host", "ipc": "host"},
    cgroups_path="/pycontain/x",
)


@pytest.mark.needs("assets", "jsonschema")
@pytest.mark.parametrize(
    "options",
    [RunOptions(), EVERYTHING, RunOptions(privileged=True), RunOptions(namespaces={"network": "host", "uts": "host"})],
)
def test_the_result_is_valid_by_the_specifications_schema(options: RunOptions) -> None:
    import jsonschema
    import referencing

    folder = Path(os.environ["PYCONTAIN_TEST_ASSETS"], "oci", "runtime-spec")
    schemas = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}

    def find(uri: str) -> Any:
        return referencing.Resource.from_contents(schemas[uri.rpartition("/")[2]], referencing.jsonschema.DRAFT4)

    registry: Any = referencing.Registry(retrieve=find)  # type: ignore[call-arg]
    validator = jsonschema.Draft4Validator(schemas["config-schema.json"], registry=registry)
    spec = json.loads(json.dumps(to_spec(IMAGE, options)))
    assert [error.message for error in validator.iter_errors(spec)] == []
    spec["process"]["cwd"] = 5
    assert not validator.is_valid(spec)


def test_the_plain_container() -> None:
    spec = to_spec(IMAGE, RunOptions())
    process = spec["process"]
    assert process["args"] == ["/bin/sh"]
    assert process["env"] == ["PATH=/bin", "A=1"]
    assert process["cwd"] == "/"
    assert process["user"] == {"uid": 0, "gid": 0, "umask": 0o022}
    assert sorted(process["capabilities"]["bounding"]) == sorted(DEFAULT_CAPABILITIES)
    assert len(DEFAULT_CAPABILITIES) == 14
    assert process["capabilities"]["inheritable"] == process["capabilities"]["ambient"] == []
    assert spec["root"] == {"path": "rootfs", "readonly": False}
    assert "hostname" not in spec and "annotations" not in spec
    linux = spec["linux"]
    assert [item["type"] for item in linux["namespaces"]] == ["mount", "pid", "network", "ipc", "uts", "cgroup"]
    assert "/proc/kcore" in linux["maskedPaths"] and "/proc/sys" in linux["readonlyPaths"]
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert list(linux["resources"]) == ["devices"]
    assert "seccomp" not in linux
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert list(mounts) == ["/proc", "/dev", "/sys", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys/fs/cgroup"]
    assert "ro" in mounts["/sys"]["options"] and "ro" in mounts["/sys/fs/cgroup"]["options"]
    assert "size=67108864" in mounts["/dev/shm"]["options"]


def test_every_wish_arrives() -> None:
    spec = to_spec(IMAGE, EVERYTHING)
    process, linux = spec["process"], spec["linux"]
    assert process["args"] == ["echo", "x"]
    assert process["env"] == ["PATH=/bin", "HOSTNAME=box", "TERM=xterm", "A=2", "HOME=/home/x"]
    assert process["user"] == {"uid": 1, "gid": 2, "additionalGids": [3], "umask": 0o022}
    assert (process["cwd"], process["terminal"], process["consoleSize"]) == ("/w", True, {"height": 24, "width": 80})
    assert process["noNewPrivileges"] is True and process["oomScoreAdj"] == 100
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]
    assert "CAP_NET_ADMIN" in process["capabilities"]["effective"]
    assert "CAP_CHOWN" not in process["capabilities"]["bounding"]
    assert spec["hostname"] == "box" and spec["root"]["readonly"] is True and spec["annotations"] == {"k": "v"}
    assert linux["namespaces"] == [
        {"type": "mount"},
        {"type": "network", "path": "/proc/1/ns/net"},
        {"type": "uts"},
        {"type": "cgroup"},
    ]
    resources = linux["resources"]
    assert resources["memory"] == {"limit": 64 << 20, "swap": -1}
    assert resources["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0-1"}
    assert resources["pids"] == {"limit": 20}
    assert resources["devices"][-1] == {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    assert linux["devices"] == [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}]
    assert linux["sysctl"] == {"net.ipv4.ip_forward": "1"}
    assert linux["cgroupsPath"] == "/pycontain/x"
    assert linux["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW"}
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert mounts["/t"]["options"] == ["nosuid", "nodev", "noexec", "size=1m", "exec"]
    assert mounts["/dev/shm"]["source"] == "/dev/shm"
    assert mounts["/dev/mqueue"]["type"] == "mqueue"


def test_privileged_opens_everything() -> None:
    spec = to_spec(IMAGE, RunOptions(privileged=True, known_capabilities=CAPABILITIES[:38]))
    assert spec["process"]["capabilities"]["bounding"] == list(CAPABILITIES[:38])
    assert spec["linux"]["maskedPaths"] == spec["linux"]["readonlyPaths"] == []
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert all("ro" not in mount["options"] for mount in spec["mounts"])


def test_the_hosts_own_name_is_never_changed() -> None:
    assert "hostname" not in to_spec(IMAGE, RunOptions(hostname="box", namespaces={"uts": "host"}))


def test_sysctls_are_set_only_in_an_own_network() -> None:
    assert "net.ipv4.ping_group_range" in to_spec(IMAGE, RunOptions())["linux"]["sysctl"]
    for where in ("host", "/proc/1/ns/net"):
        assert "sysctl" not in to_spec(IMAGE, RunOptions(namespaces={"network": where}))["linux"]


@pytest.mark.parametrize(
    ("entrypoint", "args", "result"),
    [
        (None, [], ["/e", "c"]),
        (None, ["a"], ["/e", "a"]),
        (["/x"], [], ["/x"]),
        (["/x"], ["a"], ["/x", "a"]),
        ([], ["a"], ["a"]),
    ],
)
def test_the_command_line(entrypoint: list[str] | None, args: list[str], result: list[str]) -> None:
    assert command_line(IMAGE._replace(entrypoint=("/e",), cmd=("c",)), entrypoint, args) == result


def test_no_command_is_an_error() -> None:
    with pytest.raises(PycontainError) as caught:
        command_line(IMAGE._replace(cmd=()), None, [])
    assert caught.value.message == "the image names no command, and none was given"
    with pytest.raises(PycontainError, match=r"^the command is empty$"):
        command_line(IMAGE, [""], [])


def test_the_environment() -> None:
    image = IMAGE._replace(env=("A=1", "A=2", "B=x=y"))
    assert environment(image, RunOptions(env=["B=", "HOME=/h"], home="/root"))[1:] == ["A=2", "B=", "HOME=/h"]


@pytest.mark.parametrize(
    ("found", "wanted"), [("", "/"), ("app", "/app"), ("/a/./b//c/", "/a/b/c"), ("/../../etc", "/etc")]
)
def test_the_images_directory_is_made_absolute(found: str, wanted: str) -> None:
    assert to_spec(IMAGE._replace(working_dir=found), RunOptions())["process"]["cwd"] == wanted


def test_labels_of_the_image_reach_no_runtime() -> None:
    image = IMAGE._replace(labels={"run.oci.handler": "x"})
    assert "run.oci.handler" not in json.dumps(to_spec(image, RunOptions()))


def test_a_mount_of_the_user_replaces_the_default_one() -> None:
    def destinations(*paths: str) -> list[str]:
        mounts = [{"destination": path, "type": "bind", "source": "/x", "options": ["bind"]} for path in paths]
        return [mount["destination"] for mount in to_spec(IMAGE, RunOptions(mounts=mounts))["mounts"]]

    assert destinations("/dev/shm").count("/dev/shm") == 1
    assert [path for path in destinations("/dev") if path.startswith("/dev")] == ["/dev"]
    order = destinations("/a/b", "/a", "/z")
    assert order.index("/a") < order.index("/a/b") and order.index("/a") < order.index("/z")


@pytest.mark.parametrize(
    ("add", "drop", "wanted"),
    [
        ([], ["ALL"], []),
        (["CAP_SYS_TIME"], ["ALL"], ["CAP_SYS_TIME"]),
        (["ALL"], ["CAP_SYS_ADMIN"], [name for name in CAPABILITIES if name != "CAP_SYS_ADMIN"]),
        (["ALL"], [], list(CAPABILITIES)),
    ],
)
def test_capabilities(add: list[str], drop: list[str], wanted: list[str]) -> None:
    assert capabilities(RunOptions(cap_add=add, cap_drop=drop)) == wanted


def test_the_capabilities_are_those_that_the_runtime_knows() -> None:
    assert list(CAPABILITIES) == sorted(rights.CAPS, key=lambda name: rights.CAPS[name])
    assert set(DEFAULT_CAPABILITIES) == set(rights.DEFAULT_CAPS)
