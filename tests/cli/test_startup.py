"""`--help` and the lists answer at once: nothing heavy is imported for them."""

import resource
import subprocess
import sys

import pytest

from compactmtl.cli.main import VERBS

HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "numpy",
    "matplotlib",
    "pydantic",
}
QUICK = [["--help"], ["--version"], ["recipes", "list"], ["targets", "list"]]
CODE = """
import sys
from compactmtl.cli.main import main
code = main(sys.argv[1:])
print("loaded", *sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize("words", [*QUICK, *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_nothing_heavy_is_loaded(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert not HEAVY & set(loaded)


def _child_seconds() -> float:
    """CPU time of finished child processes: what other processes of the machine do is not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_the_answer_takes_less_than_half_a_second(words: list[str]) -> None:
    seconds = []
    for _ in range(3):
        start = _child_seconds()
        subprocess.run([sys.executable, "-m", "compactmtl", *words], capture_output=True, check=True)
        seconds.append(_child_seconds() - start)
    assert min(seconds) < 0.5
