"""What only TensorRT has beside TensorRT for RTX, through the real classes of the latter: timing cache, later versions.

TensorRT for RTX takes the calls. Its timing cache holds no times, and an engine for later versions is one as any other here;
that the calls are those which the builder takes, in their order, is what this shows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compactmtl.backends import get_backend
from compactmtl.backends.tensorrt import timing_cache
from compactmtl.backends.tensorrt.api import TensorRT, log_of
from compactmtl.backends.tensorrt.backend import EngineBackend
from compactmtl.backends.tensorrt.build import Built, build_engine
from compactmtl.backends.tensorrt.parse import EngineBuildError
from compactmtl.config.target import Target
from tests.support.rtx import rtx, target, write_product

# What the bindings of 1.7 say of a timing cache in words.
pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops.*:DeprecationWarning")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_product(tmp_path / "m.onnx", "convolution", "fp16")


def build(model: Path, cache: Path | None = None, **options: Any) -> Built:
    """By TensorRT's own configuration, in the builder of TensorRT for RTX."""
    backend = get_backend("tensorrt")
    assert isinstance(backend, EngineBackend)
    own = rtx().job(target("fp16", 8.9), None)
    asked = backend.job(Target(backend="tensorrt", precision="fp16").with_own({"tensorrt": options}), None)

    def configure(api: TensorRT, config: Any) -> None:
        own.configure(api, config)
        asked.configure(api, config)

    job = replace(own, configure=configure, timing_cache=cache, version_compatible=asked.version_compatible)
    return build_engine(model, job, None)


def test_an_engine_for_later_versions_carries_no_library(model: Path) -> None:
    """It would be code that runs on the host; without the flag that leaves it out the builder asks for it."""
    built = build(model, version_compatible=True)
    assert built.facts.version_compatible and len(built.data) > 10_000
    own = rtx().job(target("fp16", 8.9), None)

    def with_library(api: TensorRT, config: Any) -> None:
        own.configure(api, config)
        config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)

    with pytest.raises(EngineBuildError, match="libnvinfer_lean"):
        build_engine(model, replace(own, configure=with_library), None)


def test_a_timing_cache_is_made_stored_and_taken_again(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "it.timing"
    first = build(model, file)
    stored = file.read_bytes()
    assert stored
    second = build(model, file)
    assert file.read_bytes() == stored
    assert len(first.data) == len(second.data)
    assert [one.name for one in file.parent.iterdir()] == [file.name]  # nothing half written is left


def test_a_timing_cache_that_is_none_is_replaced(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "it.timing"
    file.write_bytes(b"of elsewhere")
    assert build(model, file).data
    assert file.read_bytes() != b"of elsewhere"


def test_what_the_builder_says_of_a_cache_from_elsewhere_is_heard(tmp_path: Path) -> None:
    api = rtx().library.load()
    log = log_of(api)
    file = tmp_path / "it.timing"
    file.write_bytes(b"of elsewhere")
    with log.listen() as said:
        config = api.Builder(log.logger).create_builder_config()
        assert timing_cache.attach(config, file, said) is not None
    assert any("timing cache" in line for line in said)


@pytest.mark.parametrize("hardware", ["exact", "ampere_plus", "same_compute_capability"])
def test_each_level_of_hardware_is_one_of_the_builders(model: Path, hardware: str) -> None:
    assert build(model, hardware=hardware).data
