"""What $.linux.netDevices asks for, as far as its names say it (config-linux.md, "Network Devices")."""

from __future__ import annotations

from pycontain.runtime.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def net_devices(wanted: dict[str, Any], own: bool) -> dict[str, str]:
    """Name on the host → name in the container, which may be a template such as ``eth%d``.

    ``own``: whether the container has another network namespace than the runtime. Raises SpecError.
    """
    if not own:
        raise SpecError("$.linux.netDevices", "found devices, but no network namespace in $.linux.namespaces")
    found: dict[str, str] = {}
    for name, device in wanted.items():
        path = f"$.linux.netDevices[{name!r}]"
        new = device.get("name") or name
        _check(name, path, template=False)
        _check(new, f"{path}.name", template=True)
        if new in found.values() and "%d" not in new:
            raise SpecError(f"{path}.name", f"found {new!r} a second time")
        found[name] = new
    return found


def _check(name: str, path: str, *, template: bool) -> None:
    """dev_valid_name() and its templates, as the kernel has them."""
    rest = name.replace("%d", "", 1) if template else name
    bad = not 0 < len(name.encode("utf-8", "replace")) < 16 or name in (".", "..") or not name.isprintable()
    if bad or any(c in rest for c in "/: %"):
        raise SpecError(path, f"found {name!r}, wanted the name of a network device: 1 to 15 bytes")
