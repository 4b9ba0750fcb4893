"""Bundles: a function's read-only files, packed into one uncompressed tar and read through a memory map."""

from __future__ import annotations

import io
import mmap
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from faas.errors import ArtifactMissingError, ArtifactTamperedError, ManifestError

MIB = 1024 * 1024
DEFAULT_MAX_BYTES = 64 * MIB
_MAX_FILES = 10_000
# What the guest's file system (faas/wasi/files.py) can name.
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 4096


class Bundle(Mapping[str, memoryview]):
    """
    The files of one bundle: relative POSIX path -> contents, read-only views of the mapped archive, nothing copied.

    Lives until ``close`` or garbage collection; a view that is still in use keeps the map alive.
    """

    def __init__(self, files: dict[str, memoryview], folders: frozenset[str]) -> None:
        self._files = files
        self.folders = folders
        """Every folder's relative path, also those without files; '' (the root) is not among them."""

    def __getitem__(self, path: str) -> memoryview:
        return self._files[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def close(self) -> None:
        """Forget every file; the map goes once no view of it is used any more."""
        self._files = {}
        self.folders = frozenset()


def pack_bundle(folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """
    Return the archive of *folder*: the same files always give the same bytes, whatever their times and owners.

    Raises: ManifestError for what is no regular file or folder (symlinks too), and when the whole is over *max_bytes*.
    """
    if not folder.is_dir():
        raise ManifestError(f"files = {folder.name!r} is not a folder; name one beside function.toml")
    archive = io.BytesIO()
    room = max_bytes
    n_files = 0
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _walk(folder):
            name = path.relative_to(folder).as_posix()
            if (why := _unusable(name)) is not None:
                raise ManifestError(f"files: {_cut(name)} {why}; rename it")
            status = path.lstat()
            n_files += 1
            if n_files > _MAX_FILES:
                raise ManifestError(f"files: {folder.name} holds more than {_MAX_FILES} entries; deploy fewer")
            entry = tarfile.TarInfo(name)
            if stat.S_ISDIR(status.st_mode):
                entry.type = tarfile.DIRTYPE
                entry.mode = 0o555
                tar.addfile(entry)
                continue
            if not stat.S_ISREG(status.st_mode):
                what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
                raise ManifestError(f"files: {name} is {what}; replace it by a regular file")
            # Looked at before it is read: a huge file must not be read only to be refused.
            if status.st_size > room:
                raise ManifestError(
                    f"files: {folder.name} is over {max_bytes // MIB} MiB at {name}; leave out what is not needed"
                )
            contents = path.read_bytes()
            room -= len(contents)
            entry.size = len(contents)
            entry.mode = 0o444
            tar.addfile(entry, io.BytesIO(contents))
    return archive.getvalue()


def read_bundle(path: Path) -> Bundle:
    """
    Return the files in the archive at *path*; contents stay on disk until they are looked at.

    Raises: ArtifactMissingError; ArtifactTamperedError when it is not an archive that ``pack_bundle`` could have made
    (absolute paths, '..', links, devices, sparse files).
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # can't be mapped
                raise ArtifactTamperedError(f"the bundle {path.name} is empty; deploy the function again")
            contents = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            members = _members(path, contents)
    except FileNotFoundError as exc:
        raise ArtifactMissingError(f"the bundle {path.name} is gone; deploy the function again") from exc
    return _index(path, members, memoryview(contents))


def check_bundle(archive: bytes) -> None:
    """
    Do nothing if *archive*, as uploaded, is one that ``read_bundle`` will read.

    Raises: ManifestError.
    """
    place = Path("upload")
    try:
        _index(place, _members(place, archive), memoryview(archive))
    except ArtifactTamperedError as exc:
        raise ManifestError(f"the uploaded files are refused: {exc.message}") from exc


def _index(path: Path, members: list[tarfile.TarInfo], view: memoryview) -> Bundle:
    """Return where each file's contents lie in *view*."""
    files: dict[str, memoryview] = {}
    folders: set[str] = set()
    for member in members:
        name = _safe_name(path, member)
        end_of_folder = name.rfind("/")
        while end_of_folder > 0 and (folder := name[:end_of_folder]) not in folders:
            folders.add(folder)
            end_of_folder = name.rfind("/", 0, end_of_folder)
        if len(folders) > _MAX_FILES:
            raise ArtifactTamperedError(f"the bundle {path.name} holds more than {_MAX_FILES} folders; deploy fewer")
        if member.isdir():
            folders.add(name)
        elif member.type == tarfile.REGTYPE and not member.issparse():
            end = member.offset_data + member.size
            if member.size < 0 or end > len(view) or name in files:
                raise ArtifactTamperedError(f"the bundle {path.name} is damaged at {name!r}; deploy the function again")
            files[name] = view[member.offset_data : end]
        else:
            raise ArtifactTamperedError(
                f"the bundle {path.name} holds {name!r}, which is no regular file; deploy again"
            )
    both = next((name for name in files if name in folders), None)
    if both is not None:
        raise ArtifactTamperedError(
            f"the bundle {path.name} holds {_cut(both)} both as a file and as a folder; deploy again"
        )
    return Bundle(files, frozenset(folders))


def _members(path: Path, contents: mmap.mmap | bytes) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=_Window(contents), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            members = []
            for member in tar:
                members.append(member)
                if len(members) > _MAX_FILES:
                    raise ArtifactTamperedError(f"the bundle {path.name} holds more than {_MAX_FILES} entries")
            return members
    # Hostile headers make tarfile raise all of these.
    except (tarfile.TarError, ValueError, EOFError, OSError, OverflowError, RecursionError, KeyError) as exc:
        raise ArtifactTamperedError(
            f"the bundle {path.name} is not readable ({exc}); deploy the function again"
        ) from exc


class _Window(io.RawIOBase):
    """A seekable reader over bytes that are already in memory, without a copy of the whole."""

    def __init__(self, contents: mmap.mmap | bytes) -> None:
        self._contents = contents
        self._pos = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        end = len(self._contents) if size < 0 else self._pos + size
        piece = bytes(self._contents[self._pos : end])
        self._pos += len(piece)
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._pos, os.SEEK_END: len(self._contents)}[whence]
        self._pos = max(0, base + offset)
        return self._pos

    def tell(self) -> int:
        return self._pos


def _safe_name(path: Path, member: tarfile.TarInfo) -> str:
    """Return a member's path once it can't lead out of the bundle and a guest can name it."""
    name = member.name
    parts = name.split("/")
    if not name or "\0" in name or "\\" in name or any(part in {"", ".", ".."} for part in parts):
        raise ArtifactTamperedError(f"the bundle {path.name} holds the path {_cut(name)}; deploy the function again")
    if (why := _unusable(name)) is not None:
        raise ArtifactTamperedError(f"the bundle {path.name} holds the path {_cut(name)}, which {why}; deploy again")
    return name


def _unusable(name: str) -> str | None:
    """Return why no guest could open the relative path *name*, None if one can."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if len(raw) > _MAX_PATH_BYTES:
        return f"is longer than {_MAX_PATH_BYTES} bytes"
    if max(map(len, raw.split(b"/"))) > _MAX_NAME_BYTES:
        return f"has a part of more than {_MAX_NAME_BYTES} bytes"
    return None


def _cut(name: str) -> str:
    """Return *name* quoted, fit for one line."""
    return repr(name if len(name) <= 200 else name[:199] + "…")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield everything below *folder*, sorted, folders before what they hold; links are not followed."""
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        yield entry
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
