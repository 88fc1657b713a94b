"""Credentials: where they are kept, how a registry asks for them, and whom they are sent to.

The file is docker's (``{"auths": {"host": {"auth": base64 of user:password}}}``), so that a login made by docker,
podman or skopeo is found and one made here is found by them: ``$REGISTRY_AUTH_FILE``, else
``$DOCKER_CONFIG/config.json``, else ``~/.docker/config.json``. A ``credHelpers`` or ``credsStore`` entry names a
program ``docker-credential-<name>`` that is asked instead (executed without a shell).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pycontain.runtime.errors import PycontainError, SpecError, errno_text

HUB = "docker.io"
HUB_SERVER = "registry-1.docker.io"
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = ("docker.io", "index.docker.io", HUB_SERVER)
_MAX_FILE = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_HELPER_SECONDS = 30
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PARAMETER = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))', re.ASCII)
_SCHEME = re.compile(rf"({_TOKEN})(?=\s|,|$)", re.ASCII)
_MAX_CHALLENGE = 16384


@dataclass(frozen=True, slots=True)
class Credential:
    """A user and password, an identity token (exchanged for tokens), or a registry token (sent as it is)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The value of a Basic Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header: ``scheme`` and the names of ``parameters`` are in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(text: str) -> list[Challenge]:
    """Read WWW-Authenticate (RFC 9110, 11.6.1; several joined by commas); what cannot be read ends the list."""
    result: list[Challenge] = []
    position, end = 0, min(len(text), _MAX_CHALLENGE)
    while position < end:
        if text[position] in " \t,":
            position += 1
        elif (parameter := _PARAMETER.match(text, position, end)) and result:
            value = parameter[3] if parameter[2] is None else re.sub(r"\\(.)", r"\1", parameter[2])
            # The first of two values counts: a later one must not quietly change the realm.
            result[-1].parameters.setdefault(parameter[1].lower(), value)
            position = parameter.end()
        elif scheme := _SCHEME.match(text, position, end):
            result.append(Challenge(scheme[1].lower(), {}))
            position = scheme.end()
        else:
            break
    return result


