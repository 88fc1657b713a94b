"""What is rare of a process: planned to the letter, or refused with its JSON path."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime import spec as spec_module
from pycontain.runtime.errors import PycontainError, SpecError, Unsupported
from pycontain.runtime.example import EXAMPLE
from pycontain.runtime.kernel.host import Host
from pycontain.runtime.plan import process as rare
from pycontain.runtime.plan.describe import describe
from pycontain.runtime.plan.ops import encode
from pycontain.runtime.plan.plan import exec_plan, plan
from pycontain.runtime.plan.rights import ALL_CAPS

UNIFIED = {"mount": "/sys/fs/cgroup", "controllers": [], "name": "", "unified": True}
FACTS = {"cgroup": "v2", "cgroups": [UNIFIED], "bounding": ALL_CAPS, "apparmor": False, "selinux": False}
PLAIN = Host.from_dict(FACTS)
LABELLED = Host.from_dict({**FACTS, "apparmor": True, "selinux": True})
ROOTFS = {"kind": "directory", "path": "/bundle/rootfs"}


def planned(process: dict[str, Any], linux: dict[str, Any] | None = None, host: Host = PLAIN) -> list[Any]:
    config: dict[str, Any] = copy.deepcopy(EXAMPLE)
    config["process"].update({"terminal": False, **process})
    config["linux"].update(linux or {})
    return plan(spec_module.check(config), host, ROOTFS, bundle="/bundle").ops


def executed(process: dict[str, Any], namespaces: list[tuple[str, str]] | None = None, host: Host = PLAIN) -> list[Any]:
    process = spec_module.check_process({"cwd": "/", "args": ["x"], **process}, shape=True)
    return exec_plan(process, {}, host, into=False, joins=1, namespaces=namespaces or []).ops


def one(ops: list[Any], name: str) -> Any:
    (found,) = [op for op in ops if op[0] == name]
    return found


@pytest.mark.parametrize(
    ("process", "op", "words"),
    [
        (
            {"scheduler": {"policy": "SCHED_RR", "priority": 99, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}},
            ("scheduler", 2, 1, 0, 99, 0, 0, 0),
            "set the scheduling policy to SCHED_RR, nice 0, priority 99, SCHED_FLAG_RESET_ON_FORK",
        ),
        (
            {"scheduler": {"policy": "SCHED_OTHER", "nice": -20}},
            ("scheduler", 0, 0, -20, 0, 0, 0, 0),
            "set the scheduling policy to SCHED_OTHER, nice -20, priority 0",
        ),
        (
            {"scheduler": {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}},
            ("scheduler", 6, 0, 0, 0, 1, 2, 3),
            "set the scheduling policy to SCHED_DEADLINE, nice 0, priority 0, runtime 1 ns, deadline 2 ns, period 3 ns",
        ),
        (
            {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 7}},
            ("io_priority", 2 << 13 | 7),
            "set the I/O priority to IOPRIO_CLASS_BE 7",
        ),
    ],
)
def test_planned(process: dict[str, Any], op: Any, words: str) -> None:
    assert one(planned(process), op[0]) == op
    assert one(executed(process), op[0]) == op
    assert describe(op) == words
    assert encode([op])


def test_all_names_of_the_specification_are_known() -> None:
    """The numbers are those of the kernel's headers, read by another pair of eyes."""
    assert list(rare.POLICIES.values()) == [0, 1, 2, 3, 4, 5, 6]
    for at, name in enumerate(
        "RESET_ON_FORK RECLAIM DL_OVERRUN KEEP_POLICY KEEP_PARAMS UTIL_CLAMP_MIN UTIL_CLAMP_MAX".split()
    ):
        assert rare.SCHEDULER_FLAGS[f"SCHED_FLAG_{name}"] == 1 << at
    modes = "DEFAULT PREFERRED BIND INTERLEAVE LOCAL PREFERRED_MANY WEIGHTED_INTERLEAVE".split()
    assert rare.MEMORY_MODES == {f"MPOL_{name}": at for at, name in enumerate(modes)}


