"""A process for each request: CGI as it always was."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.host import ROOT
from loadtest.peers.base import Peer
from loadtest.peers.programs import Program


class ProcessPerRequest(Peer):
    """A front server that starts *program* for each request."""

    isolation = "a process: own memory, but the machine's files, network and processes, as its user may"
    connections = 8

    def __init__(self, program: Program) -> None:
        self._program = program
        self.name = f"process-{program.name}"
        self.title = f"process per request, {program.title}"

    def command(self, port: int, scratch: Path) -> Sequence[str]:
        """Build the program."""
        return front(port, self._program.native())


def front(port: int, program: Sequence[str]) -> Sequence[str]:
    """Return the command of the front server; it finds this package wherever it is started."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from loadtest.peers.front import main; main()"
    return [sys.executable, "-c", start, str(port), *program]
