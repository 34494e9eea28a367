"""One reader under atheris, in a process of its own: `python -m tools.fuzzing.child READER CORPUS FLAG…`."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Feed the reader until libFuzzer's flags end it; never returns.

    No fault handler of Python's: libFuzzer keeps the file that a crash came of in its own, unless there is another one.
    """
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["compactmtl", "ruamel"]):
        readers = importlib.import_module("tools.fuzzing.readers")
    name, *words = sys.argv[1:]
    folder = Path(tempfile.mkdtemp(prefix="compactmtl-fuzz-"))

    def once(data: bytes) -> None:
        readers.feed(readers.READERS[name], data, folder)

    atheris.Setup([sys.argv[0], *words], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
