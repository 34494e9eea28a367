"""Files that begin like a .npy file and are none: each of these headers makes numpy or Python raise another kind of exception."""

from __future__ import annotations

import struct

HEADERS = {
    "cut header": "{'descr': '<f4', 'fortran_order': Fa",
    "claims": "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }",
    "long": "{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000000000000,), }",
    "nested": "1" + "+1" * 4500,
    "minus": "-" * 9000 + "1",
    "no type": "{'descr': [1], 'fortran_order': False, 'shape': (3,), }",
    "unhashable": "{[]: {'a'}, 'fortran_order': False, 'shape': (1,), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
}


def npy_of(header: str) -> bytes:
    """A .npy file of version 1.0 with this header, and some numbers behind it."""
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)
