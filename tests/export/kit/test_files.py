"""Files of a kit in its bundle: their names, and the hashes beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.artifacts.files import sha256_file
from compactmtl.errors import ArtifactError
from compactmtl.export.kit.files import device_slug, find_manifest, keep_manifest
from compactmtl.export.kit.on_device import MANIFEST
from tests.support.kits import write_numpy_kit


def test_a_kits_manifest_is_found_by_its_hash_alone(tmp_path: Path) -> None:
    content = (write_numpy_kit(tmp_path / "kit") / MANIFEST).read_bytes()
    bundle = tmp_path / "export" / "small"
    bundle.mkdir(parents=True)
    keep_manifest(bundle, content)
    (kept,) = (bundle / "devices").glob("kit-*.json")
    found = find_manifest(tmp_path / "export", sha256_file(kept))
    assert found is not None
    assert (found[0], found[1].subject) == (bundle, "compact")
    assert find_manifest(tmp_path / "export", "1" * 64) is None


def test_a_manifest_that_was_exchanged_is_not_the_kits(tmp_path: Path) -> None:
    content = (write_numpy_kit(tmp_path / "kit") / MANIFEST).read_bytes()
    bundle = tmp_path / "export" / "small"
    bundle.mkdir(parents=True)
    keep_manifest(bundle, content)
    (kept,) = (bundle / "devices").glob("kit-*.json")
    name = sha256_file(kept)
    kept.write_bytes(content.replace(b"compact", b"dense12"))
    assert find_manifest(tmp_path / "export", name) is None
    with pytest.raises(ArtifactError, match="damaged or was exchanged"):
        keep_manifest(bundle, content + b" ")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA Jetson Orin Nano", "nvidia-jetson-orin-nano"),
        ("Intel(R) Core(TM) i7", "intel-r-core-tm-i7"),
        ("kit-1", "device-kit-1"),
        ("hashes", "device-hashes"),
        ("../../etc", "etc"),
        ("主板", "device"),
    ],
)
def test_a_devices_name_is_a_plain_file_name(name: str, slug: str) -> None:
    assert device_slug(name) == slug
