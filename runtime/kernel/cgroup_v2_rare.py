"""What few containers ask of cgroup v2: block IO, huge pages, RDMA, and files by their own names."""

from __future__ import annotations

from pycontain.runtime.errors import SpecError, Unsupported
from pycontain.runtime.jsontext import dump
from pycontain.runtime.kernel.cgroup import RESOURCES
from pycontain.runtime.kernel.cgroup_rare import device_weights, hugepages, rdma, throttles, weight
from pycontain.runtime.paths import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Setting
    from pycontain.runtime.kernel.cgroup_v2 import CgroupV2

_THROTTLES = {
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}


def rare_settings(cgroup: CgroupV2, resources: dict[str, Any]) -> list[Setting]:
    """``CgroupV2.settings`` of the sections in ``cgroup.RARE``."""
    settings: list[Setting] = []
    _block_io(cgroup, resources.get("blockIO") or {}, settings)
    limits = resources.get("hugepageLimits")
    if limits:
        cgroup.need("hugetlb", "hugepageLimits")
        settings += hugepages(limits, cgroup.at, ".max")
    for field, value in (resources.get("network") or {}).items():
        if value:
            raise Unsupported(f"{RESOURCES}network.{field}: cgroup v2 has no such setting")
    settings += rdma(resources.get("rdma") or {}, lambda where: cgroup.file("rdma.max", where))
    for key, value in (resources.get("unified") or {}).items():
        where = f"unified[{dump(key)}]"
        # Of our own directory and of no other, "..".
        if not key.isascii() or not key.isprintable() or "/" in key or " " in key or key.find(".") < 1:
            raise SpecError(f"{RESOURCES}{where}", "not the name of a cgroup file")
        file = cgroup.file(key, where)
        # Files such as io.max take one device per write.
        settings.extend((where, file, line) for line in str(value).splitlines() or [""])
    return settings


def _block_io(cgroup: CgroupV2, block: dict[str, Any], settings: list[Setting]) -> None:
    # With the BFQ scheduler in the kernel its file has OCI's own scale; the other one goes from 1 to 10000.
    bfq = exists(f"{cgroup.at}/io.bfq.weight")
    name, convert = ("io.bfq.weight", int) if bfq else ("io.weight", weight_of_blkio)
    if block.get("weight"):
        where = "blockIO.weight"
        settings.append((where, cgroup.file(name, where), str(convert(weight(block["weight"], where)))))
    if block.get("leafWeight"):
        raise Unsupported(f"{RESOURCES}blockIO.leafWeight: cgroup v2 has no such setting")
    for field, where, device, value in device_weights(block):
        if field == "leafWeight":
            raise Unsupported(f"{RESOURCES}{where}: cgroup v2 has no such setting")
        settings.append((where, cgroup.file(name, where), f"{device} {convert(value)}"))
    for field, where, device, rate in throttles(block):
        settings.append((where, cgroup.file("io.max", where), f"{device} {_THROTTLES[field]}={rate or 'max'}"))


def weight_of_blkio(weight: int) -> int:
    """io.weight (1 to 10000) for v1's blkio weight (10 to 1000): linear, as runc and crun have it."""
    return 1 + (weight - 10) * 9999 // 990
