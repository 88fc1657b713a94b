"""Reads the values of options: sizes, ports, environment, limits. One error text for each way to be wrong.

Every function takes what the user wrote and returns plain data; every one raises PycontainError naming the
option as it is written on the command line (the Python API's ``memory=`` is ``--memory`` here too).
"""

from __future__ import annotations

import os

from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_IN_NAMES = dict.fromkeys(map(ord, "_.-"))
_MOST_FILE_BYTES = 1 << 20


def wrong(option: str, value: str, problem: str, example: str = "") -> PycontainError:
    """The error for a value that cannot be read: ``--memory "x": not a size ...``."""
    return PycontainError(f'--{option} "{value}": {problem}', hint=f"--{option} {example}" if example else None)


def size(option: str, text: str, example: str = "64m") -> int:
    """``64m`` → 67108864: bytes, with b, k, m, g, t or p (powers of 1024), as docker reads sizes."""
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise wrong(option, text, "not a size (wanted a number with b, k, m or g)", example)
    result = int(float(match[1]) * _UNITS[match[2].lower()])
    if result >= 1 << 63:
        raise wrong(option, text, "the size is larger than a 63-bit number", example)
    return result


def number(option: str, text: str, low: int, high: int, example: str) -> int:
    """A decimal number between ``low`` and ``high``."""
    if not _is_digits(text.removeprefix("-"), 18):
        raise wrong(option, text, "not a number", example)
    if not low <= int(text) <= high:
        raise wrong(option, text, f"out of range ({low} to {high})", example)
    return int(text)


