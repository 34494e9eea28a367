"""Classes that are found by their file: exactly one in each."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from compactmtl.config.registry import class_in, defined_class
from compactmtl.errors import CompactError, ConfigError


def is_error(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, CompactError)


def module_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"one_of_{folder.name}"
    (folder / f"{name}.py").write_text("from compactmtl.errors import CompactError, DataError\n" + text)
    monkeypatch.syspath_prepend(folder)
    return name


def test_what_a_module_imports_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module_of("class Mine(CompactError): ...\n", tmp_path, monkeypatch)
    assert defined_class(name, is_error).__name__ == "Mine"


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "none"), ("class One(CompactError): ...\nclass Two(CompactError): ...\n", "One, Two")],
)
def test_a_module_with_none_or_several_says_what_it_has(
    text: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module_of(text, tmp_path, monkeypatch)
    with pytest.raises(TypeError, match=f"{name} must define exactly one class of its kind, found {found}$"):
        defined_class(name, is_error)


def test_a_misspelt_name_has_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^sparsity\.penalty: there is no penalty 'group_laso'") as caught:
        class_in("sparsity/penalties", "group_laso", is_error, "sparsity.penalty", "penalty")
    assert caught.value.hint.startswith("did you mean group_lasso")
