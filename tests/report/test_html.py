"""The page: complete, offline, escaped, and fit for a phone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from compactmtl.report import Report, collect, write_collected
from compactmtl.train import Run
from tests.support.synthetic_runs import FACE_TASKS, SyntheticRun, TinySplits, make_recipe, scaled, write_pair

MakeRun = Callable[..., SyntheticRun]
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


def write(
    runs: list[SyntheticRun], baseline: SyntheticRun | None, out: Path, *, missing: bool = False
) -> str:
    report, samples = collect(cast(list[Run], runs), cast(Run | None, baseline), TinySplits(missing))
    return write_collected(report, samples, out).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a pair of runs that went down the whole road; drawing it takes a second."""
    folder = tmp_path_factory.mktemp("report")
    dense, compact = write_pair(folder / "runs")
    write([compact], dense, folder / "out")
    return folder / "out"


class Page(HTMLParser):
    """Elements, attributes and text of a page; complains about tags that don't match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_whole_and_offline(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    assert page.attributes("html")[0]["lang"] == "en"
    images = page.attributes("img")
    assert len(images) == 6 * (1 + 3 * 3)  # six samples: the input, and target, dense, compact of three tasks
    assert all(one["src"] and one["src"].startswith("data:image/png;base64,") for one in images)
    assert all(one["alt"] for one in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, (tag, value)


def test_ids_are_unique_and_figures_are_told_in_words(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    figures = [attributes for attributes in page.attributes("div") if attributes.get("role") == "img"]
    assert (
        len(figures) == len(page.attributes("svg")) == 3 + 3 + 4 + 1
    )  # curves of both; layers, sparsity, latency, λ; speed against accuracy
    assert all(attributes["aria-label"] for attributes in figures)


def test_what_was_not_run_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    page = Page(write([make_run("one")], None, tmp_path / "out", missing=True))
    assert page.text.count("not run") >= 4  # gates, pictures, export, surgery
    assert "No pictures: there is no folder nowhere" in page.text


def test_figures_at_the_top_are_of_one_run_alone(make_run: MakeRun, tmp_path: Path) -> None:
    one = write([make_run("a")], None, tmp_path / "one")
    several = write([make_run("b"), make_run("c")], None, tmp_path / "two")
    assert '<dl class="headlines">' in one and '<dl class="headlines">' not in several


def test_a_failed_gate_is_seen_first(make_run: MakeRun, tmp_path: Path) -> None:
    page = Page(write([make_run("one", compacted=True, exported=True, passed=False)], None, tmp_path / "out"))
    assert "1 of 14 gates failed" in page.text
    assert page.text.index("gates of the export to onnxruntime-cpu") < page.text.index("MACs")
    assert "not as much faster as asked" in page.text


def test_everything_a_user_wrote_is_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    run = make_run("one", make_recipe(description=evil, data={"name": evil, "size": (48, 64)}))
    html = write([run], None, tmp_path / "out")
    assert evil not in html
    assert evil in Page(html).text


def test_report_json_is_the_model_without_pictures(written: Path) -> None:
    text = (written / "report.json").read_text()
    assert "base64" not in text
    assert [run.name for run in Report.model_validate_json(text).runs] == ["dense", "compact"]


def test_a_preview_of_an_earlier_report_does_not_stay(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("one")
    write([run], None, tmp_path / "out")
    with Image.open(tmp_path / "out" / "preview.png") as preview:
        assert preview.width > 400
    write([run], None, tmp_path / "out", missing=True)
    assert not (tmp_path / "out" / "preview.png").exists()


def chromium(arguments: list[str], profile: Path) -> str:
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("chromium is not on PATH (Debian package `chromium`)")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
    ]
    finished = subprocess.run(
        [binary, *flags, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return finished.stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["rooms", "faces"])
def test_the_page_fits_the_window_in_a_browser(
    kind: str, width: int, pair: tuple[SyntheticRun, SyntheticRun], make_run: MakeRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if kind == "rooms":
        html = write([pair[1]], pair[0], out)
    else:
        recipe = make_recipe(FACE_TASKS)
        baseline = make_run("a-baseline-with-quite-a-long-name-that-does-not-break", recipe)
        run = make_run("faces", recipe, compacted=True, exported=True, baseline=scaled(1.0, FACE_TASKS))
        html = write([run], baseline, out)
    # A browser's window is no narrower than 500 pixels, a frame is; the probe tells the frame's sizes.
    probe = (
        "<script>addEventListener('load', () => parent.postMessage([document.documentElement.scrollWidth, "
        "document.documentElement.clientWidth, document.documentElement.scrollHeight].join(), '*'))</script></body>"
    )
    policy = html.index('<meta http-equiv="Content-Security-Policy"')
    html = html[:policy] + html[html.index(">", policy) + 1 :]
    (tmp_path / "page.html").write_text(html.replace("</body>", probe), encoding="utf-8")
    frame = (
        "<!DOCTYPE html><body style='margin:0'><p id='sizes' hidden></p><script>"
        "addEventListener('message', event => document.getElementById('sizes').textContent = event.data)</script>"
        f"<iframe src='page.html' style='border:0;width:{width}px;height:2000px'></iframe>"
    )
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    address = (tmp_path / "frame.html").as_uri()

    dom = chromium(["--dump-dom", "--virtual-time-budget=5000", address], tmp_path / "profile")
    sizes = dom.split('hidden="">')[1].split("<")[0]
    scroll_width, client_width, height = map(int, sizes.split(","))
    assert client_width == width
    assert scroll_width <= client_width
    assert height > 2000

    picture = tmp_path / "page.png"
    window = f"--window-size={max(width, 500)},2000"
    chromium([window, f"--screenshot={picture}", address], tmp_path / "profile2")
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB"))[:, :width]
    assert (
        len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    )  # a blank or broken page has a handful of colors
    bands = np.array_split(pixels, 10)
    assert all(band.std() > 2 for band in bands)  # content from top to bottom
