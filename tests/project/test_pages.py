"""What pages show is valid: every YAML block is read by the schema that it is of, every Python block names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compactmtl import load_recipe, load_target
from compactmtl.config import resolve_sweep
from compactmtl.config.recipe import Recipe
from compactmtl.config.sweep import SweepConfig
from compactmtl.config.target import Target
from compactmtl.config.validate import validate
from compactmtl.config.yaml import read_yaml
from compactmtl.data.description import FolderDescription

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(language: str) -> list[object]:
    """Every fenced block of a language by its place; but the tutorial's files, which its own test runs."""
    blocks: list[object] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            blocks.append(pytest.param(match[1], id=f"{page.relative_to(ROOT)}:{line}"))
    return blocks


@pytest.mark.parametrize("text", _blocks("yaml"))
def test_a_yaml_block_is_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "block.yaml"
    path.write_text(text, encoding="utf-8")
    node = read_yaml(path)
    values = node.plain()
    assert isinstance(values, dict)
    keys = {str(key) for key in values} - {"extends"}
    part = re.sub(r"^extends:.*\n", "", text, flags=re.MULTILINE)  # of a whole recipe or target
    if isinstance(values.get("targets"), dict):
        validate(FolderDescription, node, "data set description")
    elif keys <= set(Recipe.model_fields):
        path.write_text(f"extends: utkface/dense\n{part}", encoding="utf-8")
        load_recipe(path)
    elif keys <= set(Target.model_fields):
        path.write_text(f"extends: onnxruntime-cpu\n{part}", encoding="utf-8")
        load_target(path)
    else:
        assert keys <= set(SweepConfig.model_fields), f"of no schema: {sorted(keys)}"
        resolve_sweep(path)


@pytest.mark.parametrize("text", _blocks("python"))
def test_a_python_block_compiles(text: str) -> None:
    compile(text, "block", "exec")


@pytest.mark.slow  # imports torch, timm and the runtimes
@pytest.mark.parametrize("text", _blocks("python"))
def test_a_python_block_imports_what_exists(text: str) -> None:
    for line in re.findall(r"^from compactmtl.*$", text, re.MULTILINE):
        exec(line, {})
