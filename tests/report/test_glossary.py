"""Terms: linked once, only in running text, and only those that are used have an entry."""

from __future__ import annotations

from compactmtl.report.glossary import SLOT, TERMS, linked


def test_the_first_use_is_linked_and_no_other() -> None:
    page = linked(f"<p>MACs and MACs</p><p>MACs</p><dl>{SLOT}</dl>")
    assert page.startswith('<p><a class="term" href="#term-macs">MACs</a> and MACs</p><p>MACs</p>')
    assert page.count('<dt id="term-') == 1


def test_another_spelling_leads_to_the_same_entry() -> None:
    assert '<a class="term" href="#term-macs">MAC</a>' in linked("<p>one MAC</p>")


def test_links_headings_chips_code_and_figures_stay_as_they_are() -> None:
    pieces = (
        '<a href="#x">MACs</a>',
        "<h2>MACs</h2>",
        "<code>MACs</code>",
        "<svg><text>MACs</text></svg>",
        '<span class="chip">MACs</span>',
        '<img alt="MACs">',
    )
    for piece in pieces:
        assert linked(piece) == piece


def test_a_part_of_a_word_is_not_the_term() -> None:
    assert linked("<p>seedling, non-dense</p>") == "<p>seedling, non-dense</p>"


def test_a_term_s_meaning_is_not_linked_to_itself() -> None:
    page = linked(f"<p>mIoU</p><dl>{SLOT}</dl>")
    assert page.count("<a ") == 1


def test_anchors_are_distinct() -> None:
    assert len({term.anchor for term in TERMS}) == len(TERMS)
    assert all(term.anchor != "term-" for term in TERMS)
