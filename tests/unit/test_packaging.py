"""What is built from this tree: the wheel and the archive are complete, and the launcher finds its package anywhere."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
TAG = sys.implementation.cache_tag
FLOCK = {"x86_64": "73 ", "aarch64": "32 "}[os.uname().machine]  # the system call's number
PROGRAMS = {"pycontain-init", "pycontain-supervisor"}
PRINT_SELF = """
import sys

def main(*_):
    print(sys.argv, sys.flags.isolated, sys.flags.no_site, sys.flags.utf8_mode, sys.path[-1], __file__, sep="\\n")
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources as a clone has them, without anything built."""
    folder = tmp_path_factory.mktemp("source") / "pycontain"
    built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "pycontain-*[!.c]")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=built)
    return folder


def build(hook: str, tree: Path, out: Path, **variables: str) -> Path:
    """Call a hook of the build backend (PEP 517) in ``tree``; the path of what it made."""
    out.mkdir(exist_ok=True)
    program = f"import setuptools.build_meta as b; print(b.{hook}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=os.environ | variables, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def sources() -> set[str]:
    """Every Python module of the project, by the path that it has once installed."""
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "pycontain").rglob("*.py") if not path.is_symlink()}
    for room in ("images", "network", "runtime"):
        found |= {f"pycontain/{path.relative_to(ROOT)}" for path in (ROOT / room).rglob("*.py")}
    return found


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", tree, tmp_path_factory.mktemp("wheel"))


def test_wheel_is_for_this_machine_and_any_python(wheel: Path) -> None:
    assert wheel.name == f"pycontain-0.1.0-py3-none-linux_{os.uname().machine}.whl"


def test_wheel_holds_every_module_and_the_programs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert sources() - names == set()
    assert {f"pycontain/runtime/init/{program}" for program in PROGRAMS} - names == set()
    assert "pycontain/py.typed" in names
    assert {name for name in names if name.startswith(("runtime/", "images/", "network/", "tests/", "bench/"))} == set()
    assert {name for name in names if name.endswith((".c", ".h"))} == set()


def test_archive_builds_the_same_wheel(wheel: Path, tree: Path, tmp_path: Path) -> None:
    archive = build("build_sdist", tree, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        members = {member.name.partition("/")[2]: member for member in tar}
        assert {name for name in members if name.startswith("runtime/init/pycontain-")} == set()
        links = {name: member.linkname for name, member in members.items() if member.issym()}
        assert links == {f"pycontain/{room}": f"../{room}" for room in ("images", "network", "runtime")}
    subprocess.run(["tar", "-C", tmp_path, "-xf", archive], check=True, timeout=50)
    # Nobody runs these programs: the optimizer would be half of the time.
    again = build("build_wheel", tmp_path / "pycontain-0.1.0", tmp_path / "wheel", MAKEFLAGS=r"CFLAGS=-O0\ -std=gnu11")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("installed")
    # Without --ignore-installed pip would uninstall the pycontain of this environment.
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--ignore-installed"]
    subprocess.run([*pip, "--prefix", folder, wheel], check=True, timeout=50, stdin=subprocess.DEVNULL)
    return folder


def test_installer_leaves_the_commands_intact(installed: Path) -> None:
    for command in ("pycontain", "pycontain-runtime"):
        with open(installed / "bin" / command, "rb") as file:
            assert file.read(4) == b"\x7fELF"
        assert os.access(installed / "bin" / command, os.X_OK)
    init = next((installed / "lib").glob("python3.*/site-packages/pycontain/runtime/init"))
    assert PROGRAMS - set(os.listdir(init)) == set()


def calls(name: str, command: Path, *arguments: str) -> tuple[str, list[str]]:
    """``(what it printed, the files that it gave to the system call)``, from strace."""
    trace = ["strace", "-f", "-qq", "-e", f"trace={name}", "-e", "signal=none", "-o", "|cat >&2"]
    done = subprocess.run([*trace, command, *arguments], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    return done.stdout, re.findall(rf'{name}\((?:AT_FDCWD, )?"([^"]*)"', done.stderr)


def cache_of(installed: Path) -> Path:
    """The file that the OCI command starts from, once it has been started."""
    subprocess.run([installed / "bin" / "pycontain-runtime", "--version"], check=True, stdout=subprocess.DEVNULL)
    (found,) = installed.glob(f"lib/*/site-packages/pycontain/runtime/__pycache__/start.*.{TAG}")
    return found


@pytest.mark.needs("libpython", "strace")
def test_the_oci_command_has_its_interpreter_in_it(installed: Path) -> None:
    """It executes no other program and reads no module of the standard library, once its cache is there."""
    command = installed / "bin" / "pycontain-runtime"
    python = f"/{PYTHON}"
    cached = cache_of(installed)
    cached.unlink()
    first, executed = calls("execve", command, "--version")
    assert first.startswith("pycontain-runtime version ")
    assert [Path(file).name for file in executed] == ["pycontain-runtime", PYTHON]
    assert calls("execve", command, "--version") == (first, [str(command)])
    _, opened = calls("openat", command, "--version")
    assert [file for file in opened if python in file and file != str(cached) and "site-packages" not in file] == []


@pytest.mark.needs("libpython", "strace")
@pytest.mark.parametrize("damage", [b"", b"\0", b"nonsense", b"\xff" * 1000])
def test_a_damaged_cache_is_made_anew_by_the_ordinary_interpreter(installed: Path, damage: bytes) -> None:
    command = installed / "bin" / "pycontain-runtime"
    cached = cache_of(installed)
    wanted = calls("execve", command, "--version")[0]
    cached.write_bytes(damage)
    assert calls("execve", command, "--version")[0] == wanted
    assert calls("execve", command, "--version") == (wanted, [str(command)])


@pytest.mark.needs("libpython")
def test_what_the_core_of_an_interpreter_lacks_comes_late(installed: Path, tmp_path: Path) -> None:
    """Files, text and modules of the standard library, from inside a verb; and the words of what is a bug."""
    runtime = next(installed.glob("lib/*/site-packages/pycontain/runtime"))
    verbs = runtime / "verbs.py"
    text = verbs.read_text()
    late = f"""
