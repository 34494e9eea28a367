"""One thread for small work: beside another busy process a thread pool waits longer than it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's operators on the CPU run in the calling thread alone, and put the former number of threads back.

    Tracing, proving and counting run hundreds of small operators one after the other. Each would hand parts of a
    microsecond's work to a pool whose idle threads spin, which on a busy machine costs milliseconds. Also a decorator.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
