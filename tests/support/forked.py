"""Commands in processes of their own that begin at once: forked from one that has imported what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

_PRELOAD = ["compactmtl.cli.main", "compactmtl.train"]


def start(words: Sequence[str]) -> BaseProcess:
    """`compactmtl WORDS…`, begun; `exitcode` is that of the command. Its output goes nowhere."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)  # heeded by the first process alone
    process = context.Process(target=_run, args=(list(words),))
    process.start()
    return process


def _run(words: list[str]) -> None:
    from compactmtl.cli.main import main

    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  (a device)
        sys.stdout = sys.stderr = nowhere
        code = main(words)
        nowhere.flush()
        os._exit(code)
