"""Unified diffs as git writes them: read, applied, and made from two trees; pure."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Tree = Mapping[str, bytes]
"""Content by path."""

NO_NEWLINE = "\\ No newline at end of file"
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_CONTEXT_LINES = 3
_LINK_MODE = " 120000"
_ESCAPES = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, '"': 34, "\\": 92}


class Link(bytes):
    """The content of a symbolic link: the path that it leads to."""


class DiffError(ValueError):
    """The text is no unified diff, or does not fit what it is applied to; the message says where."""


@dataclass(frozen=True)
class Hunk:
    """One hunk: line numbers from 1, its lines with their first character (space, +, -, backslash), no newline."""

    old_start: int
    new_start: int
    lines: tuple[str, ...]
    header: str

    def side(self, sign: str) -> list[str]:
        """Return the lines of the old side ("-") or the new one ("+"), with newlines where they have one."""
        found: list[str] = []
        mine = False
        for line in self.lines:
            if line.startswith("\\"):
                if mine:
                    found[-1] = found[-1][:-1]
                continue
            mine = line[0] in (sign, " ")
            if mine:
                found.append(line[1:] + "\n")
        return found


@dataclass(frozen=True)
class FileDiff:
    """What became of one file; ``old_path`` is another name that it had before, or was copied from."""

    path: str
    status: str
    """As GitHub names it: added, removed, modified, renamed, copied, or changed where only the mode is another."""
    old_path: str = ""
    hunks: tuple[Hunk, ...] = ()
    binary: bool = False
    link: bool = False
    """Whether it is a symbolic link; git shows one that becomes a file as removed and added."""

    @property
    def before(self) -> str:
        """The path on the old side."""
        return self.old_path or self.path

    @property
    def patch(self) -> str:
        """The hunks as text, without a newline at its end; '' for none."""
        return "\n".join("\n".join((hunk.header, *hunk.lines)) for hunk in self.hunks)

    @property
    def additions(self) -> int:
        """How many lines begin with +."""
        return self._count("+")

    @property
    def deletions(self) -> int:
        """How many lines begin with -."""
        return self._count("-")

    def _count(self, sign: str) -> int:
        return sum(line.startswith(sign) for hunk in self.hunks for line in hunk.lines)


def parse_diff(text: str) -> list[FileDiff]:
    """
    Return the files of ``git diff``, ``git show`` or ``git format-patch``; what stands before the first is skipped.

    Carriage returns count, so read it without translating line ends.
    Raises: DiffError.
    """
    lines = text.removesuffix("\n").split("\n")
    starts = _starts(lines)
    return [_file(lines[start:end]) for start, end in itertools.pairwise([*starts, len(lines)])]


def _starts(lines: Sequence[str]) -> list[int]:
    """Return where files begin; lines of hunks all begin with another character."""
    return [at for at, line in enumerate(lines) if line.startswith("diff --git ")]


def _file(lines: Sequence[str]) -> FileDiff:
    old, new = _names(lines[0])
    status, renamed, binary, link = "modified", "", False, False
    at = 1
    while at < len(lines) and not lines[at].startswith("@@"):
        line = lines[at]
        word, _, rest = line.partition(" ")
        link = link or (word in ("new", "deleted", "index") and line.endswith(_LINK_MODE))
        if line.startswith("new file mode"):
            status = "added"
        elif line.startswith("deleted file mode"):
            status = "removed"
        elif line.startswith(("rename from ", "copy from ")):
            status = "renamed" if word == "rename" else "copied"
            renamed = _unquoted(rest.removeprefix("from "))
        elif line.startswith(("rename to ", "copy to ")):
            new = _unquoted(rest.removeprefix("to "))
        elif line.startswith(("Binary files ", "GIT binary patch")):
            binary = True
        elif word == "---" and rest != "/dev/null":
            old = _unquoted(rest.rstrip("\t"))[2:]
        elif word == "+++" and rest != "/dev/null":
            new = _unquoted(rest.rstrip("\t"))[2:]
        at += 1
    hunks = () if binary else tuple(_hunks(lines[at:], new))
    if status == "modified" and not hunks and not binary:
        status = "changed"
    path = old if status == "removed" else new
    return FileDiff(path, status, renamed, hunks, binary, link)


def _names(line: str) -> tuple[str, str]:
    """Return both paths of ``diff --git``; without quotes, only of a file that keeps its name."""
    rest = line.removeprefix("diff --git ")
    if rest.startswith('"'):
        quoted = re.findall(r'"(?:[^"\\]|\\.)*"', rest)
        if len(quoted) == 2:
            return _unquoted(quoted[0])[2:], _unquoted(quoted[1])[2:]
    half = len(rest) // 2
    old, new = rest[:half], rest[half + 1 :]
    return old[2:], new[2:] if old[2:] == new[2:] else rest.rpartition(" b/")[2]


def _unquoted(name: str) -> str:
    if not (len(name) > 1 and name[0] == name[-1] == '"'):
        return name
    out = bytearray()
    for match in re.finditer(r"\\([0-7]{3})|\\(.)|([^\\]+)", name[1:-1]):
        octal, escape, plain = match.groups()
        if octal:
            out.append(int(octal, 8))
        elif escape:
            out.append(_ESCAPES.get(escape, ord(escape[0]) & 0xFF))
        else:
            out += plain.encode()
    return out.decode("utf-8", "replace")


def _hunks(lines: Sequence[str], path: str) -> Iterator[Hunk]:
    at = 0
    while at < len(lines):
        match = _HUNK.match(lines[at])
        if match is None:
            return  # an empty line at the end, or the signature of format-patch
        old_left, new_left = (1 if count is None else int(count) for count in (match[2], match[4]))
        header, start = lines[at], at + 1
        at = start
        while old_left or new_left:
            if at >= len(lines) or (lines[at] and lines[at][0] not in " +-\\"):
                raise DiffError(f"{path}: the hunk {header!r} ends early")
            sign = lines[at][:1] or " "  # some editors strip the space of an empty line
            old_left -= sign in " -"
            new_left -= sign in " +"
            at += 1
        if at < len(lines) and lines[at].startswith("\\"):
            at += 1
        body = tuple(line or " " for line in lines[start:at])
        yield Hunk(int(match[1]), int(match[3]), body, header)


def apply_file(diff: FileDiff, old: bytes) -> bytes:
    """
    Return what *diff* makes of *old*; b"" for a removed file.

    Raises: DiffError if a line is not the one that the diff expects.
    """
    if diff.binary:
        return b"" if diff.status == "removed" else b"\x00new " + diff.path.encode()
    lines = old.decode().split("\n") if diff.hunks else []
    if not diff.hunks:
        return old
    lines = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    out: list[str] = []
    at = 0
    for hunk in diff.hunks:
        expected = hunk.side("-")
        start = hunk.old_start - 1 if expected else hunk.old_start
        if lines[start : start + len(expected)] != expected:
            raise DiffError(f"{diff.path}: the hunk {hunk.header!r} does not fit")
        out += lines[at:start]
        out += hunk.side("+")
        at = start + len(expected)
    return "".join(out + lines[at:]).encode()


def guess_old(diff: FileDiff) -> bytes:
    """Return an old content that *diff* fits: its own lines where they belong, and empty ones between them."""
    if diff.binary:
        return b"\x00old " + diff.before.encode()
    lines: list[str] = []
    for hunk in diff.hunks:
        expected = hunk.side("-")
        lines += ["\n"] * (hunk.old_start - (1 if expected else 0) - len(lines))
        lines += expected
    content = "".join(lines).encode()
    return Link(content) if diff.link else content


def apply_diff(diffs: Sequence[FileDiff], old: Tree) -> dict[str, bytes]:
    """Return *old* with all of *diffs* done. Raises: DiffError, also for a file that is not there."""
    new = dict(old)
    for diff in diffs:
        if diff.status != "added" and diff.before not in old:
            raise DiffError(f"{diff.before} is not there, so it can't be {diff.status}")
        if diff.status in ("removed", "renamed"):
            new.pop(diff.before, None)
        if diff.status != "removed":
            made = apply_file(diff, b"" if diff.status == "added" else old[diff.before])
            new[diff.path] = Link(made) if diff.link else made
    return new


def diff_trees(old: Tree, new: Tree) -> list[FileDiff]:
    """Return what leads from *old* to *new*, by path; a file that moved as it is counts as renamed."""
    gone = {path for path in old if path not in new}
    found = []
    for path in sorted(set(old) | set(new)):
        if path not in new or old.get(path) == new[path]:
            continue
        origin = next((name for name in sorted(gone) if old[name] == new[path]), None) if path not in old else None
        if origin is not None:
            gone.remove(origin)
            found.append(FileDiff(path, "renamed", origin))
        else:
            found.append(_made(path, old.get(path), new[path]))
    found += [_made(path, old[path], None) for path in gone]
    return sorted(found, key=lambda diff: diff.path)


def _made(path: str, old: bytes | None, new: bytes | None) -> FileDiff:
    status = "added" if old is None else "removed" if new is None else "modified"
    try:
        texts = [(content or b"").decode() for content in (old, new)]
    except UnicodeDecodeError:
        return FileDiff(path, status, binary=True)
    if any("\x00" in text for text in texts):
        return FileDiff(path, status, binary=True)
    lines = list(difflib.unified_diff(_split(texts[0]), _split(texts[1]), n=_CONTEXT_LINES))
    out: list[str] = []
    for line in lines[2:]:
        out += [line[:-1]] if line.endswith("\n") else [line, NO_NEWLINE]
    return FileDiff(path, status, hunks=tuple(_hunks(out, path)))


def _split(text: str) -> list[str]:
    *whole, rest = text.split("\n")
    return [line + "\n" for line in whole] + ([rest] if rest else [])
