"""Hooks of `make docs`: the navigation comes from folders and titles, and links that leave docs/ are checked.

A page that is added under docs/ appears in the navigation without an edit, under the short form of its first heading.
Pages directly in docs/ that are not in TOP stand together under Topics. Links to files of the repository outside docs/
work where the repository is read; the site shows their text alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.plugins.compactmtl")  # a warning below mkdocs.* fails a strict build

TOP = ("index", "tutorial", "how-to", "topics", "reference", "results", "architecture", "contributing")
# What comes first within a group, by name without ending; other pages follow in the order of their titles.
ORDER = (
    "index", "own-data", "own-model", "recipes", "recipe", "target", "datasets", "tasks", "runs",
    "sparsify", "sparsity", "overparameterize", "overparam", "balance", "balancing", "surgery", "sweep",
    "export", "deploy", "deployment", "tensorrt", "cli", "python", "lists", "files", "data",
)  # fmt: skip
TITLES = {"how-to": "How-to guides", "topics": "Topics", "reference": "Reference", "results": "Results"}
STYLE = "assets/style.css"
OUTSIDE = ("README.md", "CHANGELOG.md")  # pages beside docs/ whose links are checked too

_LINK = re.compile(r"(?<!!)\[([^\]\n]*(?:\n[^\]\n]+)?)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_CODE = re.compile(r"^(```|~~~).*?^\1\s*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.*?) *(?:\{[^}]*#([\w.-]+)[^}]*\})?$", re.MULTILINE)
_ANCHOR = re.compile(r"<a [^>]*(?:id|name)=\"([^\"]+)\"")


def on_config(config: Any) -> Any:
    """Give mkdocs the navigation."""
    config["nav"] = navigation(Path(config["docs_dir"]))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the style sheet, which lies beside this file: docs/ holds pages alone."""
    style = (Path(__file__).parent / "docs.css").read_text(encoding="utf-8")
    files.append(File.generated(config, STYLE, content=style))
    return files


def on_pre_build(config: Any) -> None:
    """Warn of links in pages beside docs/ that lead nowhere."""
    root = Path(config["docs_dir"]).parent
    for name in OUTSIDE:
        for fault in broken_links(root / name):
            log.warning(fault)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Show links that leave docs/ as text; warn of those that lead nowhere."""
    docs = Path(config["docs_dir"])
    return without_outer_links(markdown, Path(page.file.abs_src_path), docs)


def navigation(docs: Path) -> list[dict[str, Any]]:
    """The navigation: the pages and folders of TOP, and the other pages of `docs` as one group."""
    entries: dict[str, dict[str, Any]] = {}
    topics = []
    for path in docs.iterdir():
        if path.is_dir() and any(path.rglob("*.md")):
            name = TITLES.get(path.name, path.name.replace("-", " ").capitalize())
            entries[path.name] = {name: _pages(docs, path.rglob("*.md"), name)}
        elif path.suffix == ".md" and path.stem in TOP:
            entries[path.stem] = {label(path): path.name}
        elif path.suffix == ".md":
            topics.append(path)
    if topics:
        entries["topics"] = {TITLES["topics"]: _pages(docs, topics)}
    ranks = {name: rank for rank, name in enumerate(TOP)}
    return [entries[name] for name in sorted(entries, key=lambda name: (ranks.get(name, len(TOP)), name))]


def _pages(docs: Path, paths: Iterable[Path], group: str = "") -> list[dict[str, Any]]:
    labels = {path: label(path, group) for path in paths}
    ranks = {name: rank for rank, name in enumerate(ORDER)}
    ordered = sorted(labels, key=lambda path: (ranks.get(path.stem, len(ORDER)), labels[path].lower()))
    return [{labels[path]: path.relative_to(docs).as_posix()} for path in ordered]


def label(page: Path, group: str = "") -> str:
    """A page's title without the group's name before a colon, or else without what follows a colon."""
    first, _, rest = title(page).partition(": ")
    return rest[:1].upper() + rest[1:] if rest and first == group else first


def title(page: Path) -> str:
    """The text of a page's first heading; its file name where it has none."""
    heading = re.search(r"^# +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return heading[1].replace("`", "").strip() if heading else page.stem.capitalize()


def without_outer_links(markdown: str, page: Path, docs: Path) -> str:
    """A page's Markdown in which links to files outside `docs` are text. Warns of files that are missing."""
    pieces: list[str] = []
    end = 0
    for match, path in _local_links(markdown, page):
        if path.is_relative_to(docs.resolve()):
            continue
        if not path.exists():
            log.warning(f"{page}: the link {match[0]} leads to no file")
        pieces += [markdown[end : match.start()], match[1]]
        end = match.end()
    return "".join([*pieces, markdown[end:]])


def broken_links(page: Path) -> list[str]:
    """The local links of a Markdown page that lead to no file or to no heading."""
    markdown = page.read_text(encoding="utf-8")
    faults = []
    for match, path in _local_links(markdown, page):
        anchor = (match[3] or "#")[1:]
        if not path.exists():
            faults.append(f"{page}: the link {match[0]} leads to no file")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            faults.append(f"{page}: the link {match[0]} leads to no heading")
    return faults


def anchors(page: Path) -> set[str]:
    """What a link to a Markdown page may name behind #: the slugs of its headings and its explicit anchors."""
    markdown = page.read_text(encoding="utf-8")
    text = _CODE.sub(lambda match: match[0] if "\n" not in match[0] else "", markdown)
    slugs = {match[2] or _slug(match[1]) for match in _HEADING.finditer(text)}
    return slugs | set(_ANCHOR.findall(markdown))


def _slug(heading: str) -> str:
    """As the toc extension of Markdown makes it."""
    words = re.sub(r"[^\w\s-]", "", heading.encode("ascii", "ignore").decode()).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


def _local_links(markdown: str, page: Path) -> Iterator[tuple[re.Match[str], Path]]:
    """Every link to a file, outside of code, with the file; a link to a heading of the page itself included."""
    code = [match.span() for match in _CODE.finditer(markdown)]
    for match in _LINK.finditer(markdown):
        inside = any(start <= match.start() < end for start, end in code)
        if inside or re.match(r"[a-z]+:", match[2]):
            continue
        yield match, (page.parent / match[2]).resolve() if match[2] else page.resolve()