@pytest.mark.parametrize(
    ("policy", "op", "words"),
    [
        ({"mode": "MPOL_DEFAULT"}, (0, b""), "set the memory policy to MPOL_DEFAULT"),
        (
            {"mode": "MPOL_BIND", "nodes": "0-2, 64", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_NUMA_BALANCING"]},
            (2 | 1 << 15 | 1 << 13, (7 | 1 << 64).to_bytes(16, "little")),
            "set the memory policy to MPOL_BIND MPOL_F_STATIC_NODES,MPOL_F_NUMA_BALANCING on nodes 0-2,64",
        ),
        (
            {"mode": "MPOL_PREFERRED", "nodes": "1"},
            (1, b"\2" + bytes(7)),
            "set the memory policy to MPOL_PREFERRED on nodes 1",
        ),
    ],
)
def test_memory_policy(policy: dict[str, Any], op: Any, words: str) -> None:
    found = one(planned({}, {"memoryPolicy": policy}), "memory_policy")
    assert found == ("memory_policy", *op)
    assert describe(found) == words


def test_affinity_is_of_exec_alone_around_the_join() -> None:
    process = {"execCPUAffinity": {"initial": "0", "final": "1-2,5"}}
    assert not [op for op in planned(process) if op[0] == "affinity"]
    ops = executed(process)
    assert ops[0] == ("affinity", b"\1" + bytes(7))
    names = [op[0] for op in ops]
    assert names.index("clone") < names.index("join") < names.index("affinity", 1) < names.index("exec")
    assert describe(ops[names.index("affinity", 1)]) == "keep to processors 1-2,5"
    assert "affinity" not in [op[0] for op in executed({"execCPUAffinity": {"initial": "", "final": " "}})]


def test_labels_are_set_before_the_user_is() -> None:
    process = {"apparmorProfile": "acme", "selinuxLabel": "u:r:t:s0:c1,c2", "user": {"uid": 5, "gid": 5}}
    for ops in (planned(process, host=LABELLED), executed(process, host=LABELLED)):
        names = [op[0] for op in ops]
        assert [op for op in ops if op[0] == "label"] == [
            ("label", "apparmor/exec", "exec acme"),
            ("label", "exec", "u:r:t:s0:c1,c2"),
        ]
        assert names.index("procfs") < names.index("label") < names.index("user")
    assert describe(("label", "exec", "x")) == "set the process's attribute exec to 'x'"


def test_unconfined_is_what_a_kernel_without_apparmor_does() -> None:
    assert "label" not in [op[0] for op in planned({"apparmorProfile": "unconfined"})]
    assert one(planned({"apparmorProfile": "unconfined"}, host=LABELLED), "label")[2] == "exec unconfined"


def test_mount_labels() -> None:
    ops = planned({}, {"mountLabel": "u:o:t:s0:c1,c2"}, LABELLED)
    data = {op[2]: op[5] for op in ops if op[0] == "mount"}
    assert data["/dev"] == 'mode=755,size=65536k,context="u:o:t:s0:c1,c2"'
    assert data["/proc"] == data["/sys"] == data["/dev/mqueue"] == ""


def test_limits_above_the_hard_ones_are_raised_outside_of_the_user_namespace() -> None:
    limits = {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]}
    ops = executed(limits, [("user", "/proc/5/ns/user")])
    assert [op[0] for op in ops[:3]] == ["raise_limit", "setns", "clone"]
    assert ops[0] == ("raise_limit", 7, 2) and ("rlimit", 7, 1, 2) in ops
    assert describe(ops[0]) == "raise the hard limit of RLIMIT_NOFILE to 2"
    maps = [{"containerID": 0, "hostID": 1000, "size": 1}]
    namespaces = [{"type": "user"}, {"type": "mount"}, {"type": "uts"}]
    ops = planned(limits, {"namespaces": namespaces, "uidMappings": maps, "gidMappings": maps})
    assert ops.index(("raise_limit", 7, 2)) < [op[0] for op in ops].index("clone")
    assert "raise_limit" not in [op[0] for op in planned(limits)]


