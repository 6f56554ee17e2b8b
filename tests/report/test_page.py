"""The page in a real browser: it draws, it filters, it fetches nothing, and texts stay texts."""

import re
import shutil
import subprocess

import pytest

from inrun.report import ReportError, write_report
from inrun.report.page import LONGEST, charts_script
from inrun.store import ValueStore, ValueWriter
from tests.report.conftest import HOSTILE

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def dom(page, tmp_path, script=""):
    """The page's elements after its scripts and `script` have run."""
    changed = tmp_path / "page.html"
    text = page.read_text(encoding="utf-8")
    after = f"<script>addEventListener('load', () => setTimeout(() => {{{script}}}, 500))</script>"
    head, end, _ = text.rpartition("</body>")  # the library holds that word too
    changed.write_text(f"{head}{after}{end}</html>", encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", changed.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_page_is_small_and_names_no_other_place(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) <= LONGEST
    without_library = text.replace(charts_script(), "")
    others = re.findall(r"https?://[^\s\"'<\\]+", without_library)
    assert all(url.startswith("https://vega.github.io/schema/vega-lite/") for url in others)
    assert "default-src 'none'" in text


@browser
def test_every_chart_is_drawn(page, tmp_path):
    drawn = dom(page, tmp_path)
    charts = re.findall(
        r'<div class="chart[^"]*" data-spec="([^"]+)"[^>]*>(<div|<svg|<details)?', drawn
    )
    assert len(charts) == 8
    assert drawn.count('class="marks"') == 8
    assert "novels" in drawn


@browser
def test_hostile_texts_stay_texts(page, tmp_path):
    drawn = dom(
        page,
        tmp_path,
        'document.forms.controls.elements.search.value = "onerror"; '
        'document.forms.controls.dispatchEvent(new Event("input"))',
    )
    assert "<title>asked" not in drawn
    assert "<title>owned</title>" not in drawn
    assert "<img src" not in drawn.split('id="columns"')[1].split("</section>")[0]
    assert HOSTILE not in drawn.split('id="columns"')[1].split("</section>")[0]
    assert "<b>bold</b>" not in drawn.split('id="kinds"')[1].split("</section>")[0]


@browser
def test_filters_choose_cards(page, tmp_path):
    form = "const form = document.forms.controls;"
    fire = 'form.dispatchEvent(new Event("input"));'
    every = shown(dom(page, tmp_path))
    assert len(every) > 12
    python = shown(dom(page, tmp_path, f'{form} form.elements.group.value = "python"; {fire}'))
    assert python
    assert all("of python" in card for card in python)
    none = shown(dom(page, tmp_path, f'{form} form.elements.search.value = "nowhere"; {fire}'))
    assert none == []
    late = shown(dom(page, tmp_path, f"{form} form.elements.from.value = 11; {fire}"))
    assert late
    assert len(late) < len(every)


def shown(drawn):
    """The cards' texts."""
    return re.findall(r'<article class="card">.*?<pre>(.*?)</pre>', drawn, re.DOTALL)


def test_a_missing_package_is_named(values, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(ReportError, match=r"inrun\[report\]"):
        write_report(values, tmp_path)


def test_a_store_without_values_is_refused(tmp_path):
    with ValueWriter(tmp_path / "empty", {"targets": ["val"], "methods": ["path"]}):
        pass
    with (
        ValueStore(tmp_path / "empty") as store,
        pytest.raises(ReportError, match="nothing to show"),
    ):
        write_report(store, tmp_path)
