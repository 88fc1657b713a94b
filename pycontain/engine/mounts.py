"""What the user wants mounted: ``-v``, ``--mount``, ``--tmpfs`` and the image's volumes.

A wish is plain data, kept in container.json:
{"type": "bind"|"volume"|"tmpfs", "source": host path, volume name or "", "target": absolute path in the container,
"read_only": bool, "options": [mount options], "create": bool (make the host's directory, as -v does), "copy": bool}
"""

from __future__ import annotations

import os

from pycontain.engine import files, values
from pycontain.runtime.errors import NotFound, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_TMPFS_OPTIONS = (
    r"(size|nr_inodes|nr_blocks)=\d+[kmgKMG%]?|mode=[0-7]{1,4}|(uid|gid)=\d{1,10}"
    r"|rw|ro|exec|noexec|suid|nosuid|dev|nodev|atime|noatime|diratime|nodiratime|relatime|norelatime|strictatime|sync|async"
)


def volume(text: str) -> dict[str, Any]:
    """``-v [source:]target[:options]``: a source with a slash is a path of the host, without one a volume's name."""
    example = "/srv/data:/data:ro"
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise values.wrong("volume", text, "not [SOURCE:]TARGET[:OPTIONS]", example)
    source, target = ("", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    wish = _wish("volume" if "/" not in source and source not in (".", "..") else "bind", source, "", True)
    if wish["type"] == "bind":
        if not source.startswith(("/", "./", "../")) and source not in (".", ".."):
            raise values.wrong("volume", text, "the host's path is relative; write it as ./" + source, example)
        wish["source"] = os.path.abspath(source)
        wish["options"] = ["rbind", "rprivate"]
        wish["create"] = True
    elif source and not values.is_name(source):
        raise values.wrong("volume", text, f'"{source}" is not a name for a volume', "data:/data")
    wish["target"] = _target("volume", text, target)
    for word in parts[2].split(",") if len(parts) == 3 else ():
        _volume_word(wish, text, word)
    return wish


def _volume_word(wish: dict[str, Any], text: str, word: str) -> None:
    if word in ("ro", "readonly"):
        wish["read_only"] = True
    elif word in _PROPAGATION and wish["type"] == "bind":
        wish["options"] = [wish["options"][0], word]
    elif word == "nocopy" and wish["type"] == "volume":
        wish["copy"] = False
    elif word in ("rbind", "bind") and wish["type"] == "bind":
        wish["options"] = [word, *wish["options"][1:]]
    elif word in ("z", "Z") and not os.path.isdir("/sys/fs/selinux"):
        return  # relabelling without SELinux changes nothing, here as with docker
    elif word != "rw":
        raise values.wrong("volume", text, f'the option "{word}" is not built', "/srv/data:/data:ro")


def mount(text: str) -> dict[str, Any]:
    """``--mount type=...,key=value,...``, with docker's keys and their other spellings."""
    import csv

    try:
        (fields,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError):
        raise values.wrong("mount", text, "not KEY=VALUE[,...]", "type=bind,source=/srv,target=/data") from None
    keys: dict[str, str] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        key = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(
            key.lower(), key.lower()
        )
        if key in keys:
            raise values.wrong("mount", text, f"{key} is given twice")
        if not equals and key not in ("readonly", "volume-nocopy", "bind-nonrecursive"):
            raise values.wrong("mount", text, f'"{field}" is not KEY=VALUE', "type=bind,source=/srv,target=/data")
        keys[key] = value if equals else "true"
    return _mount_of(text, keys)


def _mount_of(text: str, keys: dict[str, str]) -> dict[str, Any]:
    kind = keys.pop("type", "volume")
    if kind not in ("bind", "volume", "tmpfs"):
        raise values.wrong("mount", text, f'the type "{kind}" is not bind, volume or tmpfs')
    if not keys.get("target"):
        raise values.wrong("mount", text, "no target", f"type={kind},target=/data")
    wish = _wish(kind, keys.pop("source", ""), _target("mount", text, keys.pop("target")), kind == "volume")
    wish["read_only"] = _truth(text, keys, "readonly")
    if kind == "bind":
        if not wish["source"].startswith("/"):
            raise values.wrong(
                "mount",
                text,
                "the source of a bind mount must be an absolute path",
                "type=bind,source=/srv,target=/data",
            )
        propagation = keys.pop("bind-propagation", "rprivate")
        if propagation not in _PROPAGATION:
            raise values.wrong(
                "mount", text, f'the propagation "{propagation}" is not one of {", ".join(_PROPAGATION)}'
            )
        wish["options"] = ["bind" if _truth(text, keys, "bind-nonrecursive") else "rbind", propagation]
    elif kind == "volume":
        if wish["source"] and not values.is_name(wish["source"]):
            raise values.wrong(
                "mount", text, f'"{wish["source"]}" is not a name for a volume', "source=data,target=/data"
            )
        wish["copy"] = not _truth(text, keys, "volume-nocopy")
    else:
        if wish["source"]:
            raise values.wrong("mount", text, "a tmpfs has no source", "type=tmpfs,target=/run")
        wish["options"] = ["nosuid", "nodev", "noexec"]
        if "tmpfs-size" in keys:
            wish["options"].append(f"size={values.size('mount', keys.pop('tmpfs-size'), 'tmpfs-size=64m')}")
        if "tmpfs-mode" in keys:
            mode = keys.pop("tmpfs-mode")
            if not 0 < len(mode) <= 4 or mode.strip("01234567"):
                raise values.wrong("mount", text, f'the mode "{mode}" is not octal', "tmpfs-mode=1777")
            wish["options"].append(f"mode={mode}")
    if keys:
        raise values.wrong("mount", text, f'the key "{next(iter(keys))}" is not built for the type {kind}')
    return wish


def _truth(text: str, keys: dict[str, str], key: str) -> bool:
    value = keys.pop(key, "false").lower()
    if value not in ("true", "1", "false", "0"):
        raise values.wrong("mount", text, f'{key} cannot be "{value}": wanted true or false')
    return value in ("true", "1")


def tmpfs(text: str) -> dict[str, Any]:
    """``--tmpfs target[:options]``, with docker's default options."""
    import re

    target, _, words = text.partition(":")
    wish = _wish("tmpfs", "", _target("tmpfs", text, target), False)
    given = [word for word in words.split(",") if word]
    for word in given:
        if not re.fullmatch(_TMPFS_OPTIONS, word):
            raise values.wrong("tmpfs", text, f'"{word}" is not an option of a tmpfs', "/run:size=16m,mode=755")
    defaults = [
        word for word in ("noexec", "nosuid", "nodev") if word not in given and word.removeprefix("no") not in given
    ]
    wish["options"] = [*defaults, *(word for word in given if word not in ("rw", "ro"))]
    wish["read_only"] = "ro" in given
    return wish


def combine(wishes: Sequence[dict[str, Any]], image_volumes: Sequence[str]) -> list[dict[str, Any]]:
    """All wishes with an anonymous volume for each of the image's volumes that none covers; targets are unique.

    Parents come before their children, so that no mount hides an earlier one.
    """
    result: dict[str, dict[str, Any]] = {}
    for wish in wishes:
        if wish["target"] in result:
            raise PycontainError(f'two mounts want the same target "{wish["target"]}"', hint="leave one of them out")
        result[wish["target"]] = wish
    for path in image_volumes:
        # The image is hostile: a path that is not absolute, or the root itself, is a mount over nothing sensible.
        if not path.startswith("/") or "\0" in path or os.path.normpath(path).lstrip("/") == "":
            raise PycontainError(f'the image asks for a volume at "{path}", which is no path for a volume')
        target = "/" + os.path.normpath(path).lstrip("/")
        if target not in result:
            result[target] = _wish("volume", "", target, True)
    return sorted(result.values(), key=lambda wish: str(wish["target"]).count("/"))


def _wish(kind: str, source: str, target: str, copy: bool) -> dict[str, Any]:
    return {
        "type": kind,
        "source": source,
        "target": target,
        "read_only": False,
        "options": [],
        "create": False,
        "copy": copy,
    }


def _target(option: str, text: str, target: str) -> str:
    example = "/run" if option == "tmpfs" else "/srv:/data"
    path = values.absolute(option, text, target, example)
    if path == "/":
        raise values.wrong(option, text, "the target cannot be /", example)
    return path


def volume_path(data: str, name: str) -> str:
    """Where a volume's files are."""
    return os.path.join(data, "volumes", name, "_data")


def realise(data: str, wishes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make what the wishes need on the host, name anonymous volumes; the wishes as container.json keeps them.

    Raises NotFound where a ``--mount``'s source is missing, KernelError where a directory cannot be made.
    """
    for wish in wishes:
        # Before anything is made, so that nothing stays of a command that was refused.
        if wish["type"] == "bind" and not wish["create"] and not os.path.exists(wish["source"]):
            raise NotFound(
                f'cannot mount "{wish["source"]}" at "{wish["target"]}": it does not exist',
                hint=f"mkdir -p {wish['source']}",
            )
    result = []
    for wish in wishes:
        wish = dict(wish)
        if wish["type"] == "volume":
            if not wish["source"]:
                wish["source"], wish["anonymous"] = os.urandom(32).hex(), True
            path = volume_path(data, wish["source"])
            # The container's own users enter it through their mount, never by this path.
            files.make_directory(os.path.dirname(path))
            files.make_directory(path, 0o755)
        elif wish["type"] == "bind" and wish["create"] and not os.path.lexists(wish["source"]):
            files.make_directory(wish["source"], 0o755)
        result.append(wish)
    return result


def oci(data: str, wishes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``mounts`` of config.json that the wishes lead to."""
    result = []
    for wish in wishes:
        access = "ro" if wish["read_only"] else "rw"
        if wish["type"] == "tmpfs":
            options = [*wish["options"], access]
            result.append({"destination": wish["target"], "type": "tmpfs", "source": "tmpfs", "options": options})
            continue
        source = volume_path(data, wish["source"]) if wish["type"] == "volume" else wish["source"]
        options = [*(wish["options"] or ["rbind", "rprivate"]), access]
        result.append({"destination": wish["target"], "type": "bind", "source": source, "options": options})
    return result


def remove_volumes(data: str, wishes: Sequence[dict[str, Any]]) -> None:
    """Remove the anonymous volumes among ``wishes``."""
    for wish in wishes:
        if wish.get("anonymous"):
            files.remove_directory(os.path.dirname(volume_path(data, wish["source"])))
