"""Which installed packages fit each other and the driver, by the libraries of NVIDIA's that they need. Loads none."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator

from compactmtl.backends.base import Link

CUDA = "CUDA"


def package_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def clashes(links: Iterable[Link], driver: str | None) -> Iterator[str]:
    """What does not fit, in words. `driver`: the newest CUDA that the driver takes; None without one.

    A process should hold one major of TensorRT: ONNX Runtime's provider links one and can't use another. CUDA's own
    runtime may be there in several majors, and a driver takes all that are not newer than itself.
    """
    every = list(links)
    for library in sorted({one.library for one in every} - {CUDA}):
        own = [one for one in every if one.library == library]
        if len({one.major for one in own}) > 1:
            named = "; ".join(f"{one.package} needs {library} {one.version}" for one in own)
            yield f"{named}: use one of them in an environment of its own, they clash in one process"
    for one in every:
        if one.library == CUDA and driver is not None and _release(one.version) > _release(driver):
            yield f"{one.package} needs CUDA {one.version}, the driver takes {driver}: update the driver"


def _release(version: str) -> tuple[int, ...]:
    """Only the major counts where that is all that is known: CUDA keeps to one ABI within it."""
    return (int(version.split(".")[0]),)


def told(links: Iterable[Link]) -> Iterator[str]:
    """What each package needs, one line a package."""
    packages: dict[str, list[Link]] = {}
    for one in links:
        packages.setdefault(one.package, []).append(one)
    for package, own in packages.items():
        # A package of a library need not be said to need itself.
        needs = [f"{one.library} {one.version}" for one in own if not package.endswith(f" {one.version}")]
        yield f"{package}: {', '.join(needs) or own[0].library}"
