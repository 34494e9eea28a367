"""The terms of a report: each is linked at its first use to a glossary at the end of the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Term:
    """A term, its other spellings, and what it means."""

    name: str
    meaning: str
    also: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """The id of its entry."""
        return "term-" + re.sub(
            r"[^a-z0-9]+", "-", self.name.lower().replace("δ", "delta-").replace("λ", "lambda")
        ).strip("-")

    @property
    def pattern(self) -> str:
        """Matches the term as a word of its own, in any of its spellings."""
        words = "|".join(re.escape(word) for word in sorted((self.name, *self.also), key=len, reverse=True))
        return rf"(?<![\w-])(?:{words})(?![\w-])"


TERMS = (
    Term(
        "Δm",
        "multi-task gain: the mean over tasks of the mean relative change of each task's metrics against the named "
        "baseline, with the sign turned where lower is better. +2 % is 2 % better.",
    ),
    Term(
        "MACs",
        "multiply-accumulate operations of one image at the recipe's input size; the usual measure of a network's cost.",
        ("MAC",),
    ),
    Term(
        "baseline", "the run that the others are compared with, always in the form in which it was trained."
    ),
    Term("dense", "the network before channels are removed; also the network in the baseline run."),
    Term("compact", "the network after surgery has removed the channels that training brought to zero."),
    Term(
        "surgery",
        "removal of channels that do not change the output, so that the smaller network computes the same function.",
    ),
    Term("artifact", "the exported model file, as its runtime executes it."),
    Term(
        "parity",
        "whether the artifact computes what the PyTorch model computes: the largest difference of an output, as a share "
        "of the range of that output.",
    ),
    Term(
        "gate",
        "a bound that a target sets on parity, accuracy, latency or file size. A failed gate fails the export.",
        ("gates",),
    ),
    Term(
        "target",
        "where a model is to run: runtime, precision, threads and gates. In the samples: the true label.",
        ("targets",),
    ),
    Term("bundle", "the folder to deploy: model file, preprocessing, provenance and verification."),
    Term(
        "seed",
        "the number that all randomness of a run is drawn from. Runs that differ in it alone show chance.",
        ("seeds",),
    ),
    Term("val split", "the images kept for validation; no network was trained on them."),
    Term("fp32", "32-bit floating point (float32), the precision of training.", ("float32",)),
    Term("fp16", "16-bit floating point."),
    Term("bf16", "16-bit floating point with the exponent range of fp32."),
    Term("int8", "8-bit integers, with scales calibrated on training images."),
    Term("median", "half of the measurements are below it."),
    Term("p90", "90th percentile: 90 % of the measurements are below it."),
    Term("p99", "99th percentile: 99 % of the measurements are below it."),
    Term("10–90 %", "the band between the 10th and the 90th percentile over all rounds of the measurement."),
    Term("quartiles", "25th and 75th percentile: half of the measurements lie between them."),
    Term(
        "mIoU",
        "mean intersection over union: overlap of predicted and true area over their union, mean over classes.",
    ),
    Term("MAE", "mean absolute error."),
    Term("RMSE", "root mean square error; weighs large errors more."),
    Term("abs err", "mean absolute error of depth or disparity."),
    Term("rel err", "mean of the absolute error over the true value."),
    Term("mean angle", "mean angle between predicted and true surface normal."),
    Term("median angle", "median of the angle between predicted and true surface normal."),
    Term(
        "within 11.25",
        "share of pixels whose normal is less than 11.25° off; 22.5 and 30 likewise.",
        ("within 22.5", "within 30"),
    ),
    Term("mean f1", "mean over labels of the harmonic mean of precision and recall."),
    Term(
        "ods f",
        "best harmonic mean of precision and recall over all thresholds, one threshold for all images.",
    ),
    Term(
        "ap",
        "average precision of instances, mean over overlaps of 0.5 to 0.95; ap50 and ap75 at one overlap.",
        ("ap50", "ap75"),
    ),
    Term("λ", "strength of the penalty that brings channels to zero."),
    Term(
        "channel group",
        "parameters that must all be zero before a channel can be removed.",
        ("channel groups",),
    ),
    Term("ONNX", "Open Neural Network Exchange, the file format between training and runtime.", ()),
    Term("RGB", "color order red, green, blue."),
    Term("logit", "a score before softmax or sigmoid.", ("logits",)),
    Term("MiB", "2²⁰ bytes."),
)

_TAG = re.compile(r"(<[^>]*>)")
_NAME = re.compile(r"</?([a-zA-Z0-9]+)")
# Where a link would be lost, forbidden or a nuisance.
_CLOSED = {"a", "code", "pre", "svg", "summary", "h1", "h2", "h3", "h4", "nav", "style", "title", "head"}
SLOT = "<!--glossary-->"


def linked(html: str) -> str:
    """The page with each term's first use linked, and the entries of the terms that it uses in place of `SLOT`.

    The text of links, headings, chips, code and figures stays as it is; a term that is used nowhere else has no entry.
    """
    used: set[Term] = set()
    page = "".join(_linked(html, used))
    entries = "".join(
        f'<dt id="{term.anchor}">{escape(term.name)}</dt><dd>{escape(term.meaning)}</dd>\n'
        for term in sorted(used, key=lambda term: term.name.lower())
    )
    return page.replace(SLOT, entries)


def _linked(html: str, used: set[Term]) -> Iterator[str]:
    inside: list[str] = []  # open elements in which nothing is linked
    waiting = {f"t{number}": term for number, term in enumerate(TERMS)}
    for piece in _TAG.split(html):
        if piece.startswith("<"):
            name = _NAME.match(piece)
            tag = name.group(1).lower() if name else ""
            if piece.startswith("</"):
                if inside and inside[-1] == tag:
                    inside.pop()
            elif (tag in _CLOSED or 'class="chip' in piece) and not piece.endswith("/>"):
                inside.append(tag)
            yield piece
        elif inside or not piece.strip() or not waiting:
            yield piece
        else:
            yield _in_text(piece, waiting, used)


def _in_text(text: str, waiting: dict[str, Term], used: set[Term]) -> str:
    pattern = re.compile("|".join(f"(?P<{key}>{term.pattern})" for key, term in waiting.items()))

    def link(match: re.Match[str]) -> str:
        key = str(match.lastgroup)
        term = waiting.pop(key, None)
        if term is None:  # a second time in the same text
            return match.group()
        used.add(term)
        return f'<a class="term" href="#{term.anchor}">{match.group()}</a>'

    return pattern.sub(link, text)