def _is_digits(text: str, most: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= most


def memory(text: str) -> int:
    """Memory limit in bytes; below 6 MiB no process starts, so docker refuses it, and so do we."""
    result = size("memory", text)
    if 0 < result < 6 << 20:
        raise wrong("memory", text, "too small (at least 6m)", "64m")
    return result


def memory_swap(text: str, limit: int) -> int:
    """Limit of memory and swap together in bytes, or -1."""
    result = -1 if text == "-1" else size("memory-swap", text, "128m")
    if not limit:
        raise wrong("memory-swap", text, "wants a memory limit too", f"{text} --memory 64m")
    if result != -1 and result < limit:
        raise wrong("memory-swap", text, "less than the memory limit, which it includes", "128m")
    return result


def cpu_quota(text: str) -> int:
    """Processors' time in microseconds of every 100 ms: ``0.5`` → 50000."""
    import re

    count = os.cpu_count() or 1
    if not re.fullmatch(r"\d{1,6}(\.\d{0,9})?|\.\d{1,9}", text, re.ASCII):
        raise wrong("cpus", text, "not a number of processors", "0.5")
    quota = int(float(text) * 100_000 + 0.5)
    if quota == 0 and float(text) == 0:
        return 0
    if not 1000 <= quota <= count * 100_000:
        raise wrong("cpus", text, f"out of range (0.01 to {count}: this host has {count} processors)", "0.5")
    return quota


def cpu_list(option: str, text: str) -> str:
    """A list such as ``0-2,4``; the kernel says whether those processors are there."""
    for part in text.split(","):
        low, dash, high = part.partition("-")
        ends = (low, high) if dash else (low,)
        if not all(_is_digits(end, 5) for end in ends) or int(ends[0]) > int(ends[-1]):
            raise wrong(option, text, "not a list of processors", "0-1")
        if int(ends[-1]) >= (os.cpu_count() or 1):
            raise wrong(
                option, text, f"processor {ends[-1]} is not there (this host has 0-{(os.cpu_count() or 1) - 1})"
            )
    return text


def environment(entries: Sequence[str], files: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """``NAME=VALUE`` strings in order, of the files first; a bare NAME takes its value from ``environ`` or vanishes."""
    result = []
    for path in files:
        for line, text in enumerate(_lines("env-file", path), 1):
            text = text.lstrip()
            if not text or text.startswith("#"):
                continue
            name, equals, value = text.partition("=")
            if not name:
                raise wrong("env-file", path, f"line {line} has no name before the =")
            if any(character.isspace() for character in name.rstrip("\r\n")):
                raise wrong("env-file", path, f'line {line}: the name "{name}" contains white space')
            result += _variable(name, equals, value, environ)
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name:
            raise wrong("env", entry, "no name before the =", "NAME=VALUE")
        result += _variable(name, equals, value, environ)
    for entry in result:
        if "\0" in entry:
            raise wrong("env", entry.replace("\0", "\\0"), "contains a NUL byte")
    return result


def _variable(name: str, equals: str, value: str, environ: Mapping[str, str]) -> list[str]:
    if equals:
        return [f"{name}={value}"]
    return [f"{name}={environ[name]}"] if name in environ else []


def _lines(option: str, path: str) -> list[str]:
    return read_text(option, path).removeprefix("\ufeff").splitlines()


def read_text(option: str, path: str) -> str:
    """A UTF-8 file of at most 1 MiB that the user named."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise wrong(option, path, f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(data) > _MOST_FILE_BYTES:
        raise wrong(option, path, "larger than 1 MiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise wrong(option, path, "not UTF-8") from None


def labels(entries: Sequence[str]) -> dict[str, str]:
    result = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if not name:
            raise wrong("label", entry, "no name before the =", "team=blue")
        result[name] = value
    return result


def check_address(option: str, text: str, address: str) -> str:
    """``address`` if it is an IPv4 or IPv6 address as inet_pton(3) reads it."""
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, address)
        except (OSError, ValueError):
            continue
        return address
    raise wrong(option, text, f'"{address}" is not an address', "192.0.2.1")


def is_name(text: str) -> bool:
    """Whether it may name a container or a volume: letters, digits, _ . and -, at least two, not first one of _ . -."""
    return len(text) > 1 and text[0].isalnum() and text.isascii() and text.translate(_IN_NAMES).isalnum()


def container_name(text: str) -> str:
    if not is_name(text) or len(text) > 128:
        raise wrong(
            "name", text, "not a name (letters, digits, _ . and -, at least two, the first a letter or digit)", "web"
        )
    return text


def absolute(option: str, text: str, path: str, example: str) -> str:
    """``path`` without dots and doubled slashes; it is a path in the container, so nothing of the host is looked at."""
    if not path.startswith("/"):
        raise wrong(option, text, "the path in the container is not absolute", example)
    if "\0" in path:
        raise wrong(option, text.replace("\0", "\\0"), "contains a NUL byte", example)
    return "/" + os.path.normpath(path).lstrip("/")


def _is_access(text: str) -> bool:
    return 0 < len(text) <= 3 and not text.strip("rwm")


def device(text: str) -> dict[str, str]:
    """``host[:container[:rwm]]`` → {host, container, permissions}; ``host:rwm`` is docker's short form."""
    parts = text.split(":")
    host = parts[0]
    container, permissions = host, "rwm"
    if len(parts) == 2 and _is_access(parts[1]):
        permissions = parts[1]
    elif len(parts) == 2:
        container = parts[1]
    elif len(parts) == 3:
        container, permissions = parts[1] or host, parts[2]
    elif len(parts) > 3:
        raise wrong("device", text, "not HOST[:CONTAINER[:rwm]]", "/dev/fuse")
    if not host.startswith("/"):
        raise wrong("device", text, "the host's path is not absolute", "/dev/fuse")
    if not _is_access(permissions):
        raise wrong("device", text, f'"{permissions}" is not made of r, w and m', "/dev/fuse:/dev/fuse:rw")
    return {"host": host, "container": absolute("device", text, container, "/dev/fuse"), "permissions": permissions}


def log_options(entries: Sequence[str]) -> dict[str, int]:
    """max-size in bytes and max-file, as the supervisor takes them."""
    result = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if name == "max-size" and equals:
            result["max_size"] = size("log-opt", value, "max-size=10m")
            if result["max_size"] < 1 << 15:
                raise wrong("log-opt", entry, "too small (at least 32k)", "max-size=10m")
        elif name == "max-file" and equals:
            result["max_file"] = number("log-opt", value, 1, 100, "max-file=3")
        else:
            raise wrong("log-opt", entry, "only max-size and max-file are built", "max-size=10m")
    return result
