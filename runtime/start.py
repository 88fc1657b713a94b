"""How the commands start: their modules out of one file, where that is older than none of them.

Finding, opening and checking twenty modules one by one costs 2.7 ms of a start of 15; taking their code out of
one file a quarter of that, and the steps of the import system, 0.03 ms a module, fall away as well. The file is a cache
beside the interpreter's own (``__pycache__``), for one version of Python, and is trusted as those are. Where it is
missing or stale the modules are imported as ever and the file is written anew; where it cannot be written nothing is
lost but the time. The launcher reads it, and runs this module's code out of it too. ``pycontain`` has a file of its
own, of which it takes what is imported, when it is imported.

The file, as runtime/start_cache.py writes it: 8 bytes that no other such file begins with; each module's code by
itself, as ``marshal`` has it; all the modules of a verb, and their codes, in one piece, for those in its VERBS; where
the codes by themselves are; then (this module's code, Table), and the size of that in 8 bytes. Every start reads this
last part, so it is short.
"""

from __future__ import annotations

import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

    Module = tuple[str, int, bool]  # name, mtime of its source in ns, whether a package
    Place = tuple[int, int]  # in the file: offset, bytes
    # The first bytes, the folder of all modules, this module, where each verb's ([Module], [code]) is, and where it
    # says where the codes by themselves are: {name: (Module, Place)}
    Table = tuple[bytes, str, Module, dict[str, Place], Place]

# Run when they are first asked for something: what is for failures, and what plans, beside which init starts.
LATE_MODULES = (
    "pycontain.runtime.errors",
    "pycontain.runtime.plan.mounts",
    "pycontain.runtime.plan.ops",
    "pycontain.runtime.plan.plan",
    "pycontain.runtime.plan.rights",
)

_cache = ""
_table: Any = None
_launcher: Any = None  # the module, in the interpreter that has it
_places: dict[str, tuple[Module, Place]] = {}
# Without a class statement: each takes 20 us.
_Namespace: Any = type(sys.implementation)


def _top() -> str:
    """The folder of all modules, ``pycontain``."""
    return _cache.rpartition("/__pycache__/")[0].removesuffix("/runtime")


def _room() -> str:
    """The folder that the cache belongs to."""
    return _cache.split("/")[-3]


def _source(module: Module) -> str:
    return f"{_top()}{module[0][9:].replace('.', '/')}{'/__init__' if module[2] else ''}.py"


def _is_fresh(module: Module) -> bool:
    source = _source(module)
    try:
        return module[1] == (_launcher.status(source)[2] if _launcher else posix.stat(source).st_mtime_ns)
    except OSError:
        return False


