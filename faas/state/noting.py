"""The audit log's rows, as the stores write them: in the transaction of the change itself."""

from __future__ import annotations

from typing import Any

import msgspec

from faas.state.database import Session


def note(session: Session, actor: str, action: str, function: str, **detail: Any) -> None:
    """Note who did what to *function*; *detail* names things, and never holds what must stay secret."""
    session.execute(
        "INSERT INTO audit (at, actor, action, function, detail) VALUES (?, ?, ?, ?, ?)",
        session.now(),
        actor,
        action,
        function,
        msgspec.json.encode(detail).decode(),
    )
