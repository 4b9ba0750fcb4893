"""``python -m precompile``: does one job, see ``precompile.job``."""

from __future__ import annotations

import sys

from precompile.job import main

if __name__ == "__main__":
    sys.exit(main())
