"""No property of config.json is ignored: each changes what is done, or is refused by name."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime import creation, spec
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.example import EXAMPLE
from pycontain.runtime.kernel.cgroup_v1 import CgroupV1
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2
from pycontain.runtime.kernel.hierarchies import Hierarchy
from pycontain.runtime.kernel.host import Host
from pycontain.runtime.plan.plan import exec_plan
from tests.conformance.fields import FIELDS, PAGE, ROOT, Config, put, render


def schema_paths() -> set[str]:
    """Every property in config-schema.json that has no properties of its own."""
    folder = Path(os.environ["PYCONTAIN_TEST_ASSETS"], "oci", "runtime-spec")
    files: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in files:
            path = folder / name
            files[name] = json.loads(path.read_text()) if path.exists() else {}  # other platforms' are not there
        return files[name]

    def walk(schema: dict[str, Any], file: str, path: str) -> Iterator[str]:
        """The leaves at and below ``path``."""
        if "$ref" in schema:
            name, _, fragment = schema["$ref"].partition("#")
            file = name or file
            target = load(file)
            for key in fragment.strip("/").split("/") if target and fragment else ():
                target = target[key]
            yield from walk(target, file, path)
            return
        below: list[str] = []
        for part in (*schema.get("allOf", ()), *schema.get("anyOf", ()), *schema.get("oneOf", ())):
            below += [found for found in walk(part, file, path) if found != path]
        for name, part in schema.get("properties", {}).items():
            below += walk(part, file, f"{path}.{name}")
        if isinstance(schema.get("items"), dict):
            below += [found for found in walk(schema["items"], file, f"{path}[]") if found != f"{path}[]"]
        more = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
        for part in (part for part in more if isinstance(part, dict)):
            below += [found for found in walk(part, file, f"{path}.*") if found != f"{path}.*"]
        yield from below or [path]

    return set(walk(load("config-schema.json"), "config-schema.json", "$"))


@pytest.mark.needs("assets")
def test_there_is_a_row_for_each_property_of_the_schema_and_for_nothing_else() -> None:
    assert set(FIELDS) == schema_paths()


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == render(), "python -m tests.conformance.fields"


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    """Directories that look like a container's cgroup on v1 and on v2: every file that a setting goes to."""
    for hierarchy, files in FILES.items():
        for level in (tmp_path / hierarchy, tmp_path / hierarchy / "box"):
            level.mkdir(parents=True, exist_ok=True)
            for file in files.split():
                (level / file).write_text("max 100000" if file == "cpu.max" else "0")
    for level in (tmp_path / "v2", tmp_path / "v2" / "box"):
        (level / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma")
    return tmp_path


FILES = {
    "v2": "cpu.max cpu.max.burst cpu.idle cpu.weight cpuset.cpus cpuset.mems io.max io.weight memory.max memory.low memory.high memory.swap.max "
    "memory.current pids.max rdma.max hugetlb.2MB.max hugetlb.1GB.max",
    "cpu": "cpu.shares cpu.cfs_period_us cpu.cfs_quota_us cpu.cfs_burst_us cpu.rt_period_us cpu.rt_runtime_us cpu.idle",
    "cpuset": "cpuset.cpus cpuset.mems",
    "memory": "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes memory.swappiness memory.oom_control "
    "memory.kmem.tcp.limit_in_bytes",
    "pids": "pids.max",
    "devices": "devices.allow devices.deny",
    "blkio": "blkio.weight blkio.leaf_weight blkio.weight_device blkio.leaf_weight_device blkio.throttle.read_bps_device "
    "blkio.throttle.write_bps_device blkio.throttle.read_iops_device blkio.throttle.write_iops_device",
    "net_cls": "net_cls.classid",
    "net_prio": "net_prio.ifpriomap",
    "hugetlb": "hugetlb.2MB.limit_in_bytes hugetlb.1GB.limit_in_bytes",
    "rdma": "rdma.max",
}


def base() -> Config:
    config: Config = copy.deepcopy(EXAMPLE)
    config["process"]["terminal"] = False
    config["mounts"] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    for key in ("maskedPaths", "readonlyPaths"):
        del config["linux"][key]
    config["linux"]["resources"] = {}
    for key in ("rlimits", "noNewPrivileges"):
        del config["process"][key]
    config["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")]
    return config


def outcome(config: Config, mounts: Path) -> list[object]:
    """All that creating a container of ``config`` would do, as far as plain data says it."""
    spec.check(config)
    resources = creation.complete_resources(config)
    v2 = CgroupV2("/box", [Hierarchy(str(mounts / "v2"), unified=True)])
    v1 = CgroupV1("/box", [Hierarchy(str(mounts / name), (name,), device=name) for name in FILES if name != "v2"])
    host = Host.from_dict({"cgroup": "v2", "cgroups": [{"mount": "/sys/fs/cgroup", "controllers": [], "name": "", "unified": True}],
                           "last_cap": 40, "apparmor": False, "selinux": False, "arch": "x86_64", "kernel": (6, 1), "bounding": (1 << 41) - 1, "euid": 0})  # fmt: skip
    root = {"kind": "directory", "path": config["root"]["path"]}
    p = creation.plan_for(v2, config, resources, host, root, bundle="/bundle", listen=True)
    more = exec_plan(config["process"], config["linux"], host, into=False, joins=0, namespaces=[])
    done: list[object] = [p.ops, p.late, p.files, p.uid_maps, p.gid_maps, p.hooks, p.net_devices, more.ops]
    done += [creation.cgroup_path(config, "box"), config.get("annotations")]
    refusals = []
    for cgroup in (v1, v2):
        try:
            done.append(cgroup.settings(resources))
        except PycontainError as error:
            refusals.append(error)
            done.append("refused")
    if len(refusals) == 2:
        raise refusals[1]
    return done


@pytest.mark.parametrize("path", sorted(path for path, field in FIELDS.items() if not field.by))
def test_a_property_changes_what_is_done_or_is_refused(path: str, mounts: Path) -> None:
    field = FIELDS[path]
    without, with_ = base(), base()
    for config in (without, with_):
        if field.beside:
            field.beside(config)
    put(with_, path, field.sample)
    if field.refused:
        with pytest.raises(PycontainError) as caught:
            outcome(with_, mounts)
        assert caught.value.message == field.refused
        outcome(without, mounts)
        return
    assert (outcome(with_, mounts) == outcome(without, mounts)) == bool(field.ignored)


def test_what_tests_are_named_are_there() -> None:
    for path, field in FIELDS.items():
        if field.by:
            assert path.rpartition(".")[2].removesuffix("[]") in (ROOT / field.by).read_text(), path
