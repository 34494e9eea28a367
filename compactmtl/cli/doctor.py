"""`compactmtl doctor`: what this machine can run, and what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

HELP = "show which backends can run on this machine, and what is missing"
EXAMPLE = "compactmtl doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the report; 3 where a core package is missing."""
    from compactmtl.backends.versions import CORE, package_versions
    from compactmtl.errors import MISSING, OK

    for line in (*_packages(), "", *_machine(), "", *_backends(), "", *_fit(), "", *_folders()):
        print(line)
    missing = [name for name in CORE if name not in package_versions()]
    return MISSING if missing else OK


def _packages() -> Iterator[str]:
    from compactmtl.backends.versions import CORE, package_versions

    versions = package_versions()
    yield "packages"
    for name, version in versions.items():
        yield f"  {name:<16} {version}"
    for name in CORE:
        if name not in versions:
            yield f"  {name:<16} missing: pip install compactmtl"


def _import_failure(name: str) -> str:
    """Why a package can't be imported, in one line; empty where it can."""
    import importlib

    try:
        importlib.import_module(name)
    except Exception as error:  # a broken binary raises anything, and the doctor must go on
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    return ""


def _machine() -> Iterator[str]:
    from compactmtl.backends.machine import cpu_count, cpu_flags, cpu_name, nvidia_gpus

    yield "machine"
    yield f"  processor        {cpu_name()}, {cpu_count()} usable"
    flags = cpu_flags()
    yield f"  instructions     {', '.join(flags) or 'unknown'}"
    int8 = [flag for flag in flags if flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")]
    yield f"  int8             {'fast (' + ', '.join(int8) + ')' if int8 else 'no dot-product instructions'}"
    gpus, reason = nvidia_gpus()
    yield from (f"  GPU              {gpu}" for gpu in gpus)
    if not gpus:
        yield f"  GPU              none: {reason}"


def _backends() -> Iterator[str]:
    from compactmtl.backends import all_backends

    yield "backends"
    for backend in sorted(
        all_backends(), key=lambda one: one.opens_files
    ):  # what others are checked against first
        for label, target in backend.cases():
            found = backend.availability(target)
            yield f"  {label:<44} {'yes' if found.available else f'no: {found.reason}'}"
            if found.hint:
                yield f"  {'':<44} to fix it: {found.hint}"


def _fit() -> Iterator[str]:
    from compactmtl.backends import all_backends
    from compactmtl.backends.driver import cuda_device
    from compactmtl.backends.fit import clashes, told

    yield "NVIDIA libraries"
    links = [link for backend in all_backends() for link in backend.links()]
    device, reason = cuda_device()
    yield f"  driver: {f'CUDA {device.driver}' if device is not None else f'none ({reason})'}"
    yield from (f"  {line}" for line in told(links))
    found = list(clashes(links, None if device is None else device.driver))
    yield from (f"  do not fit: {line}" for line in found)
    if not found:
        yield "  these fit each other" if links else "  no package needs one"


def _folders() -> Iterator[str]:
    yield "folders"
    if failure := _import_failure("compactmtl.data.cache"):
        yield f"  cache            unknown: {failure}"
        return
    from compactmtl.cli.disk import check_writable
    from compactmtl.data.cache import user_cache

    folder = user_cache()
    failure = ""
    try:
        check_writable(folder)
    except OSError as error:
        failure = f"{error.filename}: {error.strerror}"
    writable = f"not writable: {failure}; set XDG_CACHE_HOME to another folder" if failure else "writable"
    yield f"  cache            {folder} ({writable})"
