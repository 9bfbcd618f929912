"""The HTML report: whole, half-written and bare runs, hostile texts, size, no network, and a look in a real
browser.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import write_config, write_run

pytest.importorskip("bokeh", reason="the report needs the extra `report`")

LIMIT_BYTES = 5_000_000
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)

# Runs in the page: waits for the plots, moves the mouse over the first, and leaves what it saw in the
# document.
PROBE = """<script>
const trouble = [], refused = [];
addEventListener("error", (event) => trouble.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (event) => refused.push(event.violatedDirective));
const inside = (root, tag) => [...root.querySelectorAll("*")].flatMap((one) =>
  [...(one.matches(tag) ? [one] : []), ...(one.shadowRoot ? inside(one.shadowRoot, tag) : [])]);
addEventListener("load", () => setTimeout(() => {
  const first = document.querySelector("#curves figure");
  const area = first && inside(first, ".bk-events")[0];
  const box = area ? area.getBoundingClientRect() : null;
  const mouse = {bubbles: true, composed: true, pointerType: "mouse", pointerId: 1, isPrimary: true};
  if (box) for (const name of ["pointerover", "pointermove"])
    area.dispatchEvent(new PointerEvent(name, {...mouse, clientX: box.left + box.width / 2,
                                                 clientY: box.top + box.height / 2}));
  setTimeout(() => {
    const inked = (canvas) => canvas.width > 50 && canvas.height > 50 &&
      canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0);
    const seen = {
      trouble, refused,
      figures: [...document.querySelectorAll("figure")].map((one) => inside(one, "canvas").some(inked)),
      tooltip: inside(document, ".bk-tooltip-row-label, .bk-tooltip-row-value")
        .map((one) => one.textContent).join(" "),
      fetched: performance.getEntriesByType("resource").map((one) => one.name),
      hurt: window.hurt ?? null,
      prompts: [...document.querySelectorAll("[data-prompt]")].filter((one) => !one.hidden).length,
    };
    const out = document.body.appendChild(document.createElement("pre"));
    out.id = "seen";
    out.textContent = JSON.stringify(seen);
  }, 800);
}, 2500));
</script>"""


def report(bitnet: Any, runs: Path, *words: str) -> str:
    """Build a report by the command and return the page."""
    result = bitnet("report", *words, "--runs-dir", runs, "--json")
    assert result.code == 0, result.err
    return Path(result.json["out"]).read_text(encoding="utf-8")


def own_part(page: str) -> str:
    """The page without scripts and styles: what people read."""
    return re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)


@pytest.mark.slow
def test_a_whole_run_tells_everything(bitnet: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "whole", 200)
    page = own_part(report(bitnet, tmp_path, "whole"))
    assert "PASS" in page
    assert "exact_match ≥ 0.95" in page
    assert "over twice its average" in page
    assert "791,680" in page
    assert "not recorded" not in page
    assert page.count('data-root-id="') == 9, "seven curves and two heat maps"


@pytest.mark.slow
def test_a_run_that_was_not_judged_says_how_to(bitnet: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "open", 50, verdict=None)
    page = own_part(report(bitnet, tmp_path, "open"))
    assert "was not judged" in page
    assert "bitnet evaluate open" in page


@pytest.mark.slow
def test_a_run_without_metrics_is_a_page_of_what_is_not_recorded(bitnet: Any, tmp_path: Path) -> None:
    write_config(tmp_path / "bare", 50)
    page = own_part(report(bitnet, tmp_path, "bare"))
    assert page.count("not recorded") >= 9
    assert "data-root-id" not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing",
    [
        "metrics/scalars.jsonl",
        "metrics/quantization.jsonl",
        "eval/eval_results.jsonl",
        "samples/samples.jsonl",
        "meta/provenance.json",
        "status.json",
    ],
)
def test_any_one_file_may_be_missing(bitnet: Any, tmp_path: Path, missing: str) -> None:
    write_run(tmp_path / "partial", 50)
    (tmp_path / "partial" / missing).unlink()
    assert "data-root-id" in report(bitnet, tmp_path, "partial")


@pytest.mark.slow
def test_half_written_and_foreign_lines_are_passed_over_and_told(bitnet: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "torn", 50)
    foreign = [
        '{"step": 3, "loss": "high", "lr": [1]}',
        '{"step": 4, "loss": 1e300, "grad_norm": null}',
        '{"step": -1}',
        '"text"',
        '{"step": 51, "lo',
    ]
    with (run / "metrics" / "scalars.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(foreign))
    (run / "eval" / "verdict.json").write_text('{"verdict": ')
    (run / "meta" / "provenance.json").write_text("[1, 2]")
    result = bitnet("report", "torn", "--runs-dir", tmp_path, "--json")
    assert result.code == 0, result.err
    notes = " ".join(result.json["notes"])
    assert "scalars.jsonl: 5 unreadable lines skipped" in notes
    assert "verdict.json" in notes
    assert "provenance.json" in notes
    assert "was not judged" in Path(result.json["out"]).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "verdict",
    [
        {"verdict": ["PASS"]},
        {"verdict": "PASS", "criteria": 3},
        {"verdict": "FAIL", "criteria": [1, {}], "metrics": []},
    ],
)
def test_a_foreign_verdict_is_no_error(bitnet: Any, tmp_path: Path, verdict: dict[str, Any]) -> None:
    run = write_run(tmp_path / "odd", 30)
    (run / "eval" / "verdict.json").write_text(json.dumps(verdict))
    assert report(bitnet, tmp_path, "odd")


def hostile_run(root: Path) -> Path:
    """A run with markup in every text it holds."""
    evil = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"
    run = write_run(root / "$$a<b onmouseover=hurt>", 60)
    for path, added in (
        ("samples/samples.jsonl", {"prompt": evil, "generated_text": evil + "!", "mode": "greedy" + evil}),
        ("eval/eval_results.jsonl", {evil: 0.5, "<b>x</b>": 0.5}),
        ("metrics/quantization.jsonl", {"L0_<b>_zero_pct": 0.5}),
    ):
        rows = [json.loads(line) | added for line in (run / path).read_text().splitlines()]
        (run / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((run / "meta" / "config.json").read_text())
    config |= {"experiment": evil, "variant": evil}
    config["data"] |= {evil: evil, "nested": {"deep": [evil]}}
    (run / "meta" / "config.json").write_text(json.dumps(config))
    next((run / "anomalies").iterdir()).joinpath("README.md").write_text(evil)
    return run


@pytest.mark.slow
def test_markup_in_a_run_stays_text(bitnet: Any, tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    page = report(bitnet, tmp_path, str(run))
    assert "<img src=x" not in page
    assert "<script>window.hurt" not in page
    assert "<b onmouseover" not in page
    assert html.escape("<script>window.hurt = 1</script>") in page


@pytest.mark.slow
def test_nothing_is_fetched(bitnet: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "alone", 60)
    page = report(bitnet, tmp_path, "alone")
    assert "default-src 'none'" in page
    assert not re.search(r"<(link|iframe|object|embed|base)\b|@import", own_part(page))
    assert not re.search(
        r"""<[^>]*\b(src|srcset|href|action|data)\s*=\s*["']?\s*(https?:)?//""", own_part(page)
    )
    assert not re.search(r"<script[^>]+src", page)


