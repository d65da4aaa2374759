"""The page: well formed, self-contained, escaped, complete, and honest at the top."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from foretune.report.html import render, write_report
from foretune.report.markup import escape, tag
from foretune.report.record import AnswerPair, BudgetInfo, Candidate, Measure, Phase, RunRecord, Setting
from foretune.report.wording import verdict

HOSTILE = '</style></title><script>alert(1)</script><img src=x onerror="alert(1)">\x00\x1b[31m\u202e\ud800 & \'"`'
_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Collects tags, text and attributes, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_verdict_is_the_first_heading(record: RunRecord, no_evidence: RunRecord) -> None:
    for item in (record, no_evidence):
        page = render(item)
        assert page.index(f"<h1>{escape(verdict(item))}</h1>") < page.index("<h2")
    assert ">No evidence of improvement</p>" in render(no_evidence)


def test_page_is_self_contained(record: RunRecord) -> None:
    page = render(record)
    reader = read(page)
    names = {name for name, _ in reader.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form"}
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page


def test_links_and_ids_agree(record: RunRecord) -> None:
    tags = read(render(record)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in tags if "href" in a}
    assert links and links <= set(ids)


def test_every_chart_has_a_text_alternative_and_both_widths(record: RunRecord) -> None:
    charts = [attributes for name, attributes in read(render(record)).tags if name == "svg"]
    assert len(charts) == 12 and all(chart["role"] == "img" and len(chart["aria-label"] or "") > 20 for chart in charts)
    assert {float(chart["width"] or 0) for chart in charts} >= {784.0, 340.0}


def test_hostile_text_stays_text(record: RunRecord) -> None:
    pair = AnswerPair(HOSTILE, HOSTILE, HOSTILE, HOSTILE, True, False)
    hostile = replace(
        record,
        id=HOSTILE,
        command=HOSTILE,
        data=replace(record.data, name=HOSTILE, problems=(HOSTILE,), profile={HOSTILE: {HOSTILE: [HOSTILE]}}),
        model=replace(record.model, source=HOSTILE),
        trials=tuple(replace(t, why=HOSTILE, detail=HOSTILE, config={HOSTILE: HOSTILE}) for t in record.trials),
        budget=BudgetInfo("time", 10.0, 5.0, (Phase(HOSTILE, 5.0),)),
        examples=(pair,),
        settings=(Setting(HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
        warnings=(HOSTILE,),
        environment={HOSTILE: HOSTILE},
        seeds={HOSTILE: 1},
    )
    page = render(hostile)
    page.encode("utf-8")
    reader = read(page)
    assert not {name for name, _ in reader.tags} & {"script", "img"}
    assert all("onerror" not in attributes for _, attributes in reader.tags)
    assert "<script>alert(1)</script>" in "".join(reader.text)
    assert not re.search("[\x00\x1b\u202e\ud800]", page)


def test_examples_cover_failures_and_are_limited(record: RunRecord) -> None:
    many = tuple(AnswerPair(f"question {i}", "r", "b", "a", i % 9 == 0, i % 3 != 0) for i in range(90))
    page = render(replace(record, examples=many))
    assert page.count('<article class="example">') == 12
    assert page.count("▼ worsened") == 4 and page.count("○ still wrong") == 4


def test_long_text_is_cut_and_says_so(record: RunRecord) -> None:
    page = render(replace(record, examples=(AnswerPair("x" * 5_000_000, "r", "b", "a"),)))
    assert len(page) < 200_000 and "4,997,000 more characters" in page


def test_bare_record_still_renders(record: RunRecord) -> None:
    bare = RunRecord("r", "0.1.0", "", "", "", record.model, record.data, BudgetInfo("trials", 0.0, 0.0))
    reader = read(render(bare))
    assert "No trial produced a usable result." in "".join(reader.text)
    assert "svg" not in {name for name, _ in reader.tags}


def test_every_trial_is_in_the_table_with_its_failure(record: RunRecord) -> None:
    text = " ".join(read(render(record)).text)
    assert "9.8 GiB wanted" in text and "diverged" in text
    assert "12 trials: 6 stopped early, 4 finished, 1 diverged, 1 out of memory." in text


def test_finalists_chosen_by_loss_are_not_shown_as_the_metric(record: RunRecord) -> None:
    candidates = (Candidate("r001", Measure(1.452, 0.021, 120), True, Measure(1.452, 0.021, 120)),)
    text = " ".join(read(render(replace(record, candidates=candidates))).text)
    assert "1.452 ± 0.021 nats per token" in text and "145" not in text


def test_a_reason_is_given_once_for_the_settings_that_share_it(record: RunRecord) -> None:
    why = "best for most earlier runs"
    shared = tuple(replace(setting, evidence=why) for setting in record.settings[2:6])
    page = render(replace(record, settings=(*shared, *record.settings[6:])))
    assert page.count(why) == 1 and page.count("as above") == 3  # defaults without a reason stay empty


def test_profile_is_tidied_but_not_falsified(record: RunRecord) -> None:
    profile = {
        "task": "generation", "log10_rows": 1.6, "imbalance": None, "labels": {}, "duplicate_share": 0.25,
        "prompt_tokens": {"mean": 13.8, "p95": 14.0}, "languages": {"en": 0.75, "de": 0.25},
        "labels_seen": {"good": 30, "fair": 6, "bad": 4}, "turns": 2.0,
    }  # fmt: skip
    text = " ".join(read(render(replace(record, data=replace(record.data, profile=profile)))).text)
    assert "duplicate share 25.0 %" in text and "mean 13.8, p95 14" in text and "en 75.0 %, de 25.0 %" in text
    assert "good 30 fair 6 bad 4" in " ".join(text.split()) and "log10" not in text and "imbalance" not in text


def test_attribute_injection_is_escaped() -> None:
    assert tag("p", class_='"><script>') == '<p class="&quot;&gt;&lt;script&gt;"></p>'
    assert tag("line", x1=1.0, y1=2.126, hidden=True, role=None) == '<line x1="1" y1="2.13" hidden></line>'


@pytest.mark.parametrize("share", [True, False])
def test_written_report_is_the_rendering(record: RunRecord, tmp_path: Path, share: bool) -> None:
    path = write_report(tmp_path, record)
    assert path.name == "report.html" and path.read_text() == render(record)
