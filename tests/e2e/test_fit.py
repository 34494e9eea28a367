"""docs/how-to/fit.md: the page's own network goes through `fit` to a bundle that needs no code of the user's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from compactmtl.cli.main import main
from compactmtl.config.target import Target
from compactmtl.errors import GATE, OK, USAGE
from compactmtl.graph import ChannelGraph
from compactmtl.latency.measure import conditions_of
from compactmtl.sparsity import LatencyTable
from compactmtl.sparsity.layer_latency import Regime, StaircaseLatency
from tests.support.layouts.folder import write_folder

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "fit.md"
RUN = Path("runs/rooms/onnxruntime-cpu-1.5x")
BUNDLE = RUN / "export/onnxruntime-cpu"
# Short: the road is under test, not the network.
SHORT = ["train.epochs=3", "data.batch_size=4", "train.threads=1"]


def table_by_macs(model: nn.Module, inputs: Any, target: Target, name: str, **options: Any) -> LatencyTable:
    """A table in which a layer takes as long as it has weights."""
    graph = ChannelGraph.trace(model, inputs)
    widths = graph.widths(np.ones(graph.classes, dtype=bool))
    here = conditions_of(target, len(inputs[0]))
    regime = Regime(step=16, both=1e-5)
    return LatencyTable(
        version=3,
        target=name,
        device=str(here["device"]),
        backend=target.backend,
        runtime=str(here["runtime"]),
        precision=target.precision,
        image=tuple(inputs[0].shape[1:]),
        tasks=("segmentation", "depth"),
        layers={
            layer: StaircaseLatency(full=full, align=16, aligned=regime, ragged=regime)
            for layer, full in widths.items()
        },
    )


def blocks(language: str) -> list[str]:
    """The page's fenced blocks of a language."""
    return re.findall(
        rf"^```{language}[^\n]*\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.slow
def test_the_example_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Measuring is tested elsewhere, on networks that are timed alone: on a busy machine a table comes out as noise.
    monkeypatch.setattr("compactmtl.loops.controls.latency_table", table_by_macs)
    monkeypatch.setattr("compactmtl.loops.controls.calibrated", lambda table, *args, **options: table)
    (module,) = blocks("python")
    Path("rooms.py").write_text(module)
    write_folder(Path("rooms"), count=24, size=(64, 64))
    fit, predict = blocks("sh")[-1].strip().splitlines()
    assert fit.startswith("compactmtl fit rooms:Rooms ")
    path = list(sys.path)
    try:
        # On a busy machine the measured latency may miss the budget: that is its own exit code, with all files there.
        code = main([*fit.split()[1:], *SHORT])
        told = capsys.readouterr()
        assert code in (OK, GATE), told.err
        for line in ("budget", "segmentation", "depth", "gates", "bundle", "report"):
            assert re.search(rf"^  {line} ", told.out, re.MULTILINE)
        assert "rooms:Rooms for onnxruntime-cpu" in told.out
        verification = json.loads((BUNDLE / "verification.json").read_text())
        assert verification["parity"]["passed"]
        assert set(verification["accuracy"]["baseline"]) == {"segmentation", "depth"}
        (speedup,) = [gate for gate in verification["gates"] if gate["gate"] == "latency"]
        assert speedup["bound"] == 1.5 and speedup["against"] == "dense"
        surgery = json.loads((RUN / "compact/surgery.json").read_text())
        assert surgery["macs"]["after"] < surgery["macs"]["before"]
        assert any(layer["name"].startswith("network.decoder") for layer in surgery["layers"])
        # What reads the run imports the module, and asks for the user's word.
        assert main(["report", str(RUN)]) == USAGE
        assert "rooms:Rooms is code" in capsys.readouterr().err
        assert main(["report", str(RUN), "--trust"]) == OK
    finally:
        sys.path[:] = path
        sys.modules.pop("rooms", None)
    Path("rooms.py").unlink()
    Image.new("RGB", (80, 60), (90, 120, 30)).save("photo.png")
    capsys.readouterr()
    assert main(predict.split()[1:]) == OK
    assert "segmentation" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, str(BUNDLE / "infer.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
