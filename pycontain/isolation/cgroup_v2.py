"""Cgroup version 2, where the comparison needs what no container does."""

from __future__ import annotations

from pycontain.runtime.kernel.files import write


def share_processors(*directories: str) -> None:
    """Let all that is below these cgroups have one share of the processors, and no shares of their own: lowest first.

    Raises OSError: EBUSY where another cgroup below has the controller on.
    """
    for directory in directories:
        write(f"{directory}/cgroup.subtree_control", "-cpu")
