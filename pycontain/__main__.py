"""``python -m pycontain``."""

from __future__ import annotations

import sys

from pycontain.cli import main

if __name__ == "__main__":
    sys.exit(main())
