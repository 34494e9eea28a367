"""Sources of generated code. Torch keeps each, with what shows it in a traceback, for as long as the process lives."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import graph_module


@contextmanager
def sources_forgotten() -> Iterator[None]:
    """Forget what torch generates meanwhile, half a megabyte for each trace of a large network.

    Graphs made here still run; a traceback through one has no lines of it.
    """
    kept = getattr(getattr(graph_module, "_loader", None), "eval_cache", None)  # torch has no public way
    if not isinstance(kept, dict):
        yield
        return
    before = set(kept)
    try:
        yield
    finally:
        for name in kept.keys() - before:
            del kept[name]
            linecache.cache.pop(name, None)
