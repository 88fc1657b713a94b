"""The parts of the build that are C: static programs, made by runtime/init/Makefile and
pycontain/isolation/probes/Makefile.

init and the supervisor are data of pycontain.runtime (they are started from memory, never by path); the launcher is
installed as both commands. So the wheel belongs to one kind of machine, but to every Python from 3.11 on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.dist import Distribution

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

from distutils.command.build_scripts import build_scripts  # through setuptools' own copy from Python 3.12 on

ROOT = os.path.dirname(os.path.abspath(__file__))
COMMANDS = ("pycontain", "pycontain-runtime")


def packages() -> list[str]:
    """Every folder with an __init__.py, by the name that it is imported as (package-dir in pyproject.toml)."""
    found = []
    for room in ("pycontain", "images", "network", "runtime"):
        top = "pycontain" if room == "pycontain" else f"pycontain.{room}"
        for folder, _, files in os.walk(os.path.join(ROOT, room)):  # does not follow the links to the rooms
            if "__init__.py" in files:
                inner = os.path.relpath(folder, os.path.join(ROOT, room))
                found.append(top if inner == "." else f"{top}.{inner.replace(os.sep, '.')}")
    return sorted(found)


def make(*arguments: str, folder: str = "runtime/init") -> None:
    try:
        subprocess.run(["make", "-C", os.path.join(ROOT, folder), "--no-print-directory", *arguments], check=True)
    except FileNotFoundError:
        sys.exit("pycontain's init is written in C: apt-get install make gcc musl-tools")


def embedding() -> list[str]:
    """Where the library of this Python is, for runtime/init/Makefile; [] where it is not installed (libpython3-dev)."""
    at = sysconfig.get_config_var
    include, library = sysconfig.get_path("include"), os.path.join(at("LIBPL") or "", at("LIBRARY") or "")
    if not (os.path.isfile(library) and os.path.exists(os.path.join(include, "Python.h")) and shutil.which("cc")):
        return []
    strings = {
        "STDLIB": sysconfig.get_path("stdlib"), "EXTENSIONS": at("DESTSHARED"), "SUFFIX": at("EXT_SUFFIX"),
        "PREFIX": sys.base_prefix,
    }  # fmt: skip
    defines = [f"-D{name}='\"{value}\"'" for name, value in strings.items()]
    words = " ".join(at(name) or "" for name in ("MODLIBS", "LIBS", "SYSLIBS", "LINKFORSHARED")).split()
    # Static, they take the loader no time; their names are for libpython alone.
    libraries = [_archive(word) or word if word in ("-lz", "-lexpat") else word for word in words]
    libraries.append("-Wl,--exclude-libs=libz.a:libexpat.a")
    if sys.version_info[:2] == (3, 11):
        defines.append("-DLAZY_FROZEN")  # see there
        libraries.append("-Wl,--wrap=_Py_Deepfreeze_Init")
    return [
        f"EMBED_CFLAGS=-isystem {include} {' '.join(defines)}", f"EMBED_LIBS={library} {' '.join(libraries)}",
    ]  # fmt: skip


def _archive(option: str) -> str | None:
    """The path of the static library that ``-lNAME`` may mean; None where there is none."""
    asked = subprocess.run(["cc", f"-print-file-name=lib{option[2:]}.a"], stdout=subprocess.PIPE, text=True, check=True)
    path = asked.stdout.strip()
    return path if os.path.isabs(path) else None


class BuildPackage(build_py):
    def run(self) -> None:
        make()
        make(folder="pycontain/isolation/probes")
        if not self.editable_mode:
            shutil.rmtree(
                self.build_lib, ignore_errors=True
            )  # or modules deleted since the last build would be shipped
        super().run()


class BuildCommands(build_scripts):
    """The launcher under both names; scripts in Python would start several times slower."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.scripts = list(COMMANDS)

    def get_source_files(self) -> list[str]:
        return []

    def run(self) -> None:
        editable = self.get_finalized_command("build_py").editable_mode
        folder = os.path.abspath(self.build_dir)
        os.makedirs(folder, exist_ok=True)
        plain, embedded = (os.path.join(folder, name) for name in COMMANDS)
        source = [f"OUT={folder}", *([f"SOURCE={ROOT}"] if editable else [])]
        make(*source, plain)
        shutil.copy2(plain, embedded)
        flags = embedding()
        if flags:
            try:
                make(*source, *flags, "-B", embedded)
            except subprocess.CalledProcessError:
                print("the plain launcher does the same, and takes some milliseconds more for it", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class SourceArchive(sdist):
    """An archive that can be worked in like a clone: with the links by which the rooms are imported."""

    def make_release_tree(self, base_dir: str, files: Any) -> None:
        super().make_release_tree(base_dir, files)
        for room in ("images", "network", "runtime"):
            os.symlink(f"../{room}", os.path.join(base_dir, "pycontain", room))


class WithC(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    packages=packages(),
    scripts=list(COMMANDS),
    distclass=WithC,
    cmdclass={
        "build_py": BuildPackage,
        "build_scripts": BuildCommands,
        "bdist_wheel": PlatformWheel,
        "sdist": SourceArchive,
    },
)
