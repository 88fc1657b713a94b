from __future__ import annotations

import base64
import json
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.images.auth import Credential, CredentialFile, parse_challenges, printable
from pycontain.runtime.errors import PycontainError


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def file_of(tmp_path: Path, document: object) -> CredentialFile:
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return CredentialFile(str(path), environ={"PATH": str(tmp_path)})


def helper(tmp_path: Path, script: str, name: str = "test") -> None:
    path = tmp_path / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# Challenges


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('Basic realm="a, b=c"', [("basic", {"realm": "a, b=c"})]),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"})],
        ),
        ("bearer Realm=x , error = bad", [("bearer", {"realm": "x", "error": "bad"})]),
        ('Basic realm="x", Bearer realm="y"', [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        ('Negotiate, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        (r'Basic realm="a\"b"', [("basic", {"realm": 'a"b'})]),
        ('Bearer realm="first",realm="second"', [("bearer", {"realm": "first"})]),
        ('realm="of nobody"', []),
        ('Basic realm="never ends', [("basic", {})]),
    ],
)
def test_challenges(text: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert [(item.scheme, item.parameters) for item in parse_challenges(text)] == found


@given(st.text(max_size=200))
def test_challenges_from_anybody_are_read_without_a_fault(text: str) -> None:
    for challenge in parse_challenges(text):
        assert challenge.scheme == challenge.scheme.lower()


def test_a_challenge_of_a_megabyte_is_cut() -> None:
    assert len(parse_challenges("Basic," * 200_000)) < 3000


# Where the file is


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"REGISTRY_AUTH_FILE": "/a/auth.json", "DOCKER_CONFIG": "/b", "HOME": "/c"}, "/a/auth.json"),
        ({"DOCKER_CONFIG": "/b", "HOME": "/c"}, "/b/config.json"),
        ({"HOME": "/c"}, "/c/.docker/config.json"),
        ({}, None),
    ],
)
def test_the_environment_names_the_file(environ: dict[str, str], path: str | None) -> None:
    assert CredentialFile.find(environ).path == path


# Reading


def test_no_file_and_no_entry_are_no_credentials(tmp_path: Path) -> None:
    assert CredentialFile(str(tmp_path / "none"), environ={}).get("a.b") is None
    assert CredentialFile(None, environ={}).get("a.b") is None
    assert file_of(tmp_path, "").get("a.b") is None
    assert file_of(tmp_path, {"auths": {"a.b": {}}}).get("a.b") is None
    assert file_of(tmp_path, {"auths": {"a.b:5000": {"auth": encode("u:p")}}}).get("a.b") is None


@pytest.mark.parametrize("key", ["a.b:5000", "https://a.b:5000", "https://a.b:5000/v2/", "http://a.b:5000/v1/"])
def test_keys_may_be_written_as_urls(tmp_path: Path, key: str) -> None:
    found = file_of(tmp_path, {"auths": {key: {"auth": encode("user:pa:ss")}}}).get("a.b:5000")
    assert found == Credential("user", "pa:ss")


def test_a_key_for_one_repository_is_not_the_hosts(tmp_path: Path) -> None:
    assert file_of(tmp_path, {"auths": {"a.b/team": {"auth": encode("u:p")}}}).get("a.b") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_the_names_of_the_hub(tmp_path: Path, key: str) -> None:
    assert file_of(tmp_path, {"auths": {key: {"auth": encode("u:p")}}}).get("docker.io") == Credential("u", "p")


def test_tokens_and_open_fields(tmp_path: Path) -> None:
    entries = {
        "id": {"auth": encode("<token>:"), "identitytoken": "i"},
        "reg": {"registrytoken": "r"},
        "open": {"username": "u", "password": "p"},
    }
    file = file_of(tmp_path, {"auths": entries})
    assert file.get("id") == Credential("<token>", "", "i")
    assert file.get("reg") == Credential(registry_token="r")
    assert file.get("open") == Credential("u", "p")


def test_secrets_are_not_shown() -> None:
    shown = repr(Credential("user", "sesame", "identity", "registry"))
    assert shown == "Credential(username='user')"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("[]", "{path}: $: must be an object"),
        ('{"auths": []}', None),
        ('{"auths": [1]}', "{path}: auths: must be an object"),
        ('{"auths": {"a.b": 1}}', '{path}: auths."a.b": must be an object'),
        ('{"auths": {"a.b": {"auth": 1}}}', '{path}: auths."a.b".auth: must be a string'),
        ('{"auths": {"a.b": {"auth": "%%"}}}', '{path}: auths."a.b".auth: is not the base64 of user:password'),
        ('{"auths": {"a.b": {"auth": "YWJj"}}}', '{path}: auths."a.b".auth: is not the base64 of user:password'),
        ('{"credsStore": "../x"}', "{path}: credsStore: '../x' is not the name of a credential helper"),
        ('{"credHelpers": {"a.b": "x;y"}}', "{path}: credHelpers.\"a.b\": 'x;y' is not the name of a credential"),
        (
            '{"auths": {"a.b": {"registrytoken": "a\\nb"}}}',
            '{path}: auths."a.b".registrytoken: must be a token of printable characters',
        ),
        ("{", "credentials {path}: not JSON: "),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path: Path, document: str, problem: str | None) -> None:
    file = file_of(tmp_path, document)
    if problem is None:
        assert file.get("a.b") is None
        return
    with pytest.raises(PycontainError, match="^" + re.escape(problem.format(path=tmp_path / "config.json"))):
        file.get("a.b")


