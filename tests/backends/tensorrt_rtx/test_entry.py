"""TensorRT for RTX on a machine without a GPU: engines built by NVIDIA's own builder, and what is refused."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from compactmtl.backends.tensorrt import watch
from compactmtl.backends.tensorrt.api import log_of
from compactmtl.backends.tensorrt.build import build_engine
from compactmtl.backends.tensorrt.engine import EngineGpuError, Here, check_facts, engine_path, read_engine
from compactmtl.backends.tensorrt.parse import EngineBuildError
from compactmtl.errors import MISSING, ConfigError, MissingDependencyError
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx
from tests.support.rtx import build, rtx, target, write_product
from tools.check_tensorrt_api import RTX, STUB, dump, faults, used_names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model.onnx", TwoHeads().eval())


def test_the_stub_and_so_the_fake_name_nothing_that_the_real_classes_lack() -> None:
    rtx()
    used = [one for one in used_names(STUB.read_text(encoding="utf-8")) if one.is_in(RTX, "1.7")]
    assert len(used) > 130
    assert faults(used, dump(None, [one.path for one in used], RTX)["names"]) == []


def test_an_engine_is_built_ahead_with_its_facts(model: Path) -> None:
    chosen = target("fp32", 8.0, 12.0, max_batch=4)
    ahead = rtx().build_ahead(model, chosen)
    assert ahead is not None
    assert [file.name for file in ahead.files] == ["model.engine", "model.engine.json"]
    for words in ("compute capability 8.0, 12.0", " MB, built in ", "2 of 2 convolutions"):
        assert words in ahead.summary
    data, facts = read_engine(engine_path(model))
    assert len(data) > 1000
    assert facts.compute == ("8.0", "12.0") and facts.gpu == "" and facts.build_seconds > 0
    assert facts.profile["image"].max == (4, WIDTH)
    assert facts.types == "not seen: no GPU loaded the engine"


def test_an_engine_runs_on_the_listed_capabilities_alone(model: Path) -> None:
    rtx().build_ahead(model, target("fp32", 8.0, 12.0))
    _, facts = read_engine(engine_path(model))

    def check(capability: str) -> None:
        check_facts(
            facts,
            engine_path(model),
            Here(facts.tensorrt, "some GPU", capability),
            onnx_sha256=facts.onnx_sha256,
            settings_sha256=rtx().settings_sha256(target("fp32", 8.0, 12.0)),
        )

    check("12.0")
    with pytest.raises(
        EngineGpuError, match=r"built for compute capability 8\.0, 12\.0; this is some GPU \(8\.9\)"
    ):
        check("8.9")


def test_without_a_gpu_it_says_what_is_missing_and_what_can_be_done(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "compactmtl.backends.tensorrt.backend.cuda_device", lambda: (None, "no NVIDIA driver: gone")
    )
    found = rtx().availability(target())
    assert "no NVIDIA driver" in found.reason and "--prepare` builds the engine here" in found.hint
    with pytest.raises(MissingDependencyError) as caught:
        rtx().open(model, target())
    assert caught.value.exit_code == MISSING


def test_without_the_package_nothing_is_built_ahead(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in rtx().library.modules:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert rtx().build_ahead(model, target()) is None
    assert "tensorrt_rtx is not installed" in rtx().availability(target()).reason
    with pytest.raises(MissingDependencyError, match="can't build here"):
        rtx().build_here(model, target())


def test_a_later_build_hears_its_own_errors(model: Path, tmp_path: Path) -> None:
    """TensorRT ignores a second logger while anything of the first lives: here, a runtime that is kept."""
    api = rtx().library.load()
    with log_of(api).listen() as said:
        runtime = api.Runtime(log_of(api).logger)
        other = write_product(tmp_path / "other.onnx", "convolution", "fp16")
        with pytest.raises(EngineBuildError, match="within workspace limit"):
            build(other, target("fp16", workspace_mib=1))
    assert any("workspace limit" in line for line in said)
    assert not any("logger" in line for line in said)
    del runtime


def test_an_interrupt_stops_the_real_builder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    step = watch.Watch.step

    def interrupted(self: watch.Watch, phase: str, number: int) -> bool:
        steps.append(phase)
        if len(steps) == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, phase, number)

    monkeypatch.setattr(watch.Watch, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(model, target())
    stopped = len(steps)
    monkeypatch.setattr(watch.Watch, "step", step)
    assert build(model, target()).data
    monkeypatch.setattr(watch.Watch, "step", lambda self, *a: steps.append("all") or step(self, *a))  # type: ignore[func-returns-value]
    build(model, target())
    assert stopped < steps.count("all")


def test_the_builder_reports_its_phases(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[tuple[str, int]] = []
    start = watch.Watch.start

    def noted(self: watch.Watch, phase: str, parent: str | None, steps: int) -> None:
        phases.append((phase, steps))
        start(self, phase, parent, steps)

    monkeypatch.setattr(watch.Watch, "start", noted)
    facts = build(model, target()).facts
    assert phases[0][0] == "Building engine" and all(steps > 0 for _, steps in phases)
    assert facts.build_peak_mib is None or facts.build_peak_mib > 0


def test_the_bar_shows_the_builders_phases(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        watch, "Console", lambda **options: Console(file=screen, force_terminal=True, width=100)
    )
    build(model, target())
    assert "Building engine" in screen.getvalue()


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process's peak"
)
def test_the_peak_is_what_was_held_beyond_before_and_nothing_is_told_where_nothing_was() -> None:
    """In a process of its own: a long one gives memory back meanwhile, or has some at hand."""
    code = """
