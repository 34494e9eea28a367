"""docs/architecture.md, contributing.md and reference/files.md speak of names that the code has."""

from __future__ import annotations

import ast
import builtins
import re
from functools import cache
from pathlib import Path

import pytest

from compactmtl.cli.main import VERBS
from compactmtl.config.keys import keys
from compactmtl.config.recipe import Recipe
from compactmtl.config.sweep import SweepConfig
from compactmtl.config.target import Target
from tools.check_imports import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = ("architecture.md", "contributing.md", "reference/files.md")
TOP_LEVEL = ("compactmtl/", "tests/", "tools/", "docs/", "recipes/", "export/")
FILE = (
    r"\.?[\w-]+(?:\.\w+)?\.(jsonl|json|yaml|md|npz|txt|onnx|onnx\.data|pt|html|safetensors|version|lock|py)"
)
# Of torch, pydantic and the shell; an extra; and examples of what the reader chooses.
FOREIGN = {
    "torch.export", "weights_only=True", 'Field(description="…")', "CI=true", "dev",
    "last-000012", "package.module:Class", "v<version>", "sources.checkpoint", "site/", "case<number>.<tensor>", "pareto-<target>.svg", "results.outputs.npz",
}  # fmt: skip


@cache
def sources() -> str:
    paths = [*(ROOT / "compactmtl").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@cache
def defined() -> frozenset[str]:
    """Names of classes, functions, attributes, constants and arguments anywhere in the package."""
    names: set[str] = set()
    for path in (ROOT / "compactmtl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
    return frozenset(names)


@cache
def of_tests() -> frozenset[str]:
    """What the tests' modules define at their top level: some of it is for whoever adds something."""
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(target.id for target in targets if isinstance(target, ast.Name))
    return frozenset(names)


@cache
def schema_keys() -> frozenset[str]:
    return frozenset(key.name for schema in (Recipe, Target, SweepConfig) for key in keys(schema))


def spoken(page: str) -> list[str]:
    """What stands between backticks, outside of blocks of code."""
    text = re.sub(
        r"^```.*?^```$", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return re.findall(r"`([^`]+)`", text)


def is_known(word: str) -> bool:
    """Whether the repository has what a page names."""
    if word in FOREIGN or word in PACKAGES or word in schema_keys() or hasattr(builtins, word):
        return True
    if word.startswith("compactmtl "):
        verb, *options = word.split()[1:]
        return verb in VERBS and all(option in sources() for option in options if option.startswith("--"))
    if word.startswith(("make ", "python ", ".ci/")):
        return all((ROOT / part).exists() for part in word.split() if "/" in part)
    if word.startswith(TOP_LEVEL):
        return (ROOT / re.sub(r"[^/]*[<*].*", "", word)).exists()  # up to a name that the reader chooses
    if "/" in word:  # a place in a run
        return all(
            f'"{part}"' in sources() for part in re.sub(r"/?[^/]*[<*].*", "", word).strip("/").split("/")
        )
    if re.fullmatch(FILE, word):
        return (ROOT / word).exists() or word in sources()
    if call := re.match(r"([\w<>]+)\(", word):
        named = re.compile(re.sub(r"<\w+>", r"\\w+", call[1]))  # <name> is one that the reader chooses
        return any(named.fullmatch(name) for name in defined() | of_tests())
    if word in of_tests():
        return True
    first, _, rest = word.partition(".")
    if rest and first in schema_keys():
        return False  # a key that no schema has
    return all(part in defined() or f'"{part}"' in sources() for part in word.split("."))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_name_in_the_page_is_one_of_the_code(page: str) -> None:
    unknown = {word for word in spoken(page) if not is_known(word)}
    assert unknown == set()


@pytest.mark.parametrize(
    "word",
    [
        "NoSuchClass",
        "no_such_function()",
        "no_such_<name>(root)",
        "NO_SUCH_CONSTANT",
        "compactmtl walk",
        "compactmtl train --no-such-option",
        "compactmtl/graph/no_such_module.py",
        "no_such.json",
        "sparsity.selective.no_such_key",
    ],
)
def test_a_name_that_is_gone_is_noticed(word: str) -> None:
    assert not is_known(word)


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_packages_is_the_order_of_imports() -> None:
    packages = [row[0].strip("`") for row in rows("architecture.md", "Packages")]
    assert packages == list(PACKAGES)


def test_the_glossary_is_complete_and_explains_no_word_twice() -> None:
    words = [row[0] for row in rows("architecture.md", "Glossary")]
    assert len(words) == len(set(words))
    for word in ("channel group", "carrier", "factor", "bundle", "gate", "Δm", "plan", "target", "barrier"):
        assert any(word in entry for entry in words), word


@pytest.mark.slow  # it imports every package
def test_the_versions_of_the_file_formats_are_those_of_the_code() -> None:
    from compactmtl.artifacts import hashes
    from compactmtl.export.record import BundleInfo
    from compactmtl.sparsity import LatencyTable
    from compactmtl.surgery import Plan
    from compactmtl.verify import Verification

    stated = {row[0].replace("`", ""): row[1] for row in rows("reference/files.md", "Versions")}
    assert stated["plan.json"] == str(Plan.model_fields["version"].default)
    assert stated["bundle.json"] == str(BundleInfo.model_fields["version"].default)
    assert stated["verification.json"] == str(Verification.model_fields["version"].default)
    assert stated["hashes.json"] == str(hashes.VERSION)
    newest = max(one.le for one in LatencyTable.model_fields["version"].metadata if hasattr(one, "le"))
    assert stated["latency table"] == str(newest)
