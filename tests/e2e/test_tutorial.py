"""docs/tutorial.md: every file, command and snippet of the page runs as it stands there, only shorter."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
# What makes the test short: the commands are under test, not the network.
SHORTER = {"range(240)": "range(48)", "epochs: 20": "epochs: 1"}
BUNDLE = Path("runs/small/export/onnxruntime-cpu")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is, if any, and its text."""

    language: str
    title: str
    text: str


def blocks() -> list[Block]:
    """All fenced blocks of the page in their order, shortened."""
    page = PAGE.read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert page.count(long) == 1, long
        page = page.replace(long, short)
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)
    return [Block(*one) for one in found]


def write_files(folder: Path) -> None:
    """Write each titled block into `folder`."""
    for block in blocks():
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


def run_script(path: Path) -> dict[str, object]:
    """A Python file of the page as a program; its names."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    return names


def run_line(line: str) -> Mapping[str, object]:
    """One command line, in this process: the programs that the page calls are compactmtl, python and cp."""
    from compactmtl.cli.main import main

    program, *words = shlex.split(line)
    if program == "python" and len(words) > 1:
        subprocess.run([sys.executable, *words], check=True)
        return {}
    if program == "python":
        return run_script(Path(*words))
    if program == "cp":
        *options, source, target = words
        shutil.copytree(source, target) if options == ["-r"] else shutil.copy(source, target)
        return {}
    assert program == "compactmtl", line
    assert main(words) == 0, line
    return {}


def weights(run: Path) -> dict[str, np.ndarray]:
    """The compact model's weights by name."""
    from safetensors.numpy import load_file

    return load_file(run / "compact" / "weights.safetensors")


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, object]]:
    """The folder in which every command of the page was typed, and the names of its last program, device.py."""
    folder = tmp_path_factory.mktemp("typed")
    write_files(folder)
    names: Mapping[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks():
            if block.language == "sh":
                for line in block.text.splitlines():
                    names = run_line(line)
    return folder, names


@pytest.mark.slow
@pytest.mark.timeout(600)  # two trainings, an export and a report, on a machine that others use too
def test_every_command_runs(typed: tuple[Path, Mapping[str, object]]) -> None:
    folder, _ = typed
    assert (folder / "samples.png").is_file()
    assert (folder / "runs/small/report.html").stat().st_size > 10_000
    assert (folder / "pictures/0000.png").is_file()
    surgery = json.loads((folder / "runs/small/compact/surgery.json").read_text())
    assert surgery["macs"]["after"] < 0.55 * surgery["macs"]["before"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_file_of_the_bundle_is_in_the_table(typed: tuple[Path, Mapping[str, object]]) -> None:
    folder, _ = typed
    named = set(re.findall(r"^\| `([\w./]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    there = {path.name + "/" * path.is_dir() for path in (folder / BUNDLE).iterdir()}
    assert there == named


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_device_computes_what_predict_does(typed: tuple[Path, Mapping[str, object]]) -> None:
    from compactmtl.export import Predictor

    folder, device = typed
    with Predictor.open(folder / BUNDLE) as predictor:
        one = {result.task: result for result in predictor.predict(predictor.read(folder / "photo.png"))}
    probability = device["probability"]
    assert isinstance(probability, dict)
    # float32 rounds (x / 255 - mean) / std and the folded form of `predict` apart, by about 1e-7 of the input
    assert probability == pytest.approx(one["shape"].probabilities, abs=1e-5)
    np.testing.assert_array_equal(np.asarray(device["mask"]), one["segmentation"].value)
    (record,) = json.loads((folder / "pictures/predictions.json").read_text()).values()
    assert record["tasks"]["shape"]["class"] == max(probability, key=lambda name: probability[name])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_python_writes_what_the_commands_write(
    typed: tuple[Path, Mapping[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_script(tmp_path / "make_images.py")
    snippets = "\n".join(block.text for block in blocks() if block.language == "python" and not block.title)
    exec(compile(snippets, str(PAGE), "exec"), {})
    of_commands, of_python = weights(typed[0] / "runs/small"), weights(tmp_path / "runs/small")
    assert of_commands.keys() == of_python.keys()
    assert all(np.array_equal(value, of_python[name]) for name, value in of_commands.items())
    for file in ("report.html", BUNDLE.relative_to("runs/small") / "verification.json"):
        assert (tmp_path / "runs/small" / file).is_file()


def test_the_device_needs_three_packages_and_fifteen_lines() -> None:
    (device,) = (block for block in blocks() if block.title == "device.py")
    imports = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(ast.parse(device.text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert {name.partition(".")[0] for name in imports} - sys.stdlib_module_names == {
        "numpy",
        "onnxruntime",
        "PIL",
    }
    assert len([line for line in device.text.splitlines() if line]) <= 15
