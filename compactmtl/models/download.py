"""Whether a download can come through, decided in seconds: the libraries that download try for a minute."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

SECONDS = 4.0  # to look up a host and to connect to it; a slow line takes less than one
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as timm names them on the hub


def unreachable(url: str, seconds: float = SECONDS) -> str:
    """Why the host of `url` cannot be connected to, in words; empty where it can.

    Where the environment names a proxy for it, the proxy is what is tried.
    """
    parts = urlsplit(_through(url))
    host, port = parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
    if not host:
        return f"{url} names no host"
    answer: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            answer.append("")
        except OSError as error:
            answer.append(f"{host} can't be reached: {error.strerror or error}")

    # In a thread: looking a name up knows no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"{host} does not answer within {seconds:g} s"


def _through(url: str) -> str:
    """The URL that is connected to: the proxy's where the environment names one for `url`."""
    split = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(split.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(split.hostname or ""):
        return url
    return proxy if "://" in proxy else f"http://{proxy}"


def weights_home(source: Any) -> tuple[str, bool]:
    """Where timm fetches the weights of a pretrained configuration, as a URL, and whether this machine has them."""
    repository = getattr(source, "hf_hub_id", None)
    if repository:
        from huggingface_hub import constants, try_to_load_from_cache

        names = [name for name in (getattr(source, "hf_hub_filename", None), *WEIGHTS) if name]
        cached = any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
        return constants.ENDPOINT, cached
    url = getattr(source, "url", None) or ""
    name = Path(urlsplit(url).path).name
    return url, bool(name) and (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file()


def told_offline() -> bool:
    """Whether the environment forbids the hub: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def from_cache() -> Iterator[None]:
    """Let the hub's library take what it has without asking the network whether there is something newer."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
