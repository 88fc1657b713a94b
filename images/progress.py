"""What a pull tells about itself, and two ways to show it.

A pull works without any of this (``progress=None``); a library user may pass an object of their own with these methods.
They are called from several threads at once, never in parallel for one digest.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress(Protocol):
    """The callbacks of a pull; ``size`` and ``count`` are bytes."""

    def resolved(self, name: str, digest: str) -> None:
        """The name means this manifest or index."""

    def started(self, digest: str, size: int) -> None:
        """A blob is fetched."""

    def position(self, digest: str, count: int) -> None:
        """So much of it is there; less than before where it had to start again."""

    def finished(self, digest: str, fetched: bool) -> None:
        """It is in the store; ``fetched`` is false where it was there already."""

    def note(self, text: str) -> None:
        """A line for the user: a retry, a mirror that failed, a warning of the registry."""


class Silent:
    """Shows nothing."""

    def resolved(self, name: str, digest: str) -> None: ...
    def started(self, digest: str, size: int) -> None: ...
    def position(self, digest: str, count: int) -> None: ...
    def finished(self, digest: str, fetched: bool) -> None: ...
    def note(self, text: str) -> None: ...


class Lines:
    """One plain line for each event, for logs and pipes; a context manager."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def resolved(self, name: str, digest: str) -> None:
        self._line(f"{name}: {digest}")

    def started(self, digest: str, size: int) -> None:
        self._line(f"{short(digest)}: pulling {human(size)}")

    def position(self, digest: str, count: int) -> None:
        pass

    def finished(self, digest: str, fetched: bool) -> None:
        self._line(f"{short(digest)}: {'done' if fetched else 'already here'}")

    def note(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()


class Bars:
    """One bar for each blob on a terminal; a context manager, whose end leaves the bars where they are."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(file=stream),
            refresh_per_second=8,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def resolved(self, name: str, digest: str) -> None:
        self.note(f"{name}: {digest}")

    def started(self, digest: str, size: int) -> None:
        self._tasks[digest] = self._bars.add_task(short(digest), total=size)

    def position(self, digest: str, count: int) -> None:
        self._bars.update(self._tasks[digest], completed=count)

    def finished(self, digest: str, fetched: bool) -> None:
        if digest in self._tasks:
            self._bars.update(self._tasks[digest], description=f"{short(digest)} done")
        else:
            self.note(f"{short(digest)}: already here")

    def note(self, text: str) -> None:
        # Foreign words must not be read as rich's markup.
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_on(stream: TextIO) -> Lines | Bars:
    """Bars where the stream is a terminal (rich is imported only then), else lines."""
    return Bars(stream) if stream.isatty() else Lines(stream)


def short(digest: str) -> str:
    """The first twelve digits, enough to tell blobs apart by eye."""
    return digest.partition(":")[2][:12]


def human(size: float) -> str:
    """``3.5 MB``: decimal units, as registries show them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