def _state(root, options, words):
    print(words[0], flush=True)
    import termios  # an extension module
    import sys
    assert not hasattr(sys, "__stdout__") and "encodings" not in sys.modules
    import posix
    few, environ, close = set(vars(posix)), dict(posix.environ), posix.close
    assert posix.stat("/").st_mode and environ == posix.environ and (not hasattr(posix, "nothing"))
    assert sys.version_info[:2] != (3, 11) or len(few) < 60 < 400 < len(vars(posix))
    assert posix.close.__doc__ == close.__doc__ and few - set(vars(posix)) <= {{"__getattr__"}}
    with open({os.fspath(tmp_path / "text")!r}, "w") as file:
        file.write("grün")
    import json, re, subprocess
    print(json.dumps([re.sub("n$", "", "grün")]), subprocess.run(["echo", "child"], capture_output=True).stdout, len(sys.argv))
    raise KeyError("a bug")
"""
    command = installed / "bin" / "pycontain-runtime"
    try:
        verbs.write_text(text + late)
        for arguments in ("--help", "--version"):  # one finds the cache stale, the next makes it anew
            subprocess.run([command, arguments], check=True, capture_output=True, timeout=20)
        done = subprocess.run([command, "--debug", "state", "é"], capture_output=True, text=True, timeout=20)
    finally:
        verbs.write_text(text)
    assert done.stdout == 'é\n["gr\\u00fc"] b\'child\\n\' 4\n', done.stderr
    assert (tmp_path / "text").read_text() == "grün"
    assert done.stderr.splitlines()[-1] == "KeyError: 'a bug'"
    assert 'raise KeyError("a bug")' in done.stderr
    assert done.returncode == 1


@pytest.mark.needs("libpython", "root")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="init/embedded_posix.h is for Python 3.11")
def test_the_straight_way_of_a_verb_needs_no_more_of_posix(installed: Path, tmp_path: Path) -> None:
    from tests.runtime_tools import make_rootfs, write_bundle

    long, short = (
        write_bundle(tmp_path / program[0], make_rootfs(tmp_path / f"rootfs-{program[0]}"), *program)
        for program in (("sleep", "1000"), ("true",))
    )
    source = next(installed.glob("lib/*/site-packages/pycontain/runtime")) / "start.py"
    text = source.read_text()
    marked = text.replace("    import _imp\n\n    if name", "    import _imp\n\n    posix.write(2, name.encode())\n    if name")
    assert marked != text
    verbs = [
        ("create", "-b", long, "t-posix"), ("start", "t-posix"), ("exec", "t-posix", "true"), ("kill", "t-posix", "KILL"),
        ("delete", "--force", "t-posix"), ("run", "-b", short, "t-posix"),
    ]  # fmt: skip
    command = [installed / "bin" / "pycontain-runtime", "--root", tmp_path / "state"]
    try:
        source.write_text(marked)
        subprocess.run([*command, "--version"], check=True, capture_output=True, timeout=20)  # makes the cache
        for verb in verbs:
            with tempfile.TemporaryFile() as said:  # a container that stays would keep a pipe open
                subprocess.run([*command, *verb], check=True, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=20)
                said.seek(0)
                assert set(said.read().split(b"__path__")) == {b""}, verb[0]
    finally:
        source.write_text(text)
        subprocess.run([*command, "delete", "--force", "t-posix"], check=True, timeout=20)


@pytest.mark.needs("libpython")
def test_an_interrupt_ends_it_as_it_ends_any_python(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "waiting").mkdir()
    lock = os.open(tmp_path / "waiting", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    command = [installed / "bin" / "pycontain-runtime", "--root", tmp_path, "state", "waiting"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while not Path(f"/proc/{process.pid}/syscall").read_text().startswith(FLOCK) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1].endswith(b"KeyboardInterrupt\n")
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()
        os.close(lock)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An installation whose runtime prints what it was given."""
    folder = tmp_path / "pre fix'\"\\n"
    runtime = folder / "lib" / PYTHON / "site-packages" / "pycontain" / "runtime"
    runtime.mkdir(parents=True)
    (runtime / "start.py").write_text(PRINT_SELF)
    (runtime / "__init__.py").touch()
    (runtime.parent / "__init__.py").touch()
    make(folder / "bin")
    (folder / "bin" / PYTHON).symlink_to(sys.executable)
    return folder


