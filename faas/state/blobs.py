"""Files that every host which shares the database may need: modules, and bundles of functions' read-only files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Set
from typing import Final

from faas.errors import ArtifactMissingError, ArtifactTamperedError
from faas.state.database import Database, Session

PART_BYTES: Final = 4 * 1024 * 1024
YOUNG_S: Final = 3600.0
"""What nothing names yet may belong to a deploy that is under way, on any host."""


class BlobStore:
    """
    Contents by their SHA-256 (hex); only used where the database is shared, else files are the artifact store's alone.

    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, digest: str, contents: bytes) -> None:
        """Keep *contents*, whose digest is *digest*; what is there already is left as it is, and young again."""

        def put(session: Session) -> None:
            # It has the row from here on, so no sweep takes it away any more.
            session.execute(
                "INSERT INTO blobs (digest, n_bytes, added_at) VALUES (?, ?, ?)"
                " ON CONFLICT (digest) DO UPDATE SET added_at = excluded.added_at",
                digest,
                len(contents),
                session.now(),
            )
            if session.execute("SELECT 1 FROM blob_parts WHERE digest = ? LIMIT 1", digest):
                return
            for number, part in enumerate(_parts(contents)):
                session.execute(
                    "INSERT INTO blob_parts (digest, number, content) VALUES (?, ?, ?)", digest, number, part
                )

        await self._database.run(put)

    async def get(self, digest: str) -> bytes:
        """
        Return the contents of *digest*.

        Raises: ArtifactMissingError; ArtifactTamperedError if they are not what was put there.
        """
        rows = await self._database.run(
            lambda session: session.execute("SELECT content FROM blob_parts WHERE digest = ? ORDER BY number", digest)
        )
        if not rows and digest != hashlib.sha256(b"").hexdigest():
            raise ArtifactMissingError(
                f"the shared state has no file {digest}; deploy the function again on the host that has it"
            )
        contents = b"".join(bytes(row[0]) for row in rows)
        if hashlib.sha256(contents).hexdigest() != digest:
            raise ArtifactTamperedError(f"the file {digest} of the shared state is damaged; deploy the function again")
        return contents

    async def sweep(self, keep: Set[str]) -> int:
        """Remove what is not among *keep* and was put there over an hour ago; return how many."""

        def sweep(session: Session) -> int:
            before = session.now() - YOUNG_S
            n_gone = 0
            for (digest,) in session.execute("SELECT digest FROM blobs WHERE added_at < ? ORDER BY digest", before):
                if digest in keep:
                    continue
                # Of two hosts that want the row one has to wait, and then looks at what the other one made of it.
                if session.changed("UPDATE blobs SET n_bytes = 0 WHERE digest = ? AND added_at < ?", digest, before):
                    session.execute("DELETE FROM blob_parts WHERE digest = ?", digest)
                    session.execute("DELETE FROM blobs WHERE digest = ?", digest)
                    n_gone += 1
            return n_gone

        return await self._database.run(sweep)


def _parts(contents: bytes) -> Iterator[bytes]:
    for start in range(0, len(contents), PART_BYTES):
        yield contents[start : start + PART_BYTES]
