"""Modules made byte by byte, for what a text format won't let one write."""

from __future__ import annotations

import os
from pathlib import Path

FUNCTIONS = Path(os.path.abspath(__file__)).parents[3] / "functions"
HEADER = b"\0asm\x01\0\0\0"


def leb(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def section(number: int, contents: bytes) -> bytes:
    return bytes([number]) + leb(len(contents)) + contents


def name(text: str) -> bytes:
    raw = text.encode()
    return leb(len(raw)) + raw


def compile_bomb(n_functions: int, n_rounds: int) -> bytes:
    """A valid command whose functions are each long enough to keep Cranelift busy."""
    # x = x * K + (x >> 3), over and over.
    a_round = b"\x20\x00\x41\xb7\x02\x6c\x20\x00\x41\x03\x76\x6a\x21\x00"
    work = b"\x00" + a_round * n_rounds + b"\x20\x00\x0b"
    start = b"\x00\x0b"
    bodies = leb(len(start)) + start + (leb(len(work)) + work) * n_functions
    return (
        HEADER
        + section(1, leb(2) + b"\x60\x00\x00" + b"\x60\x01\x7f\x01\x7f")
        + section(3, leb(1 + n_functions) + b"\x00" + b"\x01" * n_functions)
        + section(7, leb(1) + name("_start") + b"\x00\x00")
        + section(10, leb(1 + n_functions) + bodies)
    )