def make(folder: Path, *variables: str) -> None:
    """Build the launcher into ``folder`` under both names."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "pycontain-runtime"
    # make knows no file names with blanks: build beside, then move.
    out = folder.parents[1] / "out"
    out.mkdir(exist_ok=True)
    command = ["make", "-s", "-C", ROOT / "runtime" / "init", f"OUT={out}", *variables, out / "pycontain"]
    subprocess.run(command, check=True, timeout=50)
    shutil.move(out / "pycontain", program)
    shutil.copy2(program, folder / "pycontain")


def start(command: str | Path, *arguments: str, **options: object) -> list[str]:
    done = subprocess.run(
        [command, *arguments], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL, **options  # type: ignore[call-overload]
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0
    lines: list[str] = done.stdout.splitlines()
    return lines


def expected(prefix: Path, command: str, *arguments: str, no_site: int = 1) -> list[str]:
    packages = prefix / "lib" / PYTHON / "site-packages"
    module = packages / "pycontain/runtime/start.py"
    return [str([command, *arguments]), "1", str(no_site), "1", str(packages), str(module)]


def test_launcher_by_absolute_path(prefix: Path) -> None:
    command = prefix / "bin" / "pycontain-runtime"
    assert start(command, "run", "", "a b", "--", "ü") == expected(
        prefix, "pycontain-runtime", "run", "", "a b", "--", "ü"
    )


def test_launcher_through_a_symbolic_link_of_another_name(prefix: Path, tmp_path: Path) -> None:
    link = tmp_path / "oci"
    link.symlink_to(prefix / "bin" / "pycontain-runtime")
    assert start(link, "list") == expected(prefix, "pycontain-runtime", "list")


def test_launcher_through_path_from_another_directory(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "pycontain").mkdir()
    (tmp_path / "pycontain" / "__init__.py").write_text("raise SystemExit('the working directory was imported')")
    found = start("pycontain-runtime", cwd=tmp_path, env={"PATH": f"{prefix}/bin"})
    assert found == expected(prefix, "pycontain-runtime")


def test_launcher_from_a_directory_that_is_gone(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = 'rmdir ../gone; exec "$0" list'
    found = start("sh", "-c", script, str(prefix / "bin" / "pycontain-runtime"), cwd=tmp_path / "gone")
    assert found == expected(prefix, "pycontain-runtime", "list")


def test_launcher_takes_nothing_from_the_environment(prefix: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    (evil / "pycontain").mkdir(parents=True)
    for name in ("pycontain/__init__.py", "sitecustomize.py", "os.py", "startup.py"):
        (evil / name).write_text("raise SystemExit('the environment was imported')")
    folders = ("PYTHONPATH", "PYTHONHOME", "PYTHONEXECUTABLE", "PYTHONUSERBASE", "PYTHONPLATLIBDIR", "PATH")
    hostile = dict.fromkeys(folders, str(evil))
    hostile |= {"PYTHONSTARTUP": str(evil / "startup.py"), "PYTHONINSPECT": "1", "LC_ALL": "C"}
    found = start(prefix / "bin" / "pycontain-runtime", "é", env=hostile)
    assert found == expected(prefix, "pycontain-runtime", "é")


def test_packages_cannot_replace_the_standard_library(prefix: Path) -> None:
    (prefix / "lib" / PYTHON / "site-packages" / "_weakrefset.py").write_text("raise SystemExit('replaced')")
    (prefix / "lib" / PYTHON / "site-packages" / "json.py").write_text("raise SystemExit('replaced')")
    main = prefix / "lib" / PYTHON / "site-packages" / "pycontain" / "runtime" / "start.py"
    main.write_text("import json\n" + PRINT_SELF)
    assert start(prefix / "bin" / "pycontain-runtime") == expected(prefix, "pycontain-runtime")


def test_user_command_skips_site_only_in_a_closed_environment(prefix: Path) -> None:
    command = prefix / "bin" / "pycontain"
    packages = str(prefix / "lib" / PYTHON / "site-packages")
    found = start(command, "ps")
    assert (found[0], found[2], found[4]) == ("['pycontain', 'ps']", "0", packages)
    home = os.path.dirname(os.path.realpath(sys.executable))
    (prefix / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    assert start(command, "ps") == expected(prefix, "pycontain", "ps")


def test_editable_launcher_uses_the_source_tree(prefix: Path, tmp_path: Path) -> None:
    source = tmp_path / "clone"
    packages = prefix / "lib" / PYTHON / "site-packages"
    source.mkdir()
    shutil.move(packages / "pycontain", source / "pycontain")
    make(prefix / "bin", f"SOURCE={source}")
    found = start(prefix / "bin" / "pycontain-runtime", "list")
    assert found[-2:] == [str(packages), str(source / "pycontain" / "runtime" / "start.py")]


def test_launcher_without_its_package_says_where_it_looked(prefix: Path) -> None:
    shutil.rmtree(prefix / "lib" / PYTHON / "site-packages" / "pycontain")
    done = subprocess.run([prefix / "bin" / "pycontain-runtime"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 127
    assert done.stderr == f"pycontain-runtime: no python3 packages directory with pycontain below {prefix}/lib\n"


def test_launcher_without_an_interpreter_says_which_one(prefix: Path) -> None:
    (prefix / "lib" / PYTHON).rename(prefix / "lib" / "python3.998")
    done = subprocess.run([prefix / "bin" / "pycontain-runtime"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 127
    wanted = f"python3.998 is neither in {prefix}/bin nor in /usr/local/bin nor in /usr/bin"
    assert done.stderr == f"pycontain-runtime: {wanted}\n"
