"""The page: complete, offline, escaped, and fit for a phone."""

from __future__ import annotations

import re
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
from tests.support.synthetic_runs import FACE_TASKS, SyntheticRun, make_recipe, write_pair
from tests.support.synthetic_verification import scaled
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


def write(
    runs: list[SyntheticRun], baseline: SyntheticRun | None, out: Path, *, missing: bool = False
) -> str:
    report, samples = collect(cast(list[Run], runs), cast(Run | None, baseline), TinySplits(missing))
    return write_collected(report, samples, out).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a pair of runs that went through the whole pipeline; drawing it takes a second."""
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
        self.pieces: list[str] = []
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
        self.pieces.append(data)

    @property
    def words(self) -> str:
        """The text with one space between the pieces."""
        return " ".join(" ".join(self.pieces).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.slow
def test_the_page_is_whole_and_offline(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    assert page.attributes("html")[0]["lang"] == "en"
    images = page.attributes("img")
    assert len(images) == 6 * (1 + 3 * 3)  # six samples: the input, and target, dense, compact of three tasks
    assert all(one["src"] and one["src"].startswith("data:image/png;base64,") for one in images)
    assert all(one["alt"] for one in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not re.search(r"url\(|@import|https?://", (written / "report.html").read_text())
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, (tag, value)


def test_ids_are_unique_and_figures_are_described_in_words(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    figures = [attributes for attributes in page.attributes("div") if attributes.get("role") == "img"]
    # curves of both runs; sparsity, latency, λ; speed against accuracy
    assert len(figures) == 3 + 3 + 3 + 1
    assert all(attributes["aria-label"] for attributes in figures)


def test_every_link_leads_to_a_place_on_the_page(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [attributes["href"] or "" for attributes in page.attributes("a")]
    assert links and all(link.removeprefix("#") in ids for link in links)


def test_the_contents_list_names_every_section_and_part(written: Path) -> None:
    """Twice: beside the page on a desk, above it on a phone."""
    html = (written / "report.html").read_text()
    contents = html.split('<nav class="contents')[1].split("</nav>")[0]
    parts = [part.split("</nav>")[0] for part in html.split('<nav class="contents')[1:]]
    assert len(parts) == 2 and all(part.count("<a ") == contents.count("<a ") for part in parts)
    listed = re.findall(r'href="#([^"]+)"', contents)
    headings = re.findall(r'<h[23] id="([^"]+)"', html)
    assert listed == headings


def test_a_term_is_linked_to_the_glossary_at_its_first_use(written: Path) -> None:
    html = (written / "report.html").read_text()
    for term in ("Δm", "MACs", "mIoU", "seed", "val split"):
        assert re.search(rf'<a class="term" href="#[^"]+">{term}</a>', html), term
    assert html.count('<a class="term"') == html.count(
        '<dt id="term-'
    )  # each once, and none without an entry
    assert "mean intersection over union" in html and "average precision" not in html  # a term of other tasks


def test_the_summary_answers_in_order(written: Path) -> None:
    html = (written / "report.html").read_text()
    summary = "<section><h2>" + html.split('<h2 id="summary">')[1].split("</section>")[0] + "</section>"
    questions = [
        "Was the budget met?",
        "equal to the model?",
        "Δm against dense, accuracy of all tasks",
        "Latency against",
        "Size, MACs",
        "Headline: onnxruntime-cpu",
        "mean relative improvement over dense",
    ]
    text = " ".join(Page(summary).text.split())
    places = [text.index(question) for question in questions]
    assert places == sorted(places)


def test_an_export_names_its_files_inputs_and_outputs(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    text = page.words + " ".join(page.text.split())
    for words in (
        "export/onnxruntime-cpu: model.onnx missing, bundle.json",
        "stretch to 48×64 (height × width), bilinear with antialiasing",
        "RGB, NCHW",
        "mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)",
        "image, input 1×3×48×64 float32",
        "depth, output 1×1×48×64 float32 depth at each pixel m",
        "0 wall, 1 floor, 2 box, 3 sphere",
    ):
        assert words in text, words


def test_int8_is_compared_with_dense_fp32_in_accuracy_too(written: Path) -> None:
    text = Page((written / "report.html").read_text()).words
    assert "dense fp32 own fp32 artifact artifact against own fp32 artifact against dense fp32" in text


def test_wrong_predictions_are_marked(make_run: MakeRun, tmp_path: Path) -> None:
    """The tiny model guesses one gender for all, and ages far off."""
    run = make_run("faces", make_recipe(FACE_TASKS))
    _, samples = collect(cast(list[Run], [run]), None, TinySplits())
    wrong = [
        view for one in samples for task in one.tasks for view in task.predictions.values() if view.wrong
    ]
    assert 0 < len(wrong) < 2 * len(samples)
    html = write([run], None, tmp_path / "out")
    rows = "<section><h2>" + html.split('<h2 id="samples">')[1].split("</section>")[0] + "</section>"
    assert rows.count('class="wrong-mark" title') == len(wrong)
    rule = "age, an error above 20 years; gender, another class than the target's"
    assert rule in Page(rows).words


def test_what_was_not_run_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    page = Page(write([make_run("one")], None, tmp_path / "out", missing=True))
    assert page.text.count("not run") >= 4  # gates, pictures, export, surgery
    assert "No pictures: there is no folder nowhere" in page.text


@pytest.mark.slow
def test_of_several_runs_the_summary_is_a_table(make_run: MakeRun, tmp_path: Path) -> None:
    one = write([make_run("a")], None, tmp_path / "one")
    several = write([make_run("b"), make_run("c")], None, tmp_path / "two")
    assert '<dl class="facts">' in one and '<dl class="facts">' not in several
    assert 'aria-label="Summary of the runs"' in several


@pytest.mark.slow
def test_a_failed_gate_is_seen_first(make_run: MakeRun, tmp_path: Path) -> None:
    page = Page(write([make_run("one", compacted=True, exported=True, passed=False)], None, tmp_path / "out"))
    assert page.text.index("latency: 1 failed on onnxruntime-cpu") < page.text.index("MACs")
    assert "1 of 14 gates failed: latency" in page.text
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


@pytest.mark.slow
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
@pytest.mark.parametrize(
    ("kind", "width"), [("rooms", 390), ("rooms", 1600), ("faces", 390), ("faces", 1280)]
)
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
