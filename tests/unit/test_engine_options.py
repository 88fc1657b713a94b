"""Options become plain data, with docker's meaning of every spelling. What is refused is in test_bad_input.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycontain.engine import mounts, options, profile, values
from pycontain.engine.options import Options
from pycontain.runtime.errors import PycontainError


def read(**given: object) -> Options:
    return options.read(
        "alpine", [], {name.replace("_", "-"): value for name, value in given.items()}, {"SHELL": "/bin/x"}
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("1", 1), ("512b", 512), ("1k", 1024), ("1K", 1024), ("64m", 64 << 20), ("64M", 64 << 20),
        ("64MB", 64 << 20), ("64MiB", 64 << 20), ("1.5g", 3 << 29), ("2t", 2 << 40), ("1 g", 1 << 30),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert values.size("memory", text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "0x10", "1e3", "64 mb b", "١m", "99999999999999999g"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(PycontainError):
        values.size("memory", text)


def test_limits() -> None:
    found = read(memory="64m", memory_swap="-1", cpus="0.5", cpu_shares="512", cpuset_cpus="0", pids_limit="20")
    assert (found.memory, found.memory_swap, found.cpu_quota, found.cpu_shares) == (64 << 20, -1, 50_000, 512)
    assert (found.cpuset_cpus, found.pids_limit) == ("0", 20)
    assert (read(cpus=".5").cpu_quota, read(cpus="0").cpu_quota, read(pids_limit="-1").pids_limit) == (50_000, 0, -1)


def test_the_environment_takes_bare_names_from_ours_and_files_first(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("\ufeff# comment\nA=1\n\n  B = 2 \nSHELL\nMISSING\n")
    with pytest.raises(PycontainError, match='line 4: the name "B " contains white space'):
        read(env_file=[str(file)])
    file.write_text("# comment\nA=1\n\n  B=2 x\nSHELL\nMISSING\nQ='x'\n")
    found = read(env_file=[str(file)], env=["A=3", "SHELL", "MISSING", "E="])
    assert found.env == ["A=1", "B=2 x", "SHELL=/bin/x", "Q='x'", "A=3", "SHELL=/bin/x", "E="]


def test_ports_hosts_and_names() -> None:
    found = read(
        publish=["127.0.0.1:8080:80", "53:53/udp"], add_host=["db:192.0.2.1", "me:host-gateway"], hostname="web"
    )
    assert [tuple(port.values()) for port in found.ports] == [
        (80, 8080, "127.0.0.1", "tcp"),
        (53, 53, "0.0.0.0", "udp"),
    ]
    assert (found.add_hosts, found.hostname) == (["db:192.0.2.1", "me:host-gateway"], "web")


def test_security_options_have_docker_s_two_separators() -> None:
    assert read(security_opt=["no-new-privileges"]).no_new_privileges
    assert read(security_opt=["no-new-privileges:true"]).no_new_privileges
    assert not read(security_opt=["no-new-privileges=false"]).no_new_privileges
    assert read(security_opt=["seccomp:unconfined"]).seccomp == "unconfined"
    assert read().seccomp == "default"


def test_an_empty_entry_point_drops_the_image_s() -> None:
    assert (read().entrypoint, read(entrypoint="").entrypoint, read(entrypoint="sh").entrypoint) == (None, [], ["sh"])


def test_options_survive_the_record() -> None:
    found = read(memory="64m", env=["A=1"], volume=["/srv:/d:ro"], publish=["80"], label=["a=b"])
    kept = Options.from_json(json.loads(json.dumps({**found.to_json(), "from_the_future": 1})))
    assert kept.to_json() == found.to_json()
    assert Options().to_json() is not Options().to_json()
    assert Options().env is not Options().env


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv:/d", ("bind", "/srv", "/d", False, ["rbind", "rprivate"])),
        ("/srv:/d:ro", ("bind", "/srv", "/d", True, ["rbind", "rprivate"])),
        ("/srv:/d:ro,rshared", ("bind", "/srv", "/d", True, ["rbind", "rshared"])),
        ("/srv/../x//y:/d/./e/", ("bind", "/x/y", "/d/e", False, ["rbind", "rprivate"])),
        ("data:/d", ("volume", "data", "/d", False, [])),
        ("data:/d:ro,nocopy", ("volume", "data", "/d", True, [])),
        ("/d", ("volume", "", "/d", False, [])),
        ("/d/../../etc", None),
    ],
)
def test_volumes(text: str, expected: tuple[object, ...] | None) -> None:
    wish = mounts.volume(text)
    if expected is None:
        assert wish["target"] == "/etc"
    else:
        assert tuple(wish[key] for key in ("type", "source", "target", "read_only", "options")) == expected


def test_relative_sources_are_of_this_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mounts.volume(".:/d")["source"] == str(tmp_path)
    assert mounts.volume("./a:/d")["source"] == str(tmp_path / "a")


def test_mounts_in_the_long_form() -> None:
    wish = mounts.mount('type=bind,src=/srv,"dst=/with,comma",readonly,bind-propagation=rslave')
    assert (wish["source"], wish["target"], wish["read_only"]) == ("/srv", "/with,comma", True)
    assert (wish["options"], wish["create"]) == (["rbind", "rslave"], False)
    wish = mounts.mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770")
    assert wish["options"] == ["nosuid", "nodev", "noexec", "size=1048576", "mode=1770"]
    assert mounts.mount("target=/v")["type"] == "volume"


def test_tmpfs_options_replace_docker_s_defaults_one_by_one() -> None:
    assert mounts.tmpfs("/t")["options"] == ["noexec", "nosuid", "nodev"]
    assert mounts.tmpfs("/t:exec,size=1m,ro")["options"] == ["nosuid", "nodev", "exec", "size=1m"]


def test_an_image_s_volumes_come_in_where_nobody_mounts_and_parents_come_first() -> None:
    found = mounts.combine([mounts.volume("/srv:/a/b/c"), mounts.volume("/srv:/x")], ["/a/b", "/x/"])
    assert [(wish["target"], wish["type"]) for wish in found] == [
        ("/x", "bind"),
        ("/a/b", "volume"),
        ("/a/b/c", "bind"),
    ]
    for path in ("relative", "/", "/../..", "/a\0b"):
        with pytest.raises(PycontainError):
            mounts.combine([], [path])


def test_a_docker_profile_is_decided_by_capability_architecture_and_kernel() -> None:
    rules = [
        {"names": ["a"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["c"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["nosuch"]}},
        {"names": ["e"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
        {"names": ["f"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}, "args": []},
    ]
    found = profile.resolve_profile({"defaultAction": "SCMP_ACT_ERRNO", "archMap": [], "syscalls": rules}, set())
    assert [rule["names"] for rule in found["syscalls"]] == [["a"], ["c"], ["f"]]
    assert found["syscalls"][1] == {"action": "SCMP_ACT_ERRNO", "errnoRet": 38, "names": ["c"]}
    found = profile.resolve_profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}, {"CAP_SYS_ADMIN"})
    assert [rule["names"] for rule in found["syscalls"]] == [["a"], ["b"], ["f"]]


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a", b"a"), ("ctrl-a,x", b"\x01x"), ("ctrl-@", b"\0"), ("ctrl-]", b"\x1d")],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    from pycontain.commands.containers import detach_keys

    assert detach_keys(text) == keys