class CredentialFile:
    """One file of credentials; missing is as good as empty. ``path`` is None where there is no home to look in."""

    def __init__(self, path: str | None, *, environ: Mapping[str, str]) -> None:
        self.path = path
        self._environ = environ

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> CredentialFile:
        """The file that the environment names."""
        if environ.get("REGISTRY_AUTH_FILE"):
            path: str | None = environ["REGISTRY_AUTH_FILE"]
        elif environ.get("DOCKER_CONFIG"):
            path = os.path.join(environ["DOCKER_CONFIG"], "config.json")
        elif environ.get("HOME"):
            path = os.path.join(environ["HOME"], ".docker", "config.json")
        else:
            path = None
        return cls(path, environ=environ)

    def get(self, registry: str) -> Credential | None:
        """What is kept for ``host[:port]``; SpecError (file and key) for a malformed entry."""
        document = self._read()
        helper = self._helper(document, registry)
        if helper is not None:
            return self._ask(helper, registry)
        auths = self._object(document, "auths")
        for key in _keys(registry):
            for name, entry in auths.items():
                if name == key or _host_of(name) == key:
                    found = self._entry(name, entry)
                    if found is not None:
                        return found
        return None

    def put(self, registry: str, credential: Credential) -> str:
        """Keep a user and password (file 0600, replaced atomically, or the helper); where they are kept."""
        document = self._read()
        helper = self._helper(document, registry)
        if helper is not None:
            request = {"ServerURL": _key(registry), "Username": credential.username, "Secret": credential.password}
            self._run(helper, "store", json.dumps(request))
            return f"docker-credential-{helper}"
        plain = f"{credential.username}:{credential.password}".encode()
        auths = self._object(document, "auths")
        document["auths"] = {**auths, _key(registry): {"auth": base64.b64encode(plain).decode()}}
        return self._write(document)

    def remove(self, registry: str) -> bool:
        """Forget what is kept; False where nothing was."""
        document = self._read()
        helper = self._helper(document, registry)
        if helper is not None:
            if self._ask(helper, registry) is None:
                return False
            self._run(helper, "erase", _key(registry))
            return True
        auths = self._object(document, "auths")
        names = _keys(registry)
        kept = {name: entry for name, entry in auths.items() if name not in names and _host_of(name) not in names}
        if len(kept) == len(auths):
            return False
        document["auths"] = kept
        self._write(document)
        return True

    def _read(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            with open(self.path, "rb") as file:
                data = file.read(_MAX_FILE + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PycontainError(f"read credentials {self.path}: {errno_text(error.errno or 0)}") from error
        if len(data) > _MAX_FILE:
            raise PycontainError(f"credentials {self.path}: larger than {_MAX_FILE} bytes")
        try:
            document = json.loads(data or b"{}")
        except (ValueError, RecursionError) as error:
            raise PycontainError(f"credentials {self.path}: not JSON: {str(error).lower()}") from None
        if not isinstance(document, dict):
            raise SpecError(f"{self.path}: $", "must be an object")
        return document

    def _write(self, document: dict[str, Any]) -> str:
        if self.path is None:
            raise PycontainError("keep credentials: HOME is not set", hint="set REGISTRY_AUTH_FILE to a file")
        path = os.path.realpath(self.path)  # a link from a dotfiles folder stays a link
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, f".config.json.{secrets.token_hex(8)}")
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "w", encoding="utf-8") as file:
                    json.dump(document, file, indent=2)
                    file.write("\n")
                    file.flush()
                    os.fsync(fd)
                os.rename(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise PycontainError(f"write credentials {path}: {errno_text(error.errno or 0)}") from error
        return path

    def _object(self, document: dict[str, Any], key: str) -> dict[str, Any]:
        value = document.get(key) or {}
        if not isinstance(value, dict):
            raise SpecError(f"{self.path}: {key}", "must be an object")
        return value

    def _entry(self, name: str, entry: object) -> Credential | None:
        where = f'{self.path}: auths."{name}"'
        if not isinstance(entry, dict):
            raise SpecError(where, "must be an object")
        for key in ("auth", "username", "password", "identitytoken", "registrytoken"):
            if not isinstance(entry.get(key, ""), str):
                raise SpecError(f"{where}.{key}", "must be a string")
        token = entry.get("registrytoken", "")
        if not (token.isascii() and token.isprintable()):
            raise SpecError(f"{where}.registrytoken", "must be a token of printable characters")
        username, password = entry.get("username", ""), entry.get("password", "")
        if entry.get("auth"):
            try:
                plain = base64.b64decode(entry["auth"], validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                plain = ""
            if ":" not in plain:
                raise SpecError(f"{where}.auth", "is not the base64 of user:password")
            username, _, password = plain.rstrip("\0").partition(":")
        found = Credential(username, password, entry.get("identitytoken", ""), token)
        return None if found == Credential() else found

    def _helper(self, document: dict[str, Any], registry: str) -> str | None:
        helpers = self._object(document, "credHelpers")
        where, name = "credsStore", document.get("credsStore")
        for key in _keys(registry):
            if key in helpers:
                where, name = f'credHelpers."{key}"', helpers[key]
                break
        if not name:
            return None
        if not isinstance(name, str) or not _HELPER.fullmatch(name):
            raise SpecError(f"{self.path}: {where}", f"{name!r} is not the name of a credential helper")
        return name

    def _ask(self, helper: str, registry: str) -> Credential | None:
        output = self._run(helper, "get", _key(registry), missing_ok=True)
        if output is None:
            return None
        try:
            answer = json.loads(output)
            username, secret = answer["Username"], answer["Secret"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise PycontainError(f"docker-credential-{helper} get: its answer has no Username and Secret") from None
        if not isinstance(username, str) or not isinstance(secret, str):
            raise PycontainError(f"docker-credential-{helper} get: its answer has no Username and Secret")
        if username == "<token>":
            return Credential(identity_token=secret)
        return Credential(username, secret) if username or secret else None

    def _run(self, helper: str, verb: str, text: str, *, missing_ok: bool = False) -> str | None:
        import subprocess

        command = f"docker-credential-{helper}"
        environ = dict(self._environ)
        try:
            done = subprocess.run(
                [_which(command, environ), verb],
                input=text.encode(),
                capture_output=True,
                timeout=_HELPER_SECONDS,
                env=environ,
            )
        except OSError as error:
            raise PycontainError(
                f"{command} {verb}: {errno_text(error.errno or 0)}",
                hint=f"install {command}, or remove it from {self.path}",
            ) from error
        except subprocess.TimeoutExpired:
            raise PycontainError(f"{command} {verb}: no answer within {_HELPER_SECONDS} s") from None
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode == 0:
            return output
        if missing_ok and "credentials not found" in output:
            return None
        said = printable(output.strip() or done.stderr.decode("utf-8", "replace").strip())
        raise PycontainError(f"{command} {verb}: exit status {done.returncode}: {said}")


def printable(text: str, limit: int = 200) -> str:
    """Foreign words for one line of a message: control characters are escaped, and the end is cut."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _which(command: str, environ: Mapping[str, str]) -> str:
    import shutil

    return shutil.which(command, path=environ.get("PATH", os.defpath)) or command


def _key(registry: str) -> str:
    """Under which name docker keeps a registry's credentials."""
    return _HUB_KEY if registry in _HUB_NAMES else registry


def _keys(registry: str) -> tuple[str, ...]:
    return (_HUB_KEY, *_HUB_NAMES) if registry in _HUB_NAMES else (registry,)


def _host_of(name: str) -> str:
    """The host[:port] of a key, which may be written as a URL; a key for one repository only is not the host's."""
    text = name.partition("://")[2] or name
    host, _, path = text.partition("/")
    return host if path.strip("/") in ("", "v1", "v2") else name
