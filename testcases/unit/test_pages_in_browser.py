# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages as a browser shows them: axe finds nothing to complain of, on a desk and on a telephone, in both themes."""

import html
import importlib.resources
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from night_samples import make_done, make_spec, open_store
from report_samples import write_sample_run

from lab.build.mutant_list import choose_mutants
from lab.campaign.definition import choose_trial
from lab.campaign.hunt import make_hunt_spec
from lab.campaign.retention import Retention
from lab.campaign.store import Kept
from lab.model.verdict import Outcome
from lab.report.campaign_page import write_campaign_report
from lab.report.page import write_report
from lab.report.since import find_since

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

MAX_PAGE_BYTES = 2_000_000
BROWSER_S = 120
#: In place of the page, as text: what axe complains of, and what stands out of the window.
LOOK = """
axe.run(document, {resultTypes: ["violations"]}).then(found => {
  const wide = [...document.querySelectorAll("main *")].filter(each => !each.closest(".scroll, svg, pre")
    && each.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
  // In a column that is too narrow, words are broken wherever they happen to end.
  const torn = [...document.querySelectorAll("main td, main th")].flatMap(cell => {
    const words = [], walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode())
      for (const found of node.data.matchAll(/[a-z]{3,}/gi)) {
        const range = document.createRange();
        range.setStart(node, found.index);
        range.setEnd(node, found.index + found[0].length);
        if (range.getClientRects().length > 1) words.push(found[0]);
      }
    return words;
  });
  const told = {
    violations: found.violations.map(each => each.id + ": " + each.nodes.map(node => node.html).join(" | ")),
    wide: wide.map(each => each.outerHTML.slice(0, 200)),
    torn: torn,
    background: getComputedStyle(document.body).backgroundColor,
  };
  const text = document.createElement("pre");
  text.id = "told";
  text.textContent = JSON.stringify(told);
  document.body.replaceChildren(text);
});
"""


def find_axe() -> str:
    pytest.importorskip("axe_core_python", reason="axe-core-python is in the extra 'dev'")
    return (importlib.resources.files("axe_core_python") / "axe.min.js").read_text()


def look(page: Path, width: int, *, dark: bool) -> dict[str, Any]:
    """Open a page, and return what LOOK tells of it."""
    text = page.read_text()
    # The page's own policy lets no script run, which is as it should be.
    text, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert policies == 1
    text = text.replace("</body>", f"<script>{find_axe()}</script><script>{LOOK}</script></body>")
    copy = page.with_name("looked-at.html")
    copy.write_text(text)
    words = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={page.parent / 'browser'}",
        f"--window-size={width},1000",
        "--virtual-time-budget=60000",
        "--dump-dom",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        copy.as_uri(),
    ]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=BROWSER_S, check=True).stdout
    told = re.search(r'<pre id="told">(.*?)</pre>', shown, re.DOTALL)
    assert told is not None, shown[:2_000]
    found: dict[str, Any] = msgspec.json.decode(html.unescape(told[1]))
    return found


def make_run(folder: Path) -> Path:
    return write_report(write_sample_run(folder))


def make_campaign(folder: Path) -> Path:
    folder.mkdir()
    spec = make_spec(trials=12)
    outcomes = (Outcome.PASS, Outcome.FAIL, Outcome.INVALID)
    with open_store(folder, spec) as store:
        retention = Retention(store, 1_024)
        for number in range(1, 11):
            part = choose_trial(spec, number).part.name
            retention.keep(make_done(number, outcomes[number % 3], part=part), float(number))
    return write_campaign_report(folder)


def make_hunt(folder: Path) -> Path:
    folder.mkdir()
    spec = make_hunt_spec((), choose_mutants(["updates-twice", "nmis-never-sent"]), 1, 1, 7)
    with open_store(folder, spec) as store:
        store.add(make_done(1, Outcome.FAIL, part="updates-twice"), Kept(), 1.0)
        store.end_sitting(finished=False, why="it was told to stop", ran_s=1.0)
    return write_campaign_report(folder, find_since(folder, make_campaign(folder.with_name("earlier")).parent))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 375])
@pytest.mark.parametrize("make", [make_run, make_campaign, make_hunt])
def test_axe_finds_nothing_and_nothing_stands_out(make: Any, width: int, dark: bool, tmp_path: Path) -> None:
    page = make(tmp_path / "out")
    assert page.stat().st_size < MAX_PAGE_BYTES
    found = look(page, width, dark=dark)
    assert found["violations"] == []
    assert found["wide"] == []
    assert found["torn"] == []
    red, green, blue = map(int, re.findall(r"\d+", found["background"])[:3])
    assert (max(red, green, blue) < 64) is dark


def test_axe_is_heard(tmp_path: Path) -> None:
    """Without this, a browser in which it never ran would be as good as one in which it found nothing."""
    page = make_run(tmp_path / "out")
    page.write_text(page.read_text().replace("</main>", '<p style="color: #ccc; background: #fff">pale</p></main>'))
    (violation,) = look(page, 1400, dark=False)["violations"]
    assert violation.startswith("color-contrast: ")
