"""Run a command on a real cgroup v2 kernel: ``python tests/vm/run.py [options] -- COMMAND...``

Prints the command's output and ends with its exit status; 125 where the machine itself failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.vm import kernel, machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/vm/run.py", description="Run a command in a machine with cgroup v2.")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="the machine's memory (2048)")
    parser.add_argument("--cpus", type=int, default=2, help="the machine's processors (2)")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="for all of it (600)")
    parser.add_argument("--cwd", help="where the command starts (here)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command")
    parser.add_argument("--systemd", action="store_true", help="boot systemd as pid 1")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    environment = dict(item.partition("=")[::2] for item in options.env)
    try:
        return machine.run(
            options.command,
            output=sys.stdout.buffer,
            cwd=options.cwd,
            environment=environment,
            memory=options.memory,
            cpus=options.cpus,
            timeout=options.timeout,
            systemd=options.systemd,
        )
    except (kernel.Unavailable, machine.MachineError, TimeoutError) as error:
        print(f"tests/vm/run.py: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
