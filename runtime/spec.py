"""The runtime specification's config.json: loaded, checked, with the JSON path in every error.

A Spec is the parsed JSON itself (a dict), proven to have the shape of ``SCHEMA``; unknown properties are
kept and ignored, as the specification asks (config.md, "Extensibility"). What is known but not built is
refused by the plan, by name.
"""

from __future__ import annotations

from pycontain.runtime import errors
from pycontain.runtime.jsontext import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

# "str", "int", "uint", "bool"; "!" required; [x] a list; {"*": x} a map; "any" is not looked into.
_IDMAP = {"containerID": "uint!", "hostID": "uint!", "size": "uint!"}
_HOOK = {"path": "str!", "args": ["str"], "env": ["str"], "timeout": "int"}
_DEVICE_RULE = {"allow": "bool!", "type": "str", "major": "int", "minor": "int", "access": "str"}
_THROTTLE = {"major": "int!", "minor": "int!", "rate": "uint!"}
PROCESS = {
    "terminal": "bool",
    "consoleSize": {"height": "uint!", "width": "uint!"},
    "user": {"uid": "uint", "gid": "uint", "umask": "uint", "additionalGids": ["uint"], "username": "str"},
    "args": ["str"],
    "commandLine": "str",
    "env": ["str"],
    "cwd": "str!",
    "capabilities": {k: ["str"] for k in ("bounding", "effective", "inheritable", "permitted", "ambient")},
    "rlimits": [{"type": "str!", "hard": "uint!", "soft": "uint!"}],
    "noNewPrivileges": "bool",
    "apparmorProfile": "str",
    "oomScoreAdj": "int",
    "selinuxLabel": "str",
    "ioPriority": {"class": "str!", "priority": "int"},
    "scheduler": {
        "policy": "str!",
        "flags": ["str"],
        **dict.fromkeys(("nice", "priority"), "int"),
        **dict.fromkeys(("runtime", "deadline", "period"), "uint"),
    },
    "execCPUAffinity": {"initial": "str", "final": "str"},
}
SCHEMA: dict[str, Any] = {
    "ociVersion": "str!",
    "process": PROCESS,
    "root": {"path": "str!", "readonly": "bool"},
    "hostname": "str",
    "domainname": "str",
    "mounts": [
        {
            "destination": "str!",
            "type": "str",
            "source": "str",
            "options": ["str"],
            "uidMappings": [_IDMAP],
            "gidMappings": [_IDMAP],
        }
    ],
    "hooks": {
        k: [_HOOK] for k in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    },
    "annotations": {"*": "str"},
    "linux": {
        "uidMappings": [_IDMAP],
        "gidMappings": [_IDMAP],
        "sysctl": {"*": "str"},
        "resources": {
            "devices": [_DEVICE_RULE],
            "memory": {
                **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), "int"),
                "swappiness": "uint",
                **dict.fromkeys(("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"), "bool"),
            },
            "cpu": {
                **dict.fromkeys(("shares", "burst", "period", "realtimePeriod"), "uint"),
                **dict.fromkeys(("quota", "realtimeRuntime", "idle"), "int"),
                "cpus": "str",
                "mems": "str",
            },
            "pids": {"limit": "int"},
            "blockIO": {
                "weight": "uint",
                "leafWeight": "uint",
                "weightDevice": [{"major": "int!", "minor": "int!", "weight": "uint", "leafWeight": "uint"}],
                **{f"throttle{k}Device": [_THROTTLE] for k in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")},
            },
            "hugepageLimits": [{"pageSize": "str!", "limit": "uint!"}],
            "network": {"classID": "uint", "priorities": [{"name": "str!", "priority": "uint!"}]},
            "rdma": {"*": {"hcaHandles": "uint", "hcaObjects": "uint"}},
            "unified": {"*": "str"},
        },
        "cgroupsPath": "str",
        "namespaces": [{"type": "str!", "path": "str"}],
        "devices": [
            {
                "path": "str!",
                "type": "str!",
                "major": "int",
                "minor": "int",
                "fileMode": "uint",
                "uid": "uint",
                "gid": "uint",
            }
        ],
        "netDevices": {"*": {"name": "str"}},
        "seccomp": {
            "defaultAction": "str!",
            "defaultErrnoRet": "uint",
            "architectures": ["str"],
            "flags": ["str"],
            "listenerPath": "str",
            "listenerMetadata": "str",
            "syscalls": [
                {
                    "names": ["str"],
                    "action": "str!",
                    "errnoRet": "uint",
                    "args": [{"index": "uint!", "value": "uint!", "valueTwo": "uint", "op": "str!"}],
                }
            ],
        },
        "rootfsPropagation": "str",
        "maskedPaths": ["str"],
        "readonlyPaths": ["str"],
        "mountLabel": "str",
        "intelRdt": "any",
        "memoryPolicy": {"mode": "str", "nodes": "str", "flags": ["str"]},
        "personality": {"domain": "str!", "flags": ["str"]},
        "timeOffsets": {"*": {"secs": "int", "nanosecs": "uint"}},
    },
    "vm": {
        "hypervisor": {"path": "str!", "parameters": ["str"]},
        "kernel": {"path": "str!", "parameters": ["str"], "initrd": "str"},
        "image": {"path": "str!", "format": "str"},
        "hwConfig": {
            "deviceTree": "str",
            "vcpus": "uint",
            "memory": "uint",
            "dtdevs": ["str"],
            "iomems": [{"firstGFN": "uint", "firstMFN": "uint!", "nrMFNs": "uint!"}],
            "irqs": ["uint"],
        },
    },
    "windows": "any",
    "solaris": "any",
    "zos": "any",
    "freebsd": "any",
}
_KINDS = {"str": "a string", "int": "an integer", "uint": "a non-negative integer", "bool": "true or false"}
_UNSIGNED_MAX = (1 << 64) - 1


