import subprocess
import sys
from pathlib import Path

import pytest

from compactmtl import errors
from tools import docs_hooks, reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def write(folder: Path, **pages: str) -> None:
    for name, text in pages.items():
        path = folder / f"{name.replace('__', '/').replace('_', '-')}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_the_reference_pages_say_what_the_code_says() -> None:
    assert reference.stale() == [], "run `make docs`"


@pytest.mark.slow
def test_a_changed_reference_page_is_out_of_date(tmp_path: Path) -> None:
    page = (DOCS / "reference" / "sweep.md").read_text(encoding="utf-8")
    for name in reference.pages():
        text = (DOCS / "reference" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "sweep.md").write_text(page.replace("seeds", "seed"), encoding="utf-8")
    (tmp_path / "cli.md").unlink()
    assert set(reference.stale(tmp_path)) == {"sweep.md", "cli.md"}


def test_every_exit_code_has_a_meaning() -> None:
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert codes == set(errors.EXIT_CODES)


def test_a_new_page_is_in_the_navigation_by_its_title(tmp_path: Path) -> None:
    write(
        tmp_path,
        index="# Start",
        how_to__export="# Export",
        how_to__deploy="text\n\n# Deploy `it`: on a device",
        how_to__ask="# Ask",
        results__zoo="# Results: zoo",
        zoo="# Zoo",
        surgery="# Surgery: exact removal",
        contributing="# Contributing",
    )
    assert docs_hooks.navigation(tmp_path) == [
        {"Start": "index.md"},
        {
            "How-to guides": [
                {"Export": "how-to/export.md"},
                {"Deploy it": "how-to/deploy.md"},
                {"Ask": "how-to/ask.md"},
            ]
        },
        {"Topics": [{"Surgery": "surgery.md"}, {"Zoo": "zoo.md"}]},
        {"Results": [{"Zoo": "results/zoo.md"}]},
        {"Contributing": "contributing.md"},
    ]


def test_every_page_is_in_the_navigation_once() -> None:
    def files(entries: list[dict[str, object]]) -> list[str]:
        values = [value for entry in entries for value in entry.values()]
        return [
            file for value in values for file in (files(value) if isinstance(value, list) else [str(value)])
        ]

    listed = files(docs_hooks.navigation(DOCS))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_links_that_leave_the_pages_become_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    docs = tmp_path / "docs"
    write(docs, page="", other="")
    (tmp_path / "tool.py").touch()
    text = "See [a tool](../tool.py), [a page](other.md#x), [the web](https://x.org) and `[code](../no)`."
    shown = docs_hooks.without_outer_links(text, docs / "page.md", docs)
    assert shown == "See a tool, [a page](other.md#x), [the web](https://x.org) and `[code](../no)`."
    assert caplog.records == []
    docs_hooks.without_outer_links("[gone](../gone.py)", docs / "page.md", docs)
    assert "leads to no file" in caplog.text


def test_broken_links_name_page_and_link(tmp_path: Path) -> None:
    write(tmp_path, one="# A first\n\n[ok](two.md#b-second) [up](#a-first)", two="## B second")
    assert docs_hooks.broken_links(tmp_path / "one.md") == []
    write(tmp_path, one="[file](three.md) [heading](two.md#c)")
    faults = docs_hooks.broken_links(tmp_path / "one.md")
    assert ["leads to no file" in fault for fault in faults] == [True, False]
    assert "two.md#c" in faults[1]


@pytest.mark.parametrize("page", docs_hooks.OUTSIDE)
def test_pages_beside_the_docs_have_no_broken_link(page: str) -> None:
    assert docs_hooks.broken_links(ROOT / page) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[gone](gone.md)", "gone.md"),
        ("[heading](#gone)", "#gone"),
        ("[tool](../gone.py)", "leads to no file"),
        ("::: compactmtl.no_such_name", "no_such_name"),
        ("text", None),
    ],
)
def test_a_strict_build_fails_on_what_leads_nowhere(tmp_path: Path, text: str, fault: str | None) -> None:
    docs = tmp_path / "docs"
    write(docs, index=f"# Start\n\n{text}\n")
    for name in docs_hooks.OUTSIDE:
        (tmp_path / name).touch()
    config = (ROOT / "tools" / "mkdocs.yml").read_text(encoding="utf-8")
    config = config.replace("../docs", str(docs)).replace("../site", str(tmp_path / "site"))
    config = config.replace("docs_hooks.py", str(ROOT / "tools" / "docs_hooks.py")).replace(
        "[..]", f"[{ROOT}]"
    )
    (tmp_path / "mkdocs.yml").write_text(config, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(tmp_path / "mkdocs.yml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (fault is None), done.stderr
    assert fault is None or fault in done.stderr


def test_the_site_asks_for_nothing_from_a_network() -> None:
    config = (ROOT / "tools" / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config
    assert "http" not in config