# Writing


def test_put_keeps_what_else_is_in_the_file(tmp_path: Path) -> None:
    other = {"auths": {"c.d": {"auth": encode("x:y")}}, "psFormat": "table"}
    file = file_of(tmp_path, other)
    os.chmod(tmp_path / "config.json", 0o644)
    assert file.put("a.b", Credential("u", "p")) == str(tmp_path / "config.json")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {"auths": {"a.b": {"auth": encode("u:p")}, "c.d": {"auth": encode("x:y")}}, "psFormat": "table"}
    assert stat.S_IMODE(os.stat(tmp_path / "config.json").st_mode) == 0o600
    assert os.listdir(tmp_path) == ["config.json"]


def test_put_makes_the_folder_and_follows_a_link(tmp_path: Path) -> None:
    fresh = CredentialFile(str(tmp_path / "new/config.json"), environ={})
    fresh.put("docker.io", Credential("u", "p"))
    assert json.loads((tmp_path / "new/config.json").read_text()) == {
        "auths": {"https://index.docker.io/v1/": {"auth": encode("u:p")}}
    }
    (tmp_path / "link").symlink_to(tmp_path / "new/config.json")
    CredentialFile(str(tmp_path / "link"), environ={}).put("a.b", Credential("u", "p"))
    assert (tmp_path / "link").is_symlink()
    assert fresh.get("a.b") == Credential("u", "p")


def test_put_needs_a_place() -> None:
    with pytest.raises(PycontainError) as caught:
        CredentialFile.find({}).put("a.b", Credential("u", "p"))
    assert (str(caught.value), caught.value.hint) == (
        "keep credentials: HOME is not set",
        "set REGISTRY_AUTH_FILE to a file",
    )


def test_put_where_nobody_may_write() -> None:
    with pytest.raises(PycontainError) as caught:
        CredentialFile("/proc/none/config.json", environ={}).put("a.b", Credential("u", "p"))
    assert str(caught.value) == "write credentials /proc/none/config.json: ENOENT (no such file or directory)"


def test_remove(tmp_path: Path) -> None:
    file = file_of(tmp_path, {"auths": {"https://a.b/v2/": {"auth": encode("u:p")}, "c.d": {}}})
    assert file.remove("a.b") is True
    assert file.remove("a.b") is False
    assert json.loads((tmp_path / "config.json").read_text()) == {"auths": {"c.d": {}}}


# Helpers


def test_a_helper_is_asked_without_a_shell(tmp_path: Path) -> None:
    helper(tmp_path, f'read host; echo "$1 $host" >> {tmp_path}/log; echo \'{{"Username":"u","Secret":"p"}}\'')
    file = file_of(tmp_path, {"credHelpers": {"a.b": "test"}, "auths": {"c.d": {"auth": encode("x:y")}}})
    assert file.get("a.b") == Credential("u", "p")
    assert file.get("c.d") == Credential("x", "y")
    assert (tmp_path / "log").read_text() == "get a.b\n"


def test_a_helper_may_have_a_token_or_nothing(tmp_path: Path) -> None:
    helper(tmp_path, 'echo \'{"Username":"<token>","Secret":"i"}\'')
    file = file_of(tmp_path, {"credsStore": "test"})
    assert file.get("a.b") == Credential(identity_token="i")
    helper(tmp_path, "echo credentials not found in native keychain; exit 1")
    assert file.get("a.b") is None
    assert file.remove("a.b") is False


def test_a_helper_keeps_and_forgets(tmp_path: Path) -> None:
    helper(tmp_path, f'echo "$1 $(cat)" >> {tmp_path}/log; echo \'{{"Username":"u","Secret":"p"}}\'')
    helper_path = f"{tmp_path}:/usr/bin:/bin"
    file = CredentialFile(file_of(tmp_path, {"credsStore": "test"}).path, environ={"PATH": helper_path})
    assert file.put("docker.io", Credential("u", "p")) == "docker-credential-test"
    assert file.remove("docker.io") is True
    store, get, erase = (tmp_path / "log").read_text().splitlines()
    assert store.partition(" ")[0] == "store"
    assert json.loads(store.partition(" ")[2]) == {
        "ServerURL": "https://index.docker.io/v1/",
        "Username": "u",
        "Secret": "p",
    }
    assert (get, erase) == ("get https://index.docker.io/v1/", "erase https://index.docker.io/v1/")


def test_helpers_that_fail(tmp_path: Path) -> None:
    file = file_of(tmp_path, {"credsStore": "test"})
    with pytest.raises(PycontainError) as caught:
        file.get("a.b")
    assert (str(caught.value), caught.value.hint) == (
        "docker-credential-test get: ENOENT (no such file or directory)",
        f"install docker-credential-test, or remove it from {tmp_path}/config.json",
    )
    helper(tmp_path, "echo no keychain >&2; exit 3")
    with pytest.raises(PycontainError, match=r"^docker-credential-test get: exit status 3: no keychain$"):
        file.get("a.b")
    helper(tmp_path, "echo hello")
    with pytest.raises(PycontainError, match=r"^docker-credential-test get: its answer has no Username and Secret$"):
        file.get("a.b")


def test_foreign_words_stay_in_their_line() -> None:
    assert printable("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert printable("x" * 500) == "x" * 197 + "..."