import numpy as np
from compactmtl.backends.tensorrt.watch import watching
with watching() as held:
    block = np.ones(512 * 2**20, np.uint8)
del block
with watching() as idle:
    pass
print(held.peak_mib, idle.peak_mib or 0)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    held, idle = map(float, said.split())
    assert 400 < held < 700
    assert 0 <= idle < 100


@pytest.mark.parametrize(
    "options",
    [
        {"optimization_level": 0},
        {"optimization_level": 5},
        {"workspace_mib": 1024},
        {"aux_streams": 0},
        {"tf32": True},
        {"max_batch": 64},
    ],
    ids=str,
)
def test_the_builder_takes_every_setting(model: Path, options: dict[str, object]) -> None:
    assert build(model, target("fp32", 8.9, **options)).data


def test_weights_can_be_made_exchangeable_only_on_a_gpu(model: Path) -> None:
    """The builder's own words for it are those of a compiler that finds no driver."""
    with pytest.raises(ConfigError, match=r"tensorrt_rtx\.refit: .* only on a GPU"):
        build(model, target(refit=True))
    job = rtx().job(target(refit=True), None)
    with pytest.raises(EngineBuildError) as caught:
        build_engine(model, type(job)(**{**vars(job), "check": lambda layers, model: None}), None)
    assert "NVIDIA GPU" in caught.value.hint


def test_one_engine_of_several_capabilities_is_as_large_as_one(model: Path) -> None:
    """As for 8.9 alone but for a few bytes: its kernels are compiled on the GPU's machine."""
    one, two = build(model, target("fp32", 8.9)), build(model, target("fp32", 8.9, 12.0))
    assert abs(len(one.data) - len(two.data)) < 0.05 * len(one.data)


@pytest.mark.parametrize("compute", [[], [8.9, 8.9], [8.95], ["sm89"], [0.5]], ids=str)
def test_capabilities_that_are_none_are_refused_with_their_key(compute: list[object]) -> None:
    wrong = target().with_own({"tensorrt_rtx": {"compute": compute}})
    with pytest.raises(ConfigError, match=r"tensorrt_rtx\.compute"):
        rtx().config(wrong)