@pytest.mark.slow
def test_a_60000_step_run_fits(bitnet: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "long", 60_000, layers=8, every=1000)
    page = report(bitnet, tmp_path, "long")
    assert len(page.encode()) < LIMIT_BYTES


@pytest.mark.slow
def test_two_deep_runs_with_many_probes_fit(bitnet: Any, tmp_path: Path) -> None:
    for place, name in enumerate(("one", "two")):
        write_run(tmp_path / name, 400, layers=24, every=2, seed=place)
    assert len(report(bitnet, tmp_path, "one", "two").encode()) < LIMIT_BYTES


@pytest.mark.slow
def test_two_runs_are_compared(bitnet: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "first", 100)
    second = write_run(tmp_path / "second", 140, verdict="FAIL", seed=1)
    config = json.loads((second / "meta" / "config.json").read_text())
    config["training"]["peak_lr"] = 0.003
    (second / "meta" / "config.json").write_text(json.dumps(config))
    page = own_part(report(bitnet, tmp_path, "first", "second"))
    assert "two runs compared" in page
    assert ">PASS<" in page
    assert ">FAIL<" in page
    differing = page[page.index("What differs") : page.index('id="curves"')]
    assert "training.peak_lr" in differing
    assert "training.grad_clip_norm" not in differing
    assert page.count('data-root-id="') == 11, "seven curves and two heat maps for each run"
    assert (tmp_path / "first" / "comparison.html").is_file()


