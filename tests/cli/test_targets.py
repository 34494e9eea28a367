from collections.abc import Callable
from pathlib import Path

import pytest

from compactmtl.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str) -> tuple[int, str, str]:
        return main(["targets", *words]), *capsys.readouterr()

    return invoke


def test_list_has_the_shipped_target(run: Run) -> None:
    code, shown, _ = run("list")
    assert code == 0
    assert any(line.startswith("onnxruntime-cpu ") for line in shown.splitlines())


def test_a_target_of_one_s_own_is_found_in_the_working_folder(run: Run) -> None:
    Path("export").mkdir()
    Path("export/board.yaml").write_text(
        "description: my board\nextends: onnxruntime-cpu\nthreads: 4\n", "utf-8"
    )
    assert ["board", "my", "board"] in [line.split() for line in run("list")[1].splitlines()]
    code, shown, _ = run("show", "board", "--resolved")
    assert code == 0
    values = {
        line.split(":")[0].strip(): line.split("#")[1].strip() for line in shown.splitlines() if "#" in line
    }
    assert values["threads"] == "export/board.yaml:3"
    assert values["backend"].endswith("onnxruntime-cpu.yaml:2")
    assert values["max_megabytes"] == "default"


def test_show_is_the_file(run: Run) -> None:
    code, shown, _ = run("show", "onnxruntime-cpu")
    assert code == 0
    assert shown.splitlines()[0].endswith("export/onnxruntime-cpu.yaml")
    assert "backend: onnxruntime" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "onnxruntime-cp"), "did you mean onnxruntime-cpu"),
        (("show", "onnxruntime-cpu", "thread=2"), "did you mean `threads`"),
        (("show", "onnxruntime-cpu", "latency.batch=0"), "a number of at least 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_mend(run: Run, words: tuple[str, ...], says: str) -> None:
    code, _, shown = run(*words)
    assert code == 2
    assert says in shown
