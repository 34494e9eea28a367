"""Find recipes, sweeps and targets by name: an explicit path, the working folder, the checkout, the copy in the wheel."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ruamel.yaml.error import YAMLError

from compactmtl.artifacts.files import expanded
from compactmtl.config.yaml import shown, top_level_text
from compactmtl.errors import ConfigError

Kind = Literal["recipe", "sweep", "target"]

FOLDER: dict[Kind, str] = {"recipe": "recipes", "sweep": "recipes", "target": "export"}
_LISTING: dict[Kind, str] = {
    "recipe": "compactmtl recipes list",
    "sweep": "compactmtl sweep --list",
    "target": "compactmtl targets list",
}
SWEEPS = "sweeps"  # recipes/<dataset>/sweeps/<name>.yaml is the sweep <dataset>/<name>
PACKAGE = Path(__file__).resolve().parents[1]
SUFFIXES = (".yaml", ".yml")
_AS_CLOSE = 0.12  # of the shares of letters that two names have in common with a word


@dataclass(frozen=True)
class Entry:
    """One recipe or target that can be named."""

    name: str
    path: Path
    description: str


def roots(kind: Kind) -> list[Path]:
    """The folders that are searched, first match wins; those that exist."""
    folder = FOLDER[kind]
    folders = [Path.cwd() / folder]
    if (PACKAGE.parent / "pyproject.toml").is_file():  # running from a checkout
        folders.append(PACKAGE.parent / folder)
    folders.append(PACKAGE / "_bundled" / folder)
    return [root for root in dict.fromkeys(folders) if root.is_dir()]


def names(kind: Kind) -> dict[str, Path]:
    """Every name with its file, sorted; where two folders hold a name, the one that `find` takes.

    A file whose name begins with _ is a part that others extend or lay over themselves: `find` takes it, no list shows
    it.
    """
    files: dict[str, Path] = {}
    for root in roots(kind):
        for path in root.rglob("*.yaml"):
            if not path.name.startswith("_") and (path.parent.name == SWEEPS) == (kind == "sweep"):
                files.setdefault(_below(root, path, kind), path)
    return dict(sorted(files.items()))


def entries(kind: Kind) -> list[Entry]:
    """Every recipe or target with its one-line description; a file that cannot be read says so there."""
    return [Entry(name, path, _description(path)) for name, path in names(kind).items()]


def find(kind: Kind, name: str | Path) -> Path:
    """The file of a recipe or target.

    Raises:
        ConfigError: for a path that is not a file, or a name that no folder holds; the hint has the nearest names.
    """
    path = expanded(name)
    if path.suffix in SUFFIXES or path.is_absolute():
        if not path.is_file():
            raise ConfigError(f"no {kind} file {shown(path)}", _nearest(kind, path.stem))
        return path.resolve()
    for root in roots(kind):
        folder = path.parent / SWEEPS if kind == "sweep" else path.parent
        candidate = root / folder / f"{path.name}.yaml"
        if candidate.is_file():
            return candidate
    if path.exists():
        what = "a folder" if path.is_dir() else f"a file that does not end in {SUFFIXES[0]}"
        inside = path / f"{kind}.yaml"
        mend = f"name {shown(inside)}" if inside.is_file() else f"name a {kind} file, or one that is known"
        raise ConfigError(f"{shown(path)} is {what}, and no {kind}", f"{mend}: {_nearest(kind, '')}")
    raise ConfigError(f"no {kind} named `{name}`", _nearest(kind, str(name)))


def name_of(kind: Kind, path: Path) -> str:
    """What a file is called: its path below the folder of its kind, or its stem elsewhere."""
    for root in map(Path.resolve, roots(kind)):
        if path.resolve().is_relative_to(root):
            return _below(root, path.resolve(), kind)
    return path.stem


def _below(root: Path, path: Path, kind: Kind) -> str:
    name = path.relative_to(root).with_suffix("")
    if kind == "sweep" and name.parent.name == SWEEPS:
        name = name.parent.parent / name.name
    return name.as_posix()


def close_names(word: str, known: list[str]) -> list[str]:
    """The known names that a misspelt word may have meant, best first, at most three."""
    by_end = {name.rpartition("/")[2]: name for name in known}
    inside = [name for name in known if word and (name.startswith(f"{word}/") or name.endswith(f"/{word}"))]
    near = _close(word, known, 0.6)
    near += [by_end[end] for end in _close(word, list(by_end), 0.7)]
    return list(dict.fromkeys(inside + near))[:3]


def _close(word: str, known: list[str], cutoff: float) -> list[str]:
    """The nearest names, best first; none that is clearly farther than the first: of `sise` size, and not resize too."""
    found = difflib.get_close_matches(word, known, n=3, cutoff=cutoff)
    shares = [difflib.SequenceMatcher(None, one, word).ratio() for one in found]
    return [one for one, share in zip(found, shares, strict=True) if share > shares[0] - _AS_CLOSE]


def name_hint(word: str, known: Sequence[str]) -> str:
    """A hint that says which known names a misspelt word may have meant, or all of them."""
    near = close_names(word, list(known))
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"


def _nearest(kind: Kind, word: str) -> str:
    near = close_names(word, list(names(kind)))
    listing = f"`{_LISTING[kind]}` shows all"
    return f"did you mean {' or '.join(near)}? {listing}" if near else listing


def _description(path: Path) -> str:
    try:
        return top_level_text(path, "description")
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        return f"(cannot be read: {type(error).__name__})"
