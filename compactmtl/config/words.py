"""What errors call a setting: its key in a recipe, or the argument that stands for it where there is no recipe.

A message is made of `key("sparsity.selective.start")` where it names a setting. What else it says, such as the names of
layers and the words of a user's own errors, is never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Naming = Callable[[str], str]


def _as_it_is(key: str) -> str:
    return key


_naming: ContextVar[Naming] = ContextVar("naming", default=_as_it_is)


def key(dotted: str) -> str:
    """A dotted key of a recipe, as the caller knows it."""
    return _naming.get()(dotted)


@contextmanager
def naming(named: Naming) -> Iterator[None]:
    """Let errors call settings by what `named` makes of their dotted keys."""
    token = _naming.set(named)
    try:
        yield
    finally:
        _naming.reset(token)
