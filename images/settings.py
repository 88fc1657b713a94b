"""Settings of the registries: two TOML files, the user's over the machine's.

[registry."localhost:5000"]          # host[:port] as it stands in an image's name; docker.io for the default one
ca = "/etc/pycontain/ca.crt"         # trusted for this registry, beside the system's authorities
insecure = false                     # true: no certificate is verified, and plain http will do
mirrors = ["https://localhost:5001"] # asked first, in this order

[pull]
workers = 3                          # blobs fetched at once
attempts = 5                         # tries of one request, before it fails
connect_timeout = 5                  # seconds from the first try to reach a registry until it has answered
read_timeout = 30                    # seconds for the next answer, or for the next 4096 bytes of a blob
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pycontain.runtime.errors import NotFound, PycontainError, SpecError, errno_text

if TYPE_CHECKING:
    import ipaddress

SYSTEM_FILE = "/etc/pycontain/config.toml"
CERTS_DIR = "/etc/docker/certs.d"
_MAX_FILE = 1 << 20
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_MIRROR = re.compile(rf"(https?)://({_HOST.pattern})((?:/[A-Za-z0-9._-]+)*)/?", re.ASCII)


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """What is configured for one host; ``ca`` is an absolute path, ``mirrors`` are URLs in the order to ask."""

    ca: str | None = None
    insecure: bool = False
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are seconds. ``environ`` is where proxies, credential files and their helpers are looked up."""

    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    workers: int = 3
    attempts: int = 5
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    certs_dir: str = CERTS_DIR

    def registry(self, host: str) -> RegistrySettings:
        """The settings of ``host[:port]``; the defaults where it has none."""
        return self.registries.get(host) or RegistrySettings()


def load(environ: Mapping[str, str], *, system_file: str = SYSTEM_FILE) -> Settings:
    """Read the files: ``$PYCONTAIN_CONFIG`` alone where it is set, else the machine's and then the user's.

    Raises SpecError, whose path is the file and the key, for what is malformed or unknown; NotFound where
    ``$PYCONTAIN_CONFIG`` names no file; PycontainError for a file that cannot be read.
    """
    only = environ.get("PYCONTAIN_CONFIG")
    found = [(path, _read(path, required=bool(only))) for path in ([only] if only else _files(environ, system_file))]
    pull: dict[str, Any] = {}
    hosts: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    for path, document in found:
        for key, value in document.items():
            if key == "registry":
                for host, fields in _table(value, f"{path}: registry").items():
                    where = f'{path}: registry."{host}"'
                    hosts.setdefault(host, {}).update(_registry(host, fields, where))
                    origin[host] = where
            elif key == "pull":
                pull.update(_pull(value, f"{path}: pull"))
            else:
                raise SpecError(f"{path}: {key}", "is not a setting (known: registry, pull)")
    registries = {host: RegistrySettings(**fields) for host, fields in hosts.items()}
    for host, settings in registries.items():
        for number, mirror in enumerate(settings.mirrors):
            _, mirror_host, _ = split_mirror(mirror)
            if mirror.startswith("http:") and not _may_be_plain(mirror_host, registries):
                raise SpecError(
                    f"{origin[host]}.mirrors[{number}]",
                    f"{mirror} is plain http, and {mirror_host} is not configured as insecure",
                    hint=f'add [registry."{mirror_host}"] insecure = true',
                )
    return Settings(registries, environ=environ, **pull)


def split_mirror(url: str) -> tuple[str, str, str]:
    """``https://host:5000/a/b`` in scheme, host[:port] and the path below which repositories lie (``a/b`` or empty)."""
    match = _MIRROR.fullmatch(url)
    if not match:
        raise PycontainError(f"{url!r} is not a mirror (https://host[:port][/path])")
    return match[1], match[2], match[3].strip("/")


def loopback_name(host: str) -> bool:
    """Is this name (no port, no brackets) loopback, as far as that can be said without asking a resolver?"""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _numeric(name)
    return address is not None and address.is_loopback


def local_name(host: str) -> bool:
    """Does this name mean this machine, or its link (where clouds keep their secrets, 169.254.169.254)?"""
    address = _numeric(host.rstrip(".").lower())
    return loopback_name(host) or (address is not None and (address.is_unspecified or address.is_link_local))


def _numeric(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a name is, in any of the ways in which resolvers read one."""
    import ipaddress
    import socket

    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:  # 127.1, 2130706433 and 0x7f000001 too
            address = ipaddress.ip_address(socket.inet_aton(name))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def host_name(host: str) -> str:
    """``host:port`` without the port, ``[::1]:5000`` without the brackets as well."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _may_be_plain(host: str, registries: Mapping[str, RegistrySettings]) -> bool:
    configured = registries.get(host)
    return loopback_name(host_name(host)) or bool(configured and configured.insecure)


def _files(environ: Mapping[str, str], system_file: str) -> list[str]:
    home = environ.get("HOME")
    config = environ.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else None)
    return [system_file] + ([os.path.join(config, "pycontain", "config.toml")] if config else [])


def _read(path: str, *, required: bool) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        if required:
            raise NotFound(f"settings file {path} does not exist", hint="unset PYCONTAIN_CONFIG") from None
        return {}
    except OSError as error:
        raise PycontainError(f"read settings file {path}: {errno_text(error.errno or 0)}") from error
    if len(data) > _MAX_FILE:
        raise PycontainError(f"settings file {path} is larger than {_MAX_FILE} bytes")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PycontainError(f"settings file {path} is not TOML: {str(error)[:1].lower()}{str(error)[1:]}") from None


def _registry(host: str, value: object, where: str) -> dict[str, Any]:
    if not _HOST.fullmatch(host):
        raise SpecError(where, "is not a registry's host[:port]")
    result: dict[str, Any] = {}
    for key, found in _table(value, where).items():
        path = f"{where}.{key}"
        if key == "ca":
            if not isinstance(found, str) or not found.startswith("/"):
                raise SpecError(path, f"must be an absolute path, found {found!r}")
            result[key] = found
        elif key == "insecure":
            if not isinstance(found, bool):
                raise SpecError(path, f"must be true or false, found {found!r}")
            result[key] = found
        elif key == "mirrors":
            if not isinstance(found, list):
                raise SpecError(path, f"must be an array of URLs, found {found!r}")
            for number, url in enumerate(found):
                if not isinstance(url, str) or not _MIRROR.fullmatch(url):
                    raise SpecError(f"{path}[{number}]", f"must be https://host[:port][/path], found {url!r}")
            result[key] = tuple(found)
        else:
            raise SpecError(path, "is not a setting (known: ca, insecure, mirrors)")
    return result


def _pull(value: object, where: str) -> dict[str, Any]:
    bounds = {"workers": (1, 16), "attempts": (1, 20), "connect_timeout": (0.1, 600), "read_timeout": (0.1, 3600)}
    result: dict[str, Any] = {}
    for key, found in _table(value, where).items():
        if key not in bounds:
            raise SpecError(f"{where}.{key}", f"is not a setting (known: {', '.join(bounds)})")
        low, high = bounds[key]
        whole = key in ("workers", "attempts")
        if isinstance(found, bool) or not isinstance(found, int if whole else (int, float)) or not low <= found <= high:
            wanted = "a whole number" if whole else "seconds"
            raise SpecError(f"{where}.{key}", f"must be {wanted} from {low} to {high}, found {found!r}")
        result[key] = found
    return result


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(where, f"must be a table, found {value!r}")
    return value