_right = b""


def read(raw: bytes, what: str) -> Spec:
    """The configuration that ``raw`` is, of the file ``what``. Raises PycontainError, and what ``check`` raises.

    A program that starts one bundle many times has it checked once.
    """
    global _right
    config: Spec = parse(raw, what)
    if raw != _right:
        check(config)
        _right = b"" if b"null" in raw else raw  # check takes those out
    return config


def check(value: Any) -> Spec:
    """``value`` itself, if it is a Spec. Raises SpecError with the JSON path of the first fault."""
    _shape(value, SCHEMA, "$")
    spec: Spec = value
    version = spec["ociVersion"].split("-")[0].split("+")[0].split(".")
    if len(version) != 3 or not all(part.isdigit() for part in version):
        raise errors.SpecError("$.ociVersion", f"found {spec['ociVersion']!r}, wanted a version such as 1.3.0")
    if version[0] != "1":
        raise errors.SpecError(
            "$.ociVersion", f"found {spec['ociVersion']}, wanted 1.x: this runtime knows no other major version"
        )
    if "process" in spec:
        check_process(spec["process"])
    if spec.get("root", {}).get("path") == "":
        raise errors.SpecError("$.root.path", "found an empty string, wanted a directory")
    seen = set()
    for i, namespace in enumerate(spec.get("linux", {}).get("namespaces") or ()):
        if namespace["type"] in seen:
            raise errors.SpecError(f"$.linux.namespaces[{i}].type", f"found {namespace['type']!r} a second time")
        seen.add(namespace["type"])
    return spec


def check_process(process: Any, path: str = "$.process", *, shape: bool = False) -> dict[str, Any]:
    """``process`` itself, if it is the specification's process object (as ``exec --process`` takes it)."""
    if shape:
        _shape(process, PROCESS, path)
    result: dict[str, Any] = process
    if not result["cwd"].startswith("/"):
        raise errors.SpecError(f"{path}.cwd", f"found {result['cwd']!r}, wanted an absolute path")
    if not result.get("args"):
        raise errors.SpecError(f"{path}.args", "found nothing, wanted at least the program to run")
    for i, item in enumerate(result.get("env") or ()):
        if "=" not in item[1:]:
            raise errors.SpecError(f"{path}.env[{i}]", f"found {item!r}, wanted NAME=value")
    return result


def check_resources(value: Any, path: str = "$") -> dict[str, Any]:
    """``value`` itself, if it has the shape of the specification's resources object (as ``update`` takes it)."""
    _shape(value, SCHEMA["linux"]["resources"], path)
    result: dict[str, Any] = value
    return result


def _shape(value: Any, schema: Any, path: str) -> None:
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            raise errors.SpecError(path, f"found {_found(value)}, wanted an object")
        every = schema.get("*")
        if every is not None:
            for key, item in value.items():
                _scalar(key, "str", f"{path}[{key!r}]")
                _shape(item, every, f"{path}[{key!r}]")
            return
        for key, kind in schema.items():
            item = value.get(key)
            if item is not None:
                _shape(item, kind, f"{path}.{key}")
            elif kind.__class__ is str and kind[-1] == "!":
                raise errors.SpecError(f"{path}.{key}", "found nothing, wanted " + _KINDS[kind[:-1]])
            elif key in value:
                del value[key]  # null means absent
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise errors.SpecError(path, f"found {_found(value)}, wanted a list")
        for i, item in enumerate(value):
            _shape(item, schema[0], f"{path}[{i}]")
    else:
        _scalar(value, schema.rstrip("!"), path)


def _scalar(value: Any, kind: str, path: str) -> None:
    if kind == "str":
        good = isinstance(value, str) and "\0" not in value and (value.isascii() or _is_text(value))
    elif kind == "bool":
        good = isinstance(value, bool)
    elif kind == "any":
        good = True
    else:
        low = 0 if kind == "uint" else -(1 << 63)
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= _UNSIGNED_MAX
    if not good:
        raise errors.SpecError(path, f"found {_found(value)}, wanted {_KINDS[kind]}")


def _is_text(value: str) -> bool:
    """JSON can write half of a character, which no file name or argument can hold."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _found(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."
