from pathlib import Path

import pytest

from compactmtl.config import lookup, resolve_recipe
from compactmtl.errors import ConfigError


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, a checkout and a wheel's bundled copy, each with recipes of its own."""
    for place, names in {
        "work": ["mine"],
        "checkout": ["scenes/dense", "mine"],
        "checkout/compactmtl/_bundled": ["scenes/dense", "scenes/compact", "demo"],
    }.items():
        for name in names:
            path = tmp_path / place / "recipes" / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"description: {name} of {place}\nseed: [\n", "utf-8")
    (tmp_path / "checkout" / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(lookup, "PACKAGE", tmp_path / "checkout" / "compactmtl")
    return tmp_path


def test_the_working_folder_goes_before_the_checkout_and_that_before_the_wheel(folders: Path) -> None:
    assert lookup.find("recipe", "mine") == folders / "work/recipes/mine.yaml"
    assert lookup.find("recipe", "scenes/dense") == folders / "checkout/recipes/scenes/dense.yaml"
    assert lookup.find("recipe", "demo") == folders / "checkout/compactmtl/_bundled/recipes/demo.yaml"


def test_an_installed_package_has_no_checkout(folders: Path) -> None:
    (folders / "checkout" / "pyproject.toml").unlink()
    assert "_bundled" in str(lookup.find("recipe", "scenes/dense"))


def test_the_list_has_each_name_once_as_find_takes_it(folders: Path) -> None:
    found = {entry.name: entry for entry in lookup.entries("recipe")}
    assert list(found) == ["demo", "mine", "scenes/compact", "scenes/dense"]
    assert all(lookup.find("recipe", name) == entry.path for name, entry in found.items())
    assert found["mine"].description == "mine of work"


def test_a_part_for_others_is_found_and_not_listed(folders: Path) -> None:
    part = Path.cwd() / "recipes" / "_part.yaml"
    part.parent.mkdir(exist_ok=True)
    part.write_text("seed: 1\n")
    assert lookup.find("recipe", "_part") == part
    assert "_part" not in lookup.names("recipe")


def test_a_file_that_cannot_be_read_is_listed_as_such(folders: Path) -> None:
    (folders / "work/recipes/broken.yaml").write_bytes(b"\xff\xff")
    found = {entry.name: entry.description for entry in lookup.entries("recipe")}
    assert "cannot be read" in found["broken"]


def test_an_explicit_path_is_itself(folders: Path) -> None:
    assert lookup.find("recipe", "recipes/mine.yaml") == folders / "work/recipes/mine.yaml"
    assert lookup.find("recipe", folders / "work/recipes/mine.yaml") == folders / "work/recipes/mine.yaml"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("demmo", "did you mean demo"),
        ("scenes/dens", "did you mean scenes/dense"),
        ("dense", "did you mean scenes/dense"),
        ("scenes", "did you mean scenes/compact or scenes/dense"),
        ("dence", "scenes/dense"),
        ("zzz", "recipes list"),
        ("gone.yaml", "recipes list"),
        ("", "recipes list"),
        ("../../etc", "recipes list"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(folders: Path, word: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        lookup.find("recipe", word)
    assert hint in error.value.hint


def test_a_file_is_named_by_its_path_below_its_root(folders: Path) -> None:
    assert lookup.name_of("recipe", folders / "checkout/recipes/scenes/dense.yaml") == "scenes/dense"
    assert lookup.name_of("recipe", folders / "elsewhere" / "my.yaml") == "my"


def test_a_name_that_is_clearly_farther_is_no_guess() -> None:
    assert lookup.close_names("sise", ["size", "resize", "share"]) == ["size"]
    assert lookup.close_names("bat", ["bar", "baz", "bazaar"]) == ["baz", "bar"]  # both as close


def test_a_recipe_that_extends_one_at_a_home_of_nobody_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("extends: ~no-such-user-here/base.yaml\n")
    with pytest.raises(ConfigError, match="~no-such-user-here"):
        resolve_recipe(str(path))
    with pytest.raises(ConfigError, match="~no-such-user-here"):
        resolve_recipe("scenes/compact", ["data.root=~no-such-user-here/data"])
