"""A host of its own process without the command line: ``python host_process.py SETTINGS_AS_JSON``."""

from __future__ import annotations

import asyncio
import json
import sys

import msgspec

from faas.config import load_config
from faas.control.main import RunningHost, serve
from faas.errors import FaasError
from faas.log import configure


def announce(host: RunningHost) -> None:
    print(json.dumps(msgspec.to_builtins(host)), flush=True)


def main() -> int:
    configure(sys.stderr)
    try:
        asyncio.run(serve(load_config(json.loads(sys.argv[1]), {}), announce))
    except FaasError as exc:
        print(f"{exc.code}: {exc.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
