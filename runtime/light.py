"""What the start path takes in place of modules of the standard library that cost milliseconds to import.

``typing`` is 3 ms and each of its named tuples another 0.1; ``contextlib`` is 2.5 and ``shutil`` 3, with what they
import. Here is as much of them as is needed. A type checker is shown the originals.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import contextmanager as contextmanager
    from typing import NamedTuple as NamedTuple
else:
    from _collections import _tuplegetter

    class _Fields(type):
        """Makes a class with annotated names a tuple with fields of these names."""

        def __new__(cls, name, bases, body):
            if tuple not in bases and "_fields" not in bases[0].__dict__:  # a class right below NamedTuple
                fields = tuple(body.get("__annotations__", ()))
                defaults = {field: body[field] for field in fields if field in body}
                body.update((field, _tuplegetter(number, field)) for number, field in enumerate(fields))
                body.update(_fields=fields, _field_defaults=defaults, __match_args__=fields, __slots__=())
            return super().__new__(cls, name, bases, body)

    class NamedTuple(tuple, metaclass=_Fields):
        """typing.NamedTuple."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            fields = cls._fields
            if named or len(values) != len(fields):
                given = dict(zip(fields, values))
                whole = {**cls._field_defaults, **given, **named}
                if len(values) > len(fields) or given.keys() & named or whole.keys() != set(fields):
                    wanted = f"{cls.__name__}({', '.join(fields)})"
                    raise TypeError(f"{wanted}: found {len(values)} values, and {', '.join(named) or 'none'} by name")
                values = [whole[field] for field in fields]
            return tuple.__new__(cls, values)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

        def __getnewargs__(self):
            return tuple(self)

        def _asdict(self):
            return dict(zip(self._fields, self))

        def _replace(self, **named):
            return type(self)(**{**self._asdict(), **named})

    class _Block:
        """What a function under ``contextmanager`` returns: for one ``with``."""

        __slots__ = ("_steps",)

        def __init__(self, steps):
            self._steps = steps

        def __enter__(self):
            return next(self._steps)

        def __exit__(self, kind, error, trace):
            if error is None:
                next(self._steps, None)
                return False
            try:
                self._steps.throw(error)
            except StopIteration:
                return True  # it was caught within
            except BaseException as raised:
                # A generator makes another error of a StopIteration that comes out of it.
                if raised is not error and not (isinstance(error, StopIteration) and raised.__cause__ is error):
                    raise
                error.__traceback__ = trace
            return False

    def contextmanager(function):
        """contextlib.contextmanager."""

        def block(*values, **named):
            return _Block(function(*values, **named))

        block.__doc__, block.__name__ = function.__doc__, function.__name__
        return block


def remove_tree(name: str | bytes, directory: int | None = None) -> None:
    """Remove a directory (of ``directory``, a descriptor) and all below it, following no link. Raises OSError."""
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
    fd = posix.open(name, flags, dir_fd=directory)
    try:
        for entry in posix.listdir(fd):
            try:
                posix.unlink(entry, dir_fd=fd)
            except IsADirectoryError:
                remove_tree(entry, fd)
    finally:
        posix.close(fd)
    posix.rmdir(name, dir_fd=directory)
