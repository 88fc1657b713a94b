"""Hooks in the runtime's own namespaces: prestart, createRuntime, poststart, poststop (config.md)."""

from __future__ import annotations

import posix as os

from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.jsontext import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_all(hooks: list[dict[str, Any]], kind: str, state: dict[str, Any]) -> None:
    """In order; raises PycontainError at the first that fails, with its JSON path."""
    for i, hook in enumerate(hooks):
        run(hook, f"$.hooks.{kind}[{i}]", state)


def run(hook: dict[str, Any], path: str, state: dict[str, Any]) -> None:
    """One hook, with the state on its standard input; killed after its timeout (seconds)."""
    out, into = os.pipe2(os.O_CLOEXEC)
    environment = dict(item.split("=", 1) for item in hook.get("env") or () if "=" in item)
    try:
        pid = os.posix_spawn(
            hook["path"],
            hook.get("args") or [hook["path"]],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, out, 0)],
            setsigdef=(13, 25),
            setsigmask=(),  # Python itself ignores SIGPIPE (13) and SIGXFSZ (25)
        )
    except OSError as error:
        os.close(into)
        raise KernelError(f"{path}: cannot run hook {hook['path']}", error.errno or 0) from None
    finally:
        os.close(out)
    try:
        os.write(into, dump(state).encode())
    except BrokenPipeError:
        pass  # a hook need not read its input
    finally:
        os.close(into)
    timeout = hook.get("timeout")
    if timeout:
        from select import POLLIN, poll

        pidfd = os.pidfd_open(pid)
        poller = poll()
        poller.register(pidfd, POLLIN)
        expired = not poller.poll(timeout * 1000)
        os.close(pidfd)
        if expired:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise PycontainError(f"{path}: hook {hook['path']} was killed after its timeout of {timeout} s")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        how = f"ended with exit status {status}" if status > 0 else f"was killed by signal {-status}"
        raise PycontainError(f"{path}: hook {hook['path']} {how}")
