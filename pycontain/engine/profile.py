"""``--security-opt seccomp=FILE``: a profile as docker and podman write it, or an OCI ``linux.seccomp`` object.

A docker profile carries conditions (capabilities, architectures, kernel version) on its rules; they are decided
here, when the container's capabilities are known. Shape: https://docs.docker.com/engine/security/seccomp/ and the
``linux.seccomp`` section of the runtime-spec.
"""

from __future__ import annotations

import json
import os

from pycontain.engine import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DOCKER_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def read_profile(path: str) -> dict[str, Any]:
    """The JSON object in the file ``path``, checked to be a profile. Raises PycontainError."""
    text = values.read_text("security-opt seccomp", path)
    try:
        profile = json.loads(text)
    except ValueError as error:
        raise values.wrong("security-opt seccomp", path, f"not JSON: {error}") from None
    if not isinstance(profile, dict) or not isinstance(profile.get("defaultAction"), str):
        raise values.wrong("security-opt seccomp", path, "not a seccomp profile: defaultAction is missing")
    rules = profile.get("syscalls", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise values.wrong("security-opt seccomp", path, "not a seccomp profile: syscalls is not an array of objects")
    return profile


def resolve_profile(profile: dict[str, Any], capabilities: set[str]) -> dict[str, Any]:
    """The OCI ``linux.seccomp`` object of a profile, for a container with these (bounding) capabilities."""
    result: dict[str, Any] = {
        key: profile[key] for key in ("defaultAction", "defaultErrnoRet", "flags") if key in profile
    }
    machine = os.uname().machine
    if "archMap" in profile:
        wanted = f"SCMP_ARCH_{'X86_64' if machine == 'x86_64' else machine.upper()}"
        for entry in profile["archMap"] or []:
            if entry.get("architecture") == wanted:
                result["architectures"] = [wanted, *(entry.get("subArchitectures") or [])]
    elif "architectures" in profile:
        result["architectures"] = profile["architectures"]
    result["syscalls"] = [
        _plain_rule(rule) for rule in profile.get("syscalls", []) if _applies(rule, capabilities, machine)
    ]
    return result


def _plain_rule(rule: dict[str, Any]) -> dict[str, Any]:
    plain = {key: rule[key] for key in ("action", "errnoRet") if rule.get(key) is not None}
    plain["names"] = rule["names"] if "names" in rule else [rule.get("name")]
    if rule.get("args"):
        plain["args"] = rule["args"]
    return plain


def _applies(rule: dict[str, Any], capabilities: set[str], machine: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    arch = _DOCKER_ARCH.get(machine, machine)
    if excludes.get("arches") and arch in excludes["arches"]:
        return False
    if excludes.get("caps") and capabilities & set(excludes["caps"]):
        return False
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if includes.get("caps") and not set(includes["caps"]) <= capabilities:
        return False
    return _kernel() >= _version(includes.get("minKernel", "0"))


def _kernel() -> tuple[int, ...]:
    return _version(os.uname().release.partition("-")[0])


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split(".")[:2])
