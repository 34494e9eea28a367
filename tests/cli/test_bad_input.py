"""Every verb with what users really give it by mistake: exit 2 or 3, no traceback, and the thing that is wrong by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.errors import MISSING, USAGE
from tests.support.real_runs import SCENES, write_run

RUNS = ("compact", "export", "report", "probe", "profile", "predict")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a run of an awkward name, broken copies of it, and things that are no run at all."""
    place = tmp_path_factory.mktemp("työ kansio")
    run = write_run(place / "runs" / "mi receta é").path
    for name in ("no-checkpoint", "other-version", "broken-meta", "no-specs", "broken-weights"):
        shutil.copytree(run, place / "runs" / name)
    shutil.rmtree(place / "runs" / "no-checkpoint" / "checkpoints")
    (place / "runs" / "other-version" / "meta.json").write_text('{"version": 99}')
    (place / "runs" / "broken-meta" / "meta.json").write_text("{")
    meta = json.loads((run / "meta.json").read_text())
    (place / "runs" / "no-specs" / "meta.json").write_text(json.dumps(meta | {"specs": {"depth": 3}}))
    (place / "runs" / "broken-weights" / "checkpoints" / "best" / "weights.safetensors").write_bytes(b"abc")
    (place / "empty").mkdir()
    (place / "file.txt").write_text("hello")
    (place / "empty.yaml").write_text("")
    (place / "list.yaml").write_text("- a\n")
    (place / "fine.yaml").write_text(SCENES)
    for name, text in {"bundle-99": '{"version": 99}', "bundle-broken": "["}.items():
        (place / name).mkdir()
        (place / name / "bundle.json").write_text(text)
    return place


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that cannot work."""
    code = main(words)
    listed, said = capsys.readouterr()
    assert code in (USAGE, MISSING), said
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    assert len(said.splitlines()) > 1, "an error comes with its mend"
    return listed + said  # `data check` lists what is wrong in its report


@pytest.mark.parametrize("verb", RUNS)
@pytest.mark.parametrize(
    "given",
    [
        "missing",
        "file.txt",
        "empty",
        "bundle-99",
        "bundle-broken",
        *(
            f"runs/{name}"
            for name in ("no-checkpoint", "other-version", "broken-meta", "no-specs", "broken-weights")
        ),
    ],
)
def test_what_is_no_whole_run_is_named(
    verb: str, given: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert given in refused([verb, given, *(["a.png"] if verb == "predict" else [])], capsys)


TABLE = [
    ("train empty.yaml", "empty.yaml"),
    ("train list.yaml", "list.yaml"),
    ("train missing.yaml", "missing.yaml"),
    ("train empty", "empty is a folder"),
    ("train file.txt", "file.txt"),
    ("train runs/no-specs", "runs/no-specs/recipe.yaml"),
    ("train fine.yaml train.epoch=3", "train.epochs"),
    ("train fine.yaml train.epochs", "train.epochs"),
    ("train fine.yaml train.epochs=[1", "train.epochs=[1"),
    ("train fine.yaml train.device=abacus --smoke", "abacus"),
    ("train fine.yaml model.encoder.weights=w.safetensors --smoke", "w.safetensors"),
    ("train fine.yaml data.name=utkface data.options={} data.root=nowhere --smoke", "nowhere"),
    ("train fine.yaml --task sky", "segmentation, depth"),
    ("train fine.yaml --out file.txt --smoke", "file.txt"),
    ("train fine.yaml --resum", "--resume"),
    ("export RUN --target nowhere", "nowhere"),
    ("export RUN --target empty.yaml", "empty.yaml"),
    ("export RUN --target tensorrt-fp16 --baseline missing", "missing"),
    ("export RUN --baseline RUN", "the baseline is the run itself"),
    ("export RUN --prepare", "onnxruntime-cpu can run here"),
    ("export RUN data.size=[8,8]", "data.root"),
    ("export RUN RUN", "neither a run nor key=value"),
    ("compact RUN --align 0", "--align 0"),
    ("compact RUN data.rot=/x", "data.rot"),
    ("report RUN --baseline RUN", "the baseline is the only run"),
    ("probe RUN", "segmentation"),
    ("probe RUN --samples 3", "--samples 3"),
    ("probe RUN --predictors forrest", "forrest"),
    ("profile RUN --shape x=1", "no model has an input 'x'"),
    ("profile RUN --shape image=1x3x99999999999999999999", "--shape image=1x3x9"),
    ("profile \udcff.onnx", "\\udcff.onnx on the command line is not UTF-8"),
    ("probe RUN --seed -1", "--seed -1"),
    ("latency RUN --out file.txt/table.json", "file.txt"),
    ("train fine.yaml seed=99999999999999999999", "seed"),
    ("train fine.yaml train.threads=3000000000", "train.threads"),
    ("train fine.yaml train.competition=99999999999999999999", "train.competition"),
    ("profile RUN --repeats 0", "--repeats"),
    ("profile RUN RUN", "named twice"),
    ("profile missing.onnx", "missing.onnx"),
    ("profile file.txt", "file.txt"),
    ("predict RUN empty", "empty"),
    ("predict RUN missing.png", "missing.png"),
    ("predict RUN file.txt", "file.txt"),
    ("sweep", "no sweep is named"),
    ("sweep empty.yaml", "empty.yaml"),
    ("sweep utkface/overparam --only sky", "sky"),
    ("sweep utkface/overparam --seeds one", "one"),
    ("sweep utkface/overparam --list --only plain", "--list"),
    ("sweep utkface/overparam --table --dry-run", "not allowed with"),
    ("data check nowhere", "nowhere"),
    ("data check utkface root=nowhere", "nowhere"),
    ("data check utkface root=file.txt", "file.txt"),
    ("data check scenes colour=1", "colour"),
    ("data check scenes --samples 0", "--samples 0"),
    ("data chek scenes", "chek"),
    ("recipes show nowhere", "nowhere"),
    ("recipes copy utkface/dense file.txt", "file.txt"),
    ("recipes check list.yaml", "list.yaml"),
    ("targets show onnxruntime-cpu colour=1", "colour"),
    ("demo --out file.txt", "file.txt"),
    ("doctor now", "now"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "named"), TABLE)
def test_a_wrong_word_is_named_with_its_mend(
    line: str, named: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ["runs/mi receta é" if word == "RUN" else word for word in line.split()]
    assert named in refused(words, capsys)
