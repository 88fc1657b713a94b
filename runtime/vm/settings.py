"""What a machine is made of: the operator's file, then what the specification's ``vm`` object says of this container.

The file is ``/etc/pycontain/vm.toml``, or the one that PYCONTAIN_VM_CONFIG names. An annotation chooses no program and
no kernel: only the operator and config.json do.
"""

from __future__ import annotations

import os

from pycontain.runtime.errors import PycontainError, SpecError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE = "/etc/pycontain/vm.toml"
ANNOTATION = "org.pycontain.isolation"
_MEMORY_MAX = 1 << 40
_CHOICES = {"machine": ("auto", "microvm", "q35"), "accel": ("auto", "kvm", "tcg")}


class Settings:
    """``hypervisor`` and ``kernel`` (None: the distribution's) are paths or a name in PATH; ``parameters`` are
    added to the kernel's command line; ``machine`` is ``auto|microvm|q35``, ``accel`` ``auto|kvm|tcg``; ``memory`` is
    what a guest has where no limit says more, ``overhead`` what it has beside the container, both in MiB; ``cpus``
    None: as many as the container may use; ``templates``: whether machines are cloned from one that was booted before,
    of the same trust ``domain``; ``cache`` is the directory of kernels and initramfs.
    """

    def __init__(self) -> None:
        self.hypervisor = "qemu-system-x86_64"
        self.kernel: str | None = None
        self.parameters: list[str] = []
        self.machine = "auto"
        self.accel = "auto"
        self.memory = 512
        self.overhead = 96
        self.cpus: int | None = None
        self.templates = True
        self.domain = ""
        self.cache = "/var/lib/pycontain/vm"


def wanted(config: dict[str, Any]) -> bool:
    """Whether the container of ``config`` is to run in a machine: it has a ``vm`` object, or the annotation says so."""
    value = (config.get("annotations") or {}).get(ANNOTATION)
    if value not in (None, "vm", "namespaces"):
        raise SpecError(f"$.annotations[{ANNOTATION!r}]", f"found {value!r}, wanted vm or namespaces")
    return value == "vm" or (value is None and config.get("vm") is not None)


def load(config: dict[str, Any]) -> Settings:
    """The settings for the container of ``config``. Raises PycontainError (the file), SpecError and Unsupported."""
    settings = Settings()
    path = os.environ.get("PYCONTAIN_VM_CONFIG") or FILE
    for key, value in _read(path).items():
        _set(settings, key, value, path)
    _specification(settings, config.get("vm") or {})
    return settings


def _read(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if path == FILE:
            return {}
        raise PycontainError(f"cannot read {path}, which PYCONTAIN_VM_CONFIG names: it does not exist") from None
    except (OSError, ValueError) as error:
        raise PycontainError(f"cannot read {path}: {error}") from None


def _set(settings: Settings, key: str, value: Any, path: str) -> None:
    known = vars(Settings())
    if key not in known:
        raise PycontainError(f"{path}: found {key!r}, wanted one of {', '.join(sorted(known))}")
    default = known[key]
    kind = type(default) if default is not None else int if key == "cpus" else str
    good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is list:
        good = good and all(isinstance(item, str) for item in value)
    if not good:
        words = {bool: "true or false", int: "a number", str: "a string", list: "a list of strings"}
        raise PycontainError(f"{path}: {key}: found {value!r}, wanted {words[kind]}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise PycontainError(f"{path}: {key}: found {value!r}, wanted one of {', '.join(_CHOICES[key])}")
    if kind is int and value < 1:
        raise PycontainError(f"{path}: {key}: found {value}, wanted at least 1")
    if key in ("kernel", "cache") and not value.startswith("/"):
        raise PycontainError(f"{path}: {key}: found {value!r}, wanted an absolute path")
    setattr(settings, key, value)


def _specification(settings: Settings, vm: dict[str, Any]) -> None:
    """config-vm.md. What it has and this runtime has not is refused with its JSON path."""
    hypervisor, kernel, hardware = vm.get("hypervisor") or {}, vm.get("kernel") or {}, vm.get("hwConfig") or {}
    if hypervisor.get("parameters"):
        raise Unsupported(
            "$.vm.hypervisor.parameters: the machine's command line is this runtime's own: a parameter could undo its "
            "confinement",
            hint=f"set what you need in {FILE}",
        )
    if vm.get("image"):
        raise Unsupported(
            "$.vm.image: the machine boots from an initramfs that this runtime makes, and takes no other image",
            hint="the container's own root file system is $.root.path",
        )
    for key in ("deviceTree", "dtdevs", "iomems", "irqs"):
        if hardware.get(key):
            raise Unsupported(f"$.vm.hwConfig.{key}: no device of the host is passed on to a machine")
    for path, value in (
        ("hypervisor.path", hypervisor.get("path")),
        ("kernel.path", kernel.get("path")),
        ("kernel.initrd", kernel.get("initrd")),
    ):
        if value is not None and not value.startswith("/"):
            raise SpecError(f"$.vm.{path}", f"found {value!r}, wanted an absolute path")
        if value is not None and not os.path.isfile(value):
            raise SpecError(f"$.vm.{path}", f"found {value!r}, which is not a file")
    if kernel.get("initrd"):
        raise Unsupported("$.vm.kernel.initrd: the machine boots from an initramfs that this runtime makes")
    settings.hypervisor = hypervisor.get("path") or settings.hypervisor
    settings.kernel = kernel.get("path") or settings.kernel
    settings.parameters = [*settings.parameters, *(kernel.get("parameters") or ())]
    if hardware.get("vcpus") is not None:
        if hardware["vcpus"] < 1:
            raise SpecError("$.vm.hwConfig.vcpus", f"found {hardware['vcpus']}, wanted at least 1")
        settings.cpus = hardware["vcpus"]
    if hardware.get("memory") is not None:
        if hardware["memory"] < 32 << 20:
            raise SpecError("$.vm.hwConfig.memory", f"found {hardware['memory']} bytes, wanted at least 33554432")
        if hardware["memory"] > _MEMORY_MAX:
            raise SpecError("$.vm.hwConfig.memory", f"found {hardware['memory']} bytes, wanted at most {_MEMORY_MAX}")
        settings.memory = hardware["memory"] >> 20