@pytest.mark.slow
def test_bad_words(bitnet: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", 20)
    for words in (
        ["absent"],
        ["run", "run"],
        ["run", "run", "run"],
        ["run", "--out", "page.pdf"],
        ["run", "--out", "/proc/none/page.html"],
    ):
        result = bitnet("report", *words, "--runs-dir", tmp_path)
        assert result.code == 2, words
        assert result.err.count("\n") == 1, "one line"


def test_without_the_extra_the_command_says_what_to_install(
    bitnet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", 20)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    result = bitnet("report", "run", "--runs-dir", tmp_path)
    assert result.code == 2
    assert "pip install 'bitnet[report]'" in result.err


def test_reduced_curves_keep_every_spike() -> None:
    from bitnet.report.axes import POINTS, decimated

    values = np.zeros(60_000)
    values[[777, 31_415]] = 9.0, -9.0
    values[100:200] = np.nan
    kept = decimated(values)
    assert len(kept) <= POINTS + 2
    assert {0, 777, 31_415, 59_999} <= set(kept.tolist())
    assert np.all(np.diff(kept) > 0)
    assert decimated(np.arange(10.0)).tolist() == list(range(10))


def look(page: Path, folder: Path) -> dict[str, Any]:
    """Open a page in a headless browser and return what the probe saw, with the console's errors."""
    assert BROWSER is not None
    probed = folder / "probed.html"
    probed.write_text(
        page.read_text(encoding="utf-8").replace("<main>", PROBE + "<main>", 1), encoding="utf-8"
    )
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1240,2400",
        "--virtual-time-budget=15000",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return seen | {
        "console": [
            line for line in console if re.search(r"error|warn|refused|violat|exception", line, re.IGNORECASE)
        ]
    }


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("kind", ["one", "two", "bare", "hostile"])
def test_in_a_real_browser(bitnet: Any, tmp_path: Path, kind: str) -> None:
    """Every figure is drawn, the mouse gets an answer, nothing is fetched, refused or thrown."""
    words = {
        "one": ["one"],
        "two": ["one", "two"],
        "bare": ["bare"],
        "hostile": [str(tmp_path / "$$a<b onmouseover=hurt>")],
    }[kind]
    write_run(tmp_path / "one", 300)
    write_run(tmp_path / "two", 200, seed=1)
    write_config(tmp_path / "bare", 50)
    hostile_run(tmp_path)
    bitnet("report", *words, "--runs-dir", tmp_path, "--out", tmp_path / "page.html")
    seen = look(tmp_path / "page.html", tmp_path)
    assert seen["trouble"] == []
    assert seen["refused"] == []
    assert seen["console"] == []
    assert [name for name in seen["fetched"] if not name.startswith(("data:", "blob:"))] == []
    assert seen["hurt"] is None
    drawn = {"one": 9, "two": 11, "bare": 0, "hostile": 9}[kind]
    assert sum(seen["figures"]) == drawn
    assert len(seen["figures"]) == max(drawn, 9)
    assert ("update" in seen["tooltip"]) == (kind != "bare")
    assert seen["prompts"] == (0 if kind == "bare" else 1)


@pytest.mark.slow
def test_a_diagnosed_run_says_what_was_found(bitnet: Any, tmp_path: Path) -> None:
    root = write_run(tmp_path / "runs" / "a", 40)
    checks = [
        {
            "name": "causal mask holds",
            "suspect": "quantization",
            "ok": False,
            "detail": "earlier positions see <later> ones",
        }
    ]
    found = {
        "step": 40,
        "healthy": False,
        "suspect": "quantization",
        "sure": "sure",
        "next": "compare it with its formula",
        "checks": checks,
    }
    (root / "eval" / "diagnosis.json").write_text(json.dumps(found))
    assert bitnet("report", "a", "--runs-dir", tmp_path / "runs").code == 0
    page = (root / "report.html").read_text()
    assert "Diagnosis at update" in page
    assert "causal mask holds" in page
    assert "&lt;later&gt;" in page