def test_capabilities_of_a_user_namespace_are_all() -> None:
    """Its first process has every capability there, whatever the runtime's bounding set is (user_namespaces(7))."""
    host = Host.from_dict({**FACTS, "bounding": 1 << 5})
    caps = {"capabilities": {"bounding": ["CAP_KILL", "CAP_SYS_ADMIN"]}}
    assert ("bounding", 1 << 5) in executed(caps, host=host)
    assert ("bounding", 1 << 5 | 1 << 21) in executed(caps, [("user", "/proc/5/ns/user")], host=host)


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (
            {"scheduler": {"policy": "SCHED_X"}},
            "scheduler.policy: found 'SCHED_X', wanted one of SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_ISO, "
            "SCHED_IDLE, SCHED_DEADLINE",
        ),
        ({"scheduler": {"policy": "SCHED_ISO"}}, "scheduler.policy: no kernel has SCHED_ISO"),
        ({"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}, "scheduler.nice: found 20, wanted -20 to 19"),
        ({"scheduler": {"policy": "SCHED_FIFO"}}, "scheduler.priority: found 0, wanted 1 to 99 for SCHED_FIFO"),
        (
            {"scheduler": {"policy": "SCHED_BATCH", "priority": 1}},
            "scheduler.priority: found 1, but SCHED_BATCH knows no priority",
        ),
        (
            {"scheduler": {"policy": "SCHED_IDLE", "period": 1}},
            "scheduler.period: found 1, but SCHED_IDLE knows no period",
        ),
        (
            {"scheduler": {"policy": "SCHED_IDLE", "flags": ["X"]}},
            "scheduler.flags[0]: found 'X', wanted one of SCHED_FLAG_RESET_ON_FORK, SCHED_FLAG_RECLAIM, "
            "SCHED_FLAG_DL_OVERRUN, SCHED_FLAG_KEEP_POLICY, SCHED_FLAG_KEEP_PARAMS, SCHED_FLAG_UTIL_CLAMP_MIN, "
            "SCHED_FLAG_UTIL_CLAMP_MAX",
        ),
        (
            {"ioPriority": {"class": "IOPRIO_CLASS_NONE"}},
            "ioPriority.class: found 'IOPRIO_CLASS_NONE', wanted one of IOPRIO_CLASS_RT, IOPRIO_CLASS_BE, "
            "IOPRIO_CLASS_IDLE",
        ),
        ({"ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 8}}, "ioPriority.priority: found 8, wanted 0 to 7"),
        (
            {"execCPUAffinity": {"final": "3-1"}},
            "execCPUAffinity.final: found '3-1', wanted processors from 0 to 8191 such as 0-3,7",
        ),
        (
            {"execCPUAffinity": {"initial": "0,8192"}},
            "execCPUAffinity.initial: found '0,8192', wanted processors from 0 to 8191 such as 0-3,7",
        ),
        ({"oomScoreAdj": 1001}, "oomScoreAdj: found 1001, wanted -1000 to 1000"),
        (
            {"terminal": True, "consoleSize": {"height": 65536, "width": 1}},
            "consoleSize.height: found 65536, wanted at most 65535",
        ),
        (
            {"rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2},
            "rlimits[1].type: found 'RLIMIT_CPU' a second time",
        ),
        ({"apparmorProfile": "a\nb"}, "apparmorProfile: found 'a\\nb', wanted no newline"),
    ],
)
def test_refused(process: dict[str, Any], message: str) -> None:
    for make in (planned, executed):
        with pytest.raises((SpecError, Unsupported)) as caught:
            make(process, host=LABELLED)
        assert caught.value.message == f"$.process.{message}"


@pytest.mark.parametrize(
    ("linux", "message"),
    [
        (
            {"memoryPolicy": {}},
            "memoryPolicy.mode: found nothing, wanted one of MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, "
            "MPOL_LOCAL, MPOL_PREFERRED_MANY, MPOL_WEIGHTED_INTERLEAVE",
        ),
        (
            {"memoryPolicy": {"mode": "MPOL_LOCAL", "nodes": "0"}},
            "memoryPolicy.nodes: found '0', but MPOL_LOCAL takes no nodes",
        ),
        (
            {"memoryPolicy": {"mode": "MPOL_BIND"}},
            "memoryPolicy.nodes: found nothing, but MPOL_BIND wants at least one node",
        ),
        (
            {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "x"}},
            "memoryPolicy.nodes: found 'x', wanted memory nodes from 0 to 1023 such as 0-3,7",
        ),
        (
            {"personality": {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}},
            "personality.flags[0]: found 'ADDR_NO_RANDOMIZE', but the specification defines no flags",
        ),
        ({"mountLabel": 'a"b'}, "mountLabel: found 'a\"b', wanted no quotation mark and no newline"),
    ],
)
def test_refused_of_linux(linux: dict[str, Any], message: str) -> None:
    with pytest.raises(PycontainError) as caught:
        planned({}, linux, LABELLED)
    assert caught.value.message == f"$.linux.{message}"


# Any process that the schema allows


def _strategy(schema: dict[str, Any], files: dict[str, Any], name: str) -> st.SearchStrategy[Any]:
    """Values that a schema of the specification allows, with its references followed; half of the numbers are small."""
    if "$ref" in schema:
        file, _, pointer = schema["$ref"].partition("#")
        name = file or name
        target: Any = files[name]
        for key in pointer.strip("/").split("/"):
            target = target[key]
        return _strategy(target, files, name)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema or "oneOf" in schema or "allOf" in schema:
        options = schema.get("anyOf") or schema.get("oneOf") or schema["allOf"]
        return st.one_of([_strategy(option, files, name) for option in options])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        made = {key: _strategy(value, files, name) for key, value in schema.get("properties", {}).items()}
        required = {key: made.pop(key) for key in schema.get("required", ()) if key in made}
        return st.fixed_dictionaries(required, optional=made)
    if kind == "array":
        return st.lists(_strategy(schema["items"], files, name), max_size=3)
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -(2**31)), schema.get("maximum", 2**32)
        return st.integers(max(low, -25), min(high, 110)) | st.integers(low, high)
    if kind == "boolean":
        return st.booleans()
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    return st.text(max_size=5) | st.sampled_from(["/", "A=b", "RLIMIT_CPU", "0-1"])


def _process() -> st.SearchStrategy[Any]:
    folder = Path(os.environ.get("PYCONTAIN_TEST_ASSETS", "/"), "oci/runtime-spec")
    files = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    if not files:
        return st.just({})
    return _strategy(files["config-schema.json"]["properties"]["process"], files, "config-schema.json")


@pytest.mark.needs("assets")
@given(_process(), st.booleans())
def test_any_process_of_the_schema_is_planned_or_refused(process: dict[str, Any], labelled: bool) -> None:
    process = {**process, "cwd": "/" + process.get("cwd", ""), "args": process.get("args") or ["x"]}
    host = LABELLED if labelled else PLAIN
    try:
        ops = planned(process, host=host) + executed(process, host=host)
    except (SpecError, Unsupported) as error:
        assert error.message.startswith("$.process.")
    except PycontainError as error:
        assert "found a NUL character" in error.message
    else:
        for op in ops:
            assert describe(op)
        assert encode(ops)
