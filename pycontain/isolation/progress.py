"""What is shown while a run lasts: a bar on a terminal, else a line now and then. All of it on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress(Protocol):
    def step(self, done: float, text: str) -> None:
        """``done``: the part of the run that is over (0 to 1); ``text``: what is being taken now."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def close(self) -> None: ...


def clock(seconds: float) -> str:
    """``1:02:03``, ``2:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Lines:
    """For a log: what is taken, at most once in ``every`` seconds."""

    def __init__(self, every: float = 15.0) -> None:
        self._begun = time.monotonic()
        self._every = every
        self._next = 0.0

    def step(self, done: float, text: str) -> None:
        elapsed = time.monotonic() - self._begun
        if elapsed >= self._next:
            self._next = elapsed + self._every
            self.say(f"{clock(elapsed):>7} {100 * done:3.0f} % {text}")

    def say(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        pass


class Bar:
    """For a terminal. It has no thread of its own, which would disturb what is measured: it is drawn at every step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task: TaskID = self._bar.add_task("", total=1.0)
        self._bar.start()

    def step(self, done: float, text: str) -> None:
        self._bar.update(self._task, completed=done, description=text, refresh=True)

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


def make() -> Progress:
    return Bar() if sys.stderr.isatty() else Lines()
