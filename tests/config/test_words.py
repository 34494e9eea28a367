"""Settings have the names that the caller knows, for as long as it is asked for."""

from __future__ import annotations

import pytest

from compactmtl.config.words import key, naming


def test_a_key_of_a_recipe_is_called_so_outside() -> None:
    assert key("sparsity.selective.start") == "sparsity.selective.start"


def test_another_name_ends_with_its_block_also_after_an_error() -> None:
    def fails() -> None:
        with naming(str.upper):
            assert key("a.b") == "A.B"
            with naming(lambda one: one[::-1]):
                assert key("a.b") == "b.a"
            assert key("a.b") == "A.B"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert key("a.b") == "a.b"
