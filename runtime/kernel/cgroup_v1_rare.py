"""What few containers ask of cgroup v1, and of the cgroup2 mount beside it on a hybrid host."""

from __future__ import annotations

from pycontain.runtime.errors import SpecError, Unsupported
from pycontain.runtime.jsontext import dump
from pycontain.runtime.kernel.cgroup import RESOURCES
from pycontain.runtime.kernel.cgroup_rare import device_weights, hugepages, rdma, throttles, weight
from pycontain.runtime.kernel.files import read
from pycontain.runtime.kernel.hierarchies import Hierarchy
from pycontain.runtime.paths import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Setting
    from pycontain.runtime.kernel.cgroup_v1 import CgroupV1

_THROTTLES = {
    "throttleReadBpsDevice": "blkio.throttle.read_bps_device",
    "throttleWriteBpsDevice": "blkio.throttle.write_bps_device",
    "throttleReadIOPSDevice": "blkio.throttle.read_iops_device",
    "throttleWriteIOPSDevice": "blkio.throttle.write_iops_device",
}
_U32 = (1 << 32) - 1
_MOST_NAME = 15  # IFNAMSIZ less its NUL


def rare_settings(cgroup: CgroupV1, resources: dict[str, Any]) -> list[Setting]:
    """``CgroupV1.settings`` of the sections in ``cgroup.RARE``."""
    settings: list[Setting] = []
    _block_io(cgroup, resources.get("blockIO") or {}, settings)
    _network(cgroup, resources.get("network") or {}, settings)
    beside: dict[str, Any] = {}  # what the cgroup2 of a hybrid host is to do
    limits = resources.get("hugepageLimits")
    if limits and "hugetlb" in cgroup.by_controller:
        settings += hugepages(limits, cgroup.by_controller["hugetlb"], ".limit_in_bytes")
    elif limits:
        beside["hugepageLimits"] = limits
    if "rdma" in cgroup.by_controller:
        settings += rdma(resources.get("rdma") or {}, lambda where: cgroup.file("rdma", "rdma.max", where))
    elif resources.get("rdma"):
        beside["rdma"] = resources["rdma"]
    unified = resources.get("unified") or {}
    for key in unified:
        controller = key.partition(".")[0]
        if controller in cgroup.by_controller:
            raise Unsupported(
                f"{RESOURCES}unified[{dump(key)}]: a file of cgroup v2, but this host has its {controller} controller "
                "on v1"
            )
    if unified:
        beside["unified"] = unified
    return settings + (_beside(cgroup, beside) if beside else [])


def _block_io(cgroup: CgroupV1, block: dict[str, Any], settings: list[Setting]) -> None:
    def add(where: str, name: str, value: str) -> None:
        path = cgroup.file("blkio", name, where)
        # CFQ's files went with it in Linux 5.0; BFQ has the same under names of its own, but for the leaves.
        bfq = cgroup.file("blkio", name.replace("blkio.", "blkio.bfq."), where)
        settings.append((where, bfq if not exists(path) and exists(bfq) else path, value))

    for field, name in (("weight", "blkio.weight"), ("leafWeight", "blkio.leaf_weight")):
        if block.get(field):
            add(f"blockIO.{field}", name, str(weight(block[field], f"blockIO.{field}")))
    for field, where, device, value in device_weights(block):
        name = "blkio.weight_device" if field == "weight" else "blkio.leaf_weight_device"
        add(where, name, f"{device} {value}")
    for field, where, device, rate in throttles(block):
        settings.append((where, cgroup.file("blkio", _THROTTLES[field], where), f"{device} {rate}"))


def _network(cgroup: CgroupV1, network: dict[str, Any], settings: list[Setting]) -> None:
    number = network.get("classID")
    if number:
        where = "network.classID"
        settings.append((where, cgroup.file("net_cls", "net_cls.classid", where), str(_u32(number, where))))
    for i, entry in enumerate(network.get("priorities") or ()):
        where, name = f"network.priorities[{i}]", entry["name"]
        if len(name.split()) != 1 or len(name) > _MOST_NAME:
            raise SpecError(f"{RESOURCES}{where}.name", f"found {name!r}, wanted the name of a network interface")
        value = f"{name} {_u32(entry['priority'], where + '.priority')}"
        settings.append((where, cgroup.file("net_prio", "net_prio.ifpriomap", where), value))


def _u32(value: int, where: str) -> int:
    if value > _U32:
        raise SpecError(RESOURCES + where, f"found {value}, wanted at most {_U32}")
    return value


def _beside(cgroup: CgroupV1, resources: dict[str, Any]) -> list[Setting]:
    """What the cgroup2 mount beside v1's has controllers for (on some hosts hugetlb, on most none)."""
    from pycontain.runtime.kernel.cgroup_v2 import CgroupV2
    from pycontain.runtime.kernel.cgroup_v2_rare import rare_settings

    if cgroup.unified is None:
        section = min(resources)
        if section == "unified":
            raise Unsupported(f"{RESOURCES}unified: files of cgroup v2, but this host has v1 alone")
        raise Unsupported(f"{RESOURCES}{section}: this host has no {_CONTROLLER[section]} controller")
    other = CgroupV2(cgroup.path, [Hierarchy(cgroup.unified.removesuffix(cgroup.path), unified=True)])
    wanted = {_CONTROLLER[section] for section in resources if section in _CONTROLLER}
    wanted |= {key.partition(".")[0] for key in resources.get("unified") or ()}
    there = read(f"{other.mount}/cgroup.controllers").split()
    other.enable([name for name in there if name in wanted])
    return rare_settings(other, resources)


_CONTROLLER = {"hugepageLimits": "hugetlb", "rdma": "rdma"}
