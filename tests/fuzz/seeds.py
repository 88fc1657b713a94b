"""Seeds for the fuzzers: plans for the decoder's, dialogues for both ends of a machine's port.

python tests/fuzz/seeds.py decoder|stand_in|agent FOLDER
"""

from __future__ import annotations

import os
import sys

from pycontain.runtime import channel
from pycontain.runtime.plan.ops import TABLE, encode
from pycontain.runtime.vm import port

SAMPLES: dict[str, object] = {"u": 0x1234, "s": "/proc/sys", "b": b"\x00\x01binary", "l": ["sh", "-c", "", "exit"]}
TYPES = {name: kind for kind, name in channel.NAMES.items()}


def plans() -> dict[str, bytes]:
    """One plan per operation, and one with all of them."""
    ops = [(name, *(SAMPLES[kind] for kind in signature)) for name, (_, signature) in TABLE.items()]
    return {"empty": encode([]), "all": encode(ops), **{str(op[0]): encode([op]) for op in ops}}


def message(name: str, *words: int, data: bytes = b"") -> bytes:
    payload = b"".join(word.to_bytes(4, "little") for word in words) + data
    return TYPES[name].to_bytes(4, "little") + len(payload).to_bytes(4, "little") + payload


def dialogues(side: str) -> dict[str, bytes]:
    """What the peer of ``side`` may say; the three bytes before it: size of the pieces, how often, what world."""
    if side == "stand_in":
        begin = message("unshared", 7) + message("ready")
        output = message("stream", 1, data=b"x" * 1000) + message("stream", 2, data=b"y" * 100)
        end = message("close", 1) + message("close", 2) + message("exited", 3 << 8, 1)
        said = {
            "whole": begin + message("running") + output + end,
            "output": output,
            "input": message("credit", 0, 512) + output,
            "deaf": message("close", 0) + output,
            "failed": begin + message("failed", 4, 2, data=b"execve") + message("exited", 125 << 8, 0),
        }
    else:
        plan = message("hello", 1, 2) + message("part", data=encode([("sync",)]))
        said = {
            "call": plan + message("session", data=port.session(0)),
            "stdio": plan + message("session", data=port.session(port.WANT_STDIO, "/sys/fs/cgroup/x", ["/a", "/b"])),
            "console": plan + message("resize", 24, 80) + message("session", data=port.session(port.WANT_CONSOLE)),
            "go": plan + message("session", data=port.session(1)) + message("go", data=b"{}") + message("start"),
            "input": message("stream", 0, data=b"z" * 900) + message("credit", 1, 100) + message("signal", 15),
            "end": message("close", 0) + message("close", 1),
        }
    return {f"{name}{how[2]}": bytes(how) + text for name, text in said.items() for how in ((16, 0, 0), (3, 1, 7), (8, 47, 4))}


def write(folder: str, target: str = "decoder") -> int:
    """Write the seeds as files; how many there are."""
    os.makedirs(folder, exist_ok=True)
    found = plans() if target == "decoder" else dialogues(target)
    for name, data in found.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    return len(found)


if __name__ == "__main__":
    print(write(sys.argv[2], sys.argv[1]), "seeds")
