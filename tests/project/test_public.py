import subprocess
import sys

import pytest

import compactmtl


def loaded_by(code: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(shown.split())


@pytest.mark.parametrize(
    "code", ["import compactmtl", "import compactmtl.config", "import compactmtl.cli.main"]
)
def test_importing_the_light_packages_loads_nothing_heavy(code: str) -> None:
    assert not loaded_by(code) & {"torch", "timm", "onnx", "onnxruntime", "numpy", "pydantic", "matplotlib"}


@pytest.mark.slow
def test_loading_a_recipe_loads_no_torch() -> None:
    assert not loaded_by("from compactmtl.config import list_recipes; list_recipes()") & {
        "torch",
        "timm",
        "onnx",
    }


@pytest.mark.parametrize("name", [name for name in compactmtl.__all__ if name != "__version__"])
def test_every_public_name_is_what_its_room_exports(name: str) -> None:
    assert callable(getattr(compactmtl, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "no_such_name"
    with pytest.raises(AttributeError, match=name):
        getattr(compactmtl, name)
