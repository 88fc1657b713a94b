from __future__ import annotations

import re
from pathlib import Path

import pytest

from pycontain.images.settings import RegistrySettings, Settings, load, local_name, loopback_name, split_mirror
from pycontain.runtime.errors import NotFound, PycontainError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load_text(tmp_path: Path, text: str) -> Settings:
    return load({"PYCONTAIN_CONFIG": str(write(tmp_path / "config.toml", text))})


def test_without_files_there_are_defaults(tmp_path: Path) -> None:
    settings = load({"HOME": str(tmp_path)}, system_file=str(tmp_path / "none.toml"))
    assert (settings.workers, settings.attempts) == (3, 5)
    assert (settings.connect_timeout, settings.read_timeout) == (5, 30)
    assert settings.registry("localhost:5000") == RegistrySettings()


def test_a_whole_file(tmp_path: Path) -> None:
    settings = load_text(
        tmp_path,
        """
        [registry."localhost:5000"]
        ca = "/etc/ca.crt"
        insecure = true
        [registry."docker.io"]
        mirrors = ["https://localhost:5001", "http://localhost:5000/hub/"]
        [pull]
        workers = 5
        attempts = 2
        connect_timeout = 1.5
        read_timeout = 60
        """,
    )
    assert settings.registry("localhost:5000") == RegistrySettings("/etc/ca.crt", True, ())
    assert settings.registry("docker.io").mirrors == ("https://localhost:5001", "http://localhost:5000/hub/")
    assert (settings.workers, settings.attempts) == (5, 2)
    assert (settings.connect_timeout, settings.read_timeout) == (1.5, 60)


def test_the_user_file_goes_over_the_system_file(tmp_path: Path) -> None:
    system = write(tmp_path / "etc.toml", '[registry."a.b"]\nca = "/sys"\ninsecure = true\n[pull]\nworkers = 2')
    write(tmp_path / "xdg/pycontain/config.toml", '[registry."a.b"]\ninsecure = false')
    write(tmp_path / "home/.config/pycontain/config.toml", '[registry."a.b"]\nca = "/home"')

    merged = load({"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "HOME": str(tmp_path / "home")}, system_file=str(system))
    assert (merged.registry("a.b"), merged.workers) == (RegistrySettings("/sys", False), 2)

    by_home = load({"HOME": str(tmp_path / "home")}, system_file=str(system))
    assert by_home.registry("a.b") == RegistrySettings("/home", True)

    alone = load({"PYCONTAIN_CONFIG": str(tmp_path / "home/.config/pycontain/config.toml")}, system_file=str(system))
    assert (alone.registry("a.b"), alone.workers) == (RegistrySettings("/home", False), 3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("colour = 1", "colour: is not a setting (known: registry, pull)"),
        ("registry = 1", "registry: must be a table, found 1"),
        ('registry."a.b" = 1', 'registry."a.b": must be a table, found 1'),
        (
            '[registry."a.b"]\ninsecur = true',
            'registry."a.b".insecur: is not a setting (known: ca, insecure, mirrors)',
        ),
        ('[registry."a.b"]\ninsecure = "no"', "registry.\"a.b\".insecure: must be true or false, found 'no'"),
        ('[registry."a.b"]\nca = "ca.crt"', "registry.\"a.b\".ca: must be an absolute path, found 'ca.crt'"),
        ('[registry."a.b"]\nca = 3', 'registry."a.b".ca: must be an absolute path, found 3'),
        (
            '[registry."a.b"]\nmirrors = "https://x"',
            "registry.\"a.b\".mirrors: must be an array of URLs, found 'https://x'",
        ),
        (
            '[registry."a.b"]\nmirrors = ["https://x", "x"]',
            "registry.\"a.b\".mirrors[1]: must be https://host[:port][/path], found 'x'",
        ),
        (
            '[registry."a.b"]\nmirrors = ["https://u:p@x"]',
            "registry.\"a.b\".mirrors[0]: must be https://host[:port][/path], found 'https://u:p@x'",
        ),
        (
            '[registry."a.b"]\nmirrors = ["http://c.d:5000"]',
            'registry."a.b".mirrors[0]: http://c.d:5000 is plain http, and c.d:5000 is not configured as insecure',
        ),
        ('[registry."https://a.b"]\n', 'registry."https://a.b": is not a registry\'s host[:port]'),
        (
            "[pull]\nworker = 3",
            "pull.worker: is not a setting (known: workers, attempts, connect_timeout, read_timeout)",
        ),
        ("[pull]\nworkers = 0", "pull.workers: must be a whole number from 1 to 16, found 0"),
        ("[pull]\nworkers = 1.5", "pull.workers: must be a whole number from 1 to 16, found 1.5"),
        ("[pull]\nattempts = true", "pull.attempts: must be a whole number from 1 to 20, found True"),
        ("[pull]\nread_timeout = 0", "pull.read_timeout: must be seconds from 0.1 to 3600, found 0"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(PycontainError, match=re.escape(f"{tmp_path}/config.toml: {problem}") + "$"):
        load_text(tmp_path, text)


def test_text_that_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(PycontainError) as caught:
        load_text(tmp_path, "a =")
    assert str(caught.value) == f"settings file {tmp_path}/config.toml is not TOML: invalid value (at end of document)"


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        load({"PYCONTAIN_CONFIG": f"{tmp_path}/none"})
    assert (str(caught.value), caught.value.hint) == (
        f"settings file {tmp_path}/none does not exist",
        "unset PYCONTAIN_CONFIG",
    )


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PycontainError) as caught:
        load({"PYCONTAIN_CONFIG": str(tmp_path)})
    assert str(caught.value) == f"read settings file {tmp_path}: EISDIR (is a directory)"


def test_a_file_without_end_is_not_read_whole(tmp_path: Path) -> None:
    with pytest.raises(PycontainError) as caught:
        load({"PYCONTAIN_CONFIG": "/dev/zero"})
    assert str(caught.value) == "settings file /dev/zero is larger than 1048576 bytes"


def test_plain_mirror_of_a_host_that_is_configured_as_insecure(tmp_path: Path) -> None:
    settings = load_text(
        tmp_path, '[registry."a.b"]\nmirrors = ["http://c.d:5000"]\n[registry."c.d:5000"]\ninsecure = true'
    )
    assert settings.registry("a.b").mirrors == ("http://c.d:5000",)


def test_mirrors_may_have_a_path() -> None:
    assert split_mirror("https://a.b:5/x/y/") == ("https", "a.b:5", "x/y")
    assert split_mirror("http://[::1]:5000") == ("http", "[::1]:5000", "")
    with pytest.raises(PycontainError, match=re.escape("'ftp://a.b' is not a mirror (https://host[:port][/path])")):
        split_mirror("ftp://a.b")


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]
    + ["127.1", "2130706433", "0x7f000001", "0177.0.0.1"],
)
def test_names_of_loopback(host: str) -> None:
    assert loopback_name(host)
    assert local_name(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "169.254.169.254", "fe80::1", "fe80::1%eth0"])
def test_names_of_this_machine_and_its_link_that_are_not_loopback(host: str) -> None:
    assert not loopback_name(host)
    assert local_name(host)


@pytest.mark.parametrize("host", ["localhost.example", "notlocalhost", "128.0.0.1", "10.0.0.1", "2001:db8::1", "a.b"])
def test_names_of_others(host: str) -> None:
    assert not loopback_name(host)
    assert not local_name(host)
