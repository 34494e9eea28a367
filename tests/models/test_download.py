"""Downloads that cannot come through are told in seconds, and what is cached takes no network."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from compactmtl.config.recipe import EncoderConfig
from compactmtl.errors import MISSING, MissingDependencyError
from compactmtl.models import download
from compactmtl.models.encoder import build_encoder


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_host_that_listens_is_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert download.unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/models") == ""


def test_a_host_that_does_not_listen_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "127.0.0.1 can't be reached" in download.unreachable(f"http://127.0.0.1:{port}")
    assert "names no host" in download.unreachable("")


def test_a_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def hang(*args: object, **kwargs: object) -> None:
        end.wait(30)
        raise OSError("nobody waits any more")

    monkeypatch.setattr(socket, "create_connection", hang)
    started = time.monotonic()
    assert "does not answer within 0.2 s" in download.unreachable("https://hub.invalid", seconds=0.2)
    assert time.monotonic() - started < 10  # far from the 30 s of the look-up, on a busy machine too
    end.set()


def test_where_there_is_a_proxy_it_is_the_proxy_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{server.getsockname()[1]}")
        assert download.unreachable("https://hub.invalid") == ""


def test_an_unreachable_hub_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port that discards: nobody listens
    started = time.monotonic()
    with pytest.raises(
        MissingDependencyError, match=r"could not be fetched: 127\.0\.0\.1 can't be reached"
    ) as error:
        build_encoder(EncoderConfig(name="resnet18", pretrained=True), (64, 64), dense=False)
    assert time.monotonic() - started < 10  # it took 53 s
    assert error.value.exit_code == MISSING
    assert "pretrained to false" in error.value.hint


def test_what_the_cache_has_is_taken_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "model.safetensors").touch()
    found = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: found)
    monkeypatch.setattr(
        "compactmtl.models.download.unreachable", lambda url: pytest.fail("asked the network")
    )
    offline = []

    def fetched(*args: object, **kwargs: object) -> None:
        offline.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError("enough seen")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetched)
    with pytest.raises(MissingDependencyError):
        build_encoder(EncoderConfig(name="resnet18", pretrained=True), (64, 64), dense=False)
    assert offline == [True]
    assert constants.HF_HUB_OFFLINE is False


def test_weights_behind_a_plain_address_are_looked_for_in_torchs_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = SimpleNamespace(hf_hub_id=None, url="https://files.invalid/some/net.pth")
    assert download.weights_home(source) == (source.url, False)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "net.pth").touch()
    assert download.weights_home(source) == (source.url, True)