def _read(place: Place) -> Any:
    """None where the file is another one by now."""
    if _launcher:
        return _launcher.piece(*place)
    import marshal

    try:
        fd = posix.open(_cache, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        same = posix.pread(fd, len(_table[0]), 0) == _table[0]
        return marshal.loads(posix.pread(fd, place[1], place[0])) if same else None  # noqa: S302
    finally:
        posix.close(fd)


def _find(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
    """``find_spec`` of an importer (``sys.meta_path``) of what is in the cache."""
    if not name.startswith("pycontain"):
        return None
    if not _places:
        _places.update(_read(_table[4]) or {"": ()})
    if name not in _places:
        return None
    module, place = _places[name]
    code = _read(place) if _is_fresh(module) else None
    if code is None:
        try:
            posix.unlink(_cache)  # the next start makes it anew
        except OSError:
            pass
        return None
    return _spec(module, code)


def _execute(module: ModuleType) -> None:
    exec(module.__spec__.loader_state, module.__dict__)  # type: ignore[union-attr] # noqa: S102


def _spec(module: Module, code: CodeType | None = None) -> ModuleSpec:
    source = _source(module)
    spec = ModuleSpec(module[0], FINDER, origin=source, loader_state=code, is_package=module[2])
    spec.has_location = True
    spec.cached = ""  # there is none, and what would look for one may not be there (see embedded)
    # Every import of what is there already asks for this, and makes an AttributeError where it is not said.
    spec._initializing = False  # type: ignore[attr-defined]
    if module[2]:
        spec.submodule_search_locations = [source.rpartition("/")[0]]
    return spec


FINDER = _Namespace(find_spec=_find, create_module=lambda spec: None, exec_module=_execute)


def _make(found: Module, code: CodeType) -> None:
    """What an import does, less its looking for things."""
    name = found[0]
    spec = _spec(found)
    module = type(sys)(name)
    names = module.__dict__
    parent, _, last = name.rpartition(".")
    names.update(__file__=spec.origin, __package__=spec.parent, __spec__=spec)
    if found[2]:
        names["__path__"] = spec.submodule_search_locations
    sys.modules[name] = module
    if name in LATE_MODULES:
        names["__getattr__"] = _late(module, code)
    else:
        exec(code, names)  # noqa: S102
    if parent:
        setattr(sys.modules[parent], last, module)


def _late(module: ModuleType, code: CodeType) -> Callable[[str], Any]:
    """A module's ``__getattr__`` (PEP 562), which is asked for what it has not got: everything, until it has run."""

    def run(name: str) -> Any:
        if module.__dict__.pop("__getattr__", None):
            exec(code, module.__dict__)  # noqa: S102
        return getattr(module, name)

    return run


def main(cache: str, table: Table | None) -> None:
    """``table``: what the launcher has read from ``cache``, or nothing."""
    global _cache
    _cache = cache
    if not (table and _use(table)):
        from pycontain.runtime.start_cache import write  # the file's: what runs here may be an older one's code

        write(cache)
    face = "pycontain.runtime.main" if _room() == "runtime" else "pycontain.cli"
    __import__(face, fromlist=["main"]).main()


def _use(table: Table) -> bool:
    """Take the modules from the cache; False, and nothing done, where it is not true any more."""
    global _table
    _table = table
    _, top, this, verbs, _ = table
    if top != _top() or not _is_fresh(this):  # of a tree that was copied, cache and all; stale
        return False
    place = next((verbs[word] for word in sys.argv if word in verbs), None)
    modules, codes = (_read(place) if place else None) or ((), ())
    if place and not modules or not all(map(_is_fresh, modules)):
        return False
    sys.meta_path.insert(0, FINDER)
    for module, code in zip(modules, codes):
        _make(module, code)
    return True


# In the launcher's own interpreter (init/embedded.c), of which only the core is there: no files can be imported, there
# are no standard streams and no codecs but UTF-8, Latin-1 and ASCII.

_extensions = ("", "")


def _find_late(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
    """The last importer: an extension module by its path, anything else once the interpreter is complete."""
    file = name.join(_extensions)
    if path is None and posix.access(file, posix.R_OK):
        return ModuleSpec(name, LATE, origin=file)
    _complete()
    found = (finder.find_spec(name, path, target) for finder in sys.meta_path)  # type: ignore[arg-type]
    return next((spec for spec in found if spec), None)


def _create_extension(spec: ModuleSpec) -> ModuleType:
    import _imp

    return _imp.create_dynamic(spec)


def _execute_extension(module: ModuleType) -> None:
    import _imp

    _imp.exec_dynamic(module)


LATE = _Namespace(find_spec=_find_late, create_module=_create_extension, exec_module=_execute_extension)


def _stream(fd: int) -> Any:
    """A standard stream for ``print``."""

    def write(text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        while data:
            data = data[posix.write(fd, data) :]

    return _Namespace(write=write, flush=lambda: None)


def _open(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
    if "b" not in mode:
        _complete()  # for its codecs
    import _io

    return _io.open(file, mode, *rest, **more)


def _whole(name: str) -> Any:
    """``__getattr__`` of what ``posix`` is until then (init/embedded_posix.h)."""
    import _imp

    if name == "__path__":  # what every import from a module asks it for
        raise AttributeError(name)
    del posix.__getattr__
    whole = _imp.create_builtin(ModuleSpec("posix", None))
    _imp.exec_builtin(whole)
    posix.__dict__.update(whole.__dict__)
    return getattr(posix, name)


def _complete() -> None:
    if LATE in sys.meta_path:
        sys.meta_path.remove(LATE)
        _launcher.complete()


def embedded(cache: str, table: Table, extensions: str, suffix: str) -> NoReturn:
    """``main`` where the launcher has the interpreter in it; its extension modules are ``extensions/NAMEsuffix``."""
    global _cache, _extensions, _launcher
    import _launcher

    _cache = cache
    _extensions = (f"{extensions}/", suffix)
    if "stat" not in posix.__dict__:
        posix.__getattr__ = _whole  # type: ignore[method-assign]
    sys.meta_path.append(LATE)
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    __builtins__["open"] = _open
    try:
        if not _use(table):
            _launcher.ordinary()  # it makes the cache anew
        from pycontain.runtime.main import main

        main()
    except BaseException:
        _complete()  # for the words of it
        raise
