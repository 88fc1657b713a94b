"""Seeds for the fuzzer of the decoder: one plan per operation, and one plan with all of them.

python tests/fuzz/seeds.py FOLDER
"""

from __future__ import annotations

import os
import sys

from pycontain.runtime.plan.ops import TABLE, encode

SAMPLES: dict[str, object] = {"u": 0x1234, "s": "/proc/sys", "b": b"\x00\x01binary", "l": ["sh", "-c", "", "exit"]}


def write(folder: str) -> int:
    """Write the seeds as files; how many there are."""
    os.makedirs(folder, exist_ok=True)
    ops = [(name, *(SAMPLES[kind] for kind in signature)) for name, (_, signature) in TABLE.items()]
    plans = {"empty": encode([]), "all": encode(ops), **{str(op[0]): encode([op]) for op in ops}}
    for name, plan in plans.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(plan)
    return len(plans)


if __name__ == "__main__":
    print(write(sys.argv[1]), "seeds")
