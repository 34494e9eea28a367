"""What a folder may be taken for, whatever its files hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.artifacts.run_folder import check_folder
from compactmtl.errors import ConfigError


@pytest.mark.parametrize("text", ["7", "[]", '"subset_of"', "{", "{}", ""])
def test_a_meta_of_another_form_is_no_subset(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")
    (tmp_path / "meta.json").write_text(text)
    check_folder(tmp_path, resume=True, overwrite=False)


def test_a_subset_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")
    (tmp_path / "meta.json").write_text('{"subset_of": {}}')
    with pytest.raises(ConfigError, match="cannot be trained on"):
        check_folder(tmp_path, resume=True, overwrite=False)
