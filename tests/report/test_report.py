"""The report as Markdown, JSON and a page, and the page in a browser."""

from __future__ import annotations

import html.parser
import io
import json
import re
from pathlib import Path

import matplotlib.image
import pytest

from mhr.errors import MhrError
from mhr.report.report import make_report, write_report
from mhr.report.tables import Cell, Table, byte_size, p_value, score_cell, text
from mhr.runs import RunFolder
from tests.report import browser
from tests.report.material import SUITE, a_run, adaptations, an_evaluation

VOID = ("wbr", "meta", "link", "path", "use", "image", "rect", "br")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section: two pretraining runs, and two ways to adapt on three tasks with two seeds."""
    folder = tmp_path_factory.mktemp("report")
    mhr, poly = a_run(folder / "mhr"), a_run(folder / "poly", "poly", seed=1)
    for run, value in ((mhr, 0.3), (poly, 0.2)):
        an_evaluation(
            run / "evaluation", {"tail-place": value, "rotl-second": value / 2, "rev-last": 0.9, "head-vow": 0.1}
        )
    aligned = [
        {"step": step, "mean": 0.1 * step / 20, "layers": {"a.q": 0.1, "a.v": None}, "tasks": SUITE[:2],
         "cosines": [[1.0, 0.2], [0.2, 1.0]], "losses": {"rev-last": 1.0, "rev-first": 2.0}}
        for step in (20, 40)
    ]  # fmt: skip
    (mhr / "inspection").mkdir()
    found = {"path": str(mhr), "alignment": aligned, "transfer": {"rev-last": {"rev-last": 0.9, "rev-first": 0.4}}}
    (mhr / "inspection" / "inspection.json").write_text(json.dumps(found))
    z = {"tail-place": {1: 0.5, 2: 0.7}, "rotl-second": {1: 0.1, 2: 0.3}, "head-vow": {1: 0.25, 2: 0.3}}
    mu = {"tail-place": {1: 0.6, 2: 0.8}, "rotl-second": {1: 0.2, 2: 0.1}, "head-vow": {1: 0.45, 2: 0.4}}
    paths = [mhr, poly, adaptations(folder / "z", z), adaptations(folder / "mu", mu, "mu")]
    write_report(paths, folder / "out", title="Two ways <to> adapt")
    return folder / "out"


def test_seeds_that_all_say_the_same_are_told_as_such(tmp_path: Path) -> None:
    both = [
        adaptations(tmp_path / mode, {"rev-last": dict.fromkeys(range(3), score)}, mode)
        for mode, score in (("z", 0.45), ("mu", 0.5))
    ]
    write_report(both, tmp_path / "report")
    said = json.loads((tmp_path / "report" / "report.json").read_text())["text"]["summary"][1]
    assert said.endswith(
        "is 5.0 points behind (the same everywhere, p = 0.25 over 3 seeds, no significant difference)."
    )


def test_what_seeds_in_common_say_against_the_means_is_said(tmp_path: Path) -> None:
    """The first by its mean over all its seeds may be behind on those that both have, or have none in common."""
    z = adaptations(tmp_path / "z", {"rev-last": {1: 0.2, 2: 0.25, 3: 0.9, 4: 0.9}})
    mu = adaptations(tmp_path / "mu", {"rev-last": {1: 0.5, 2: 0.54}}, "mu")
    write_report([z, mu], tmp_path / "report")
    said = json.loads((tmp_path / "report" / "report.json").read_text())["text"]["summary"]
    assert re.search(
        r"MHR-z, 2 shots leads with 56.2 ± .* over 4 seeds; on the 2 seeds that both have MHR-mu, 2 shots is 29.5 points ahead \(95% "
        r"interval 2\d\.\d to 3\d\.\d, p = ",
        said[1],
    )
    assert any("different seeds" in note for note in said)
    other = adaptations(tmp_path / "other", {"rev-last": {5: 0.5, 6: 0.54}}, "mu")
    write_report([z, other], tmp_path / "apart")
    said = json.loads((tmp_path / "apart" / "report.json").read_text())["text"]["summary"]
    assert said[1].endswith(
        "points behind (fewer than two seeds in common, which cannot tell whether others would agree)."
    )


def test_the_summary_says_who_leads_and_by_how_much(written: Path) -> None:
    told = json.loads((written / "report.json").read_text())
    first, leads, *notes = told["text"]["summary"]
    assert first == "4 contestants on 3 tasks of builtin:skills, by exact match; 14 runs."
    assert leads.startswith("MHR-mu, 2 shots leads with 42.5 ± ")
    assert re.search(
        r"MHR-z, 2 shots is 6\.7 points behind \(95% interval -?[\d.]+ to [\d.]+, p = [\d.]+ over 2 seeds, no sig",
        leads,
    )
    assert any("1 other tasks are listed only" in note for note in notes)


def test_every_section_and_table_is_there(written: Path) -> None:
    told = json.loads((written / "report.json").read_text())
    assert told["tables"].keys() == {
        "standings", "power", "categories", "tasks", "seen_and_unseen", "learning", "routing", "alignment", "alignment_layers",
        "transfer_0", "costs", "runs", "settings",
    }  # fmt: skip
    tasks = told["tables"]["tasks"]
    assert tasks["columns"][:3] == ["task", "category", "majority"]
    row = next(row for row in tasks["rows"] if row[0] == "tail-place")
    assert row[3:] == pytest.approx([0.3, 0.2, 0.6, 0.7])
    assert tasks["foot"][0][-1] == pytest.approx(0.425)
    seen = told["tables"]["seen_and_unseen"]["rows"]
    assert seen[0][1:] == [1, 0.9, 3, pytest.approx((0.3 + 0.15 + 0.1) / 3)]
    assert told["runs"]["MHR, pretrained"]["info"]["config"]["method"] == "mhr"


def test_markdown_has_the_same_tables(written: Path) -> None:
    markdown = (written / "report.md").read_text()
    told = json.loads((written / "report.json").read_text())
    for table in told["tables"].values():
        assert f"### {table['title']}\n" in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("| tail-place")]
    assert lines == ["| tail-place | tail | 10.0 | 30.0 | 20.0 | 60.0 ± 14.1 | **70.0 ± 14.1** |"]


def test_the_page_is_whole_and_stands_by_itself(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert "Two ways &lt;to&gt; adapt" in page

    class Checker(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.ids: list[str] = []
            self.outside: list[str] = []
            self.seen: list[str] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.seen.append(tag)
            if tag not in VOID:
                self.open.append(tag)
            for name, value in attributes:
                if name == "id":
                    self.ids.append(str(value))
                if name in ("src", "href", "xlink:href") and not str(value).startswith(("#", "data:")):
                    self.outside.append(str(value))

        def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.handle_starttag(tag, attributes)
            if tag not in VOID:
                self.handle_endtag(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in VOID:
                assert self.open.pop() == tag

    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.outside == []
    assert not re.search(r"@import|url\((?!#)", page)
    assert checker.seen.count("svg") >= 8
    sections = [
        i for i in checker.ids if i in ("summary", "tasks", "learning", "routing", "alignment", "costs", "manifest")
    ]
    assert len(sections) == 7
    for target in re.findall(r'href="#([\w-]+)"', page):
        assert target in checker.ids
    # No drawing keeps a colour that one of the two themes could not show.
    assert "#1c2024" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_figures_of_a_page_share_no_ids_that_differ(written: Path) -> None:
    page = (written / "report.html").read_text()
    contents: dict[str, set[str]] = {}
    for found in re.finditer(r'<(?:clipPath|path|g)[^>]* id="([^"]+)"[^>]*>(?:\s*<rect[^>]*>)?', page):
        contents.setdefault(found[1], set()).add(found[0])
    assert all(len(same) == 1 for same in contents.values())


def test_an_output_folder_that_is_in_use(written: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "mhr")
    with pytest.raises(MhrError, match="is not empty"):
        write_report([run], written)
    write_report([run], tmp_path / "again")
    write_report([run], tmp_path / "again", overwrite=True)


def test_a_report_without_scores_still_shows_the_runs(tmp_path: Path) -> None:
    made = make_report([a_run(tmp_path / "mhr")])
    assert "Pretraining: MHR, pretrained." in made.to_html()  # one curve has no legend
    assert [section.key for section in made.sections] == ["summary", "learning", "routing", "costs", "manifest"]
    assert made.sections[0].blocks[0] == "1 run, none of them evaluated."


def test_cells() -> None:
    assert score_cell(0.1234, 0.01) == Cell("12.3 ± 1.0", 0.1234)
    assert score_cell(None).text == ""
    assert [byte_size(n).text for n in (7, 1500, 2_000_000, 999_999)] == ["7 B", "1.5 kB", "2 MB", "1 MB"]
    assert [p_value(p) for p in (0.0001, 0.034, 0.5)] == ["p < 0.001", "p = 0.034", "p = 0.50"]
    table = Table("k", "T", ["a|b", "n"], [[text("x|y"), Cell("1", 1.0, best=True)]], note="N.")
    assert table.to_markdown() == "### T\n\n| a\\|b | n |\n|---|---:|\n| x\\|y | **1** |\n\nN.\n"
    assert table.to_json()["rows"] == [["x|y", 1.0]]
    markup = Table("k", "T", ["a"], [[text("<b>bold</b>")], [text("< 0.001")]])
    assert markup.to_markdown().splitlines()[4:] == ["| \\<b>bold\\</b> |", "| < 0.001 |"]


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window():
    if browser.find() is None:
        pytest.skip("no Chromium with its driver on this machine: apt-get install chromium chromium-driver")
    with browser.browsing() as opened:
        yield opened


def column(window: browser.Browser, table: str, index: int) -> list[str]:
    rows = f"[...document.querySelector('#table-{table}').tBodies[0].rows]"
    return window.run(f"return {rows}.map(r => r.cells[{index}].textContent)")


def click(window: browser.Browser, table: str, index: int) -> str:
    head = f"document.querySelector('#table-{table}').tHead.rows[0].cells[{index}]"
    return window.run(f"{head}.querySelector('button').click(); return {head}.getAttribute('aria-sort')")


def test_tables_sort_by_any_column_and_nothing_fails(window: browser.Browser, written: Path) -> None:
    window.open(written / "report.html")
    assert click(window, "tasks", 6) == "descending"  # numbers: the greatest first
    assert column(window, "tasks", 6) == ["70.0 ± 14.1", "42.5 ± 3.5", "15.0 ± 7.1", ""]  # what is missing comes last
    assert click(window, "tasks", 6) == "ascending"
    assert column(window, "tasks", 6) == ["15.0 ± 7.1", "42.5 ± 3.5", "70.0 ± 14.1", ""]
    assert click(window, "tasks", 0) == "ascending"  # names: from a
    names = column(window, "tasks", 0)
    assert names == sorted(names)
    foot = "document.querySelector('#table-tasks tfoot th').textContent"
    assert window.run(f"return {foot}") == "mean over 3 tasks"
    assert window.errors() == []
    assert window.requests() == []


@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 390)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_like_something(window: browser.Browser, written: Path, scheme: str, name: str, width: int) -> None:
    window.resize(width, 900)
    window.scheme(scheme)
    window.open(written / "report.html")
    assert window.run("return document.documentElement.scrollWidth") <= width  # only tables and figures scroll sideways
    picture = matplotlib.image.imread(io.BytesIO(window.screenshot()))[..., :3]
    assert picture.shape[:2] == (900, width)
    background = picture[5, 5].mean()
    assert (background > 0.9) == (scheme == "light")
    assert 0.02 < (abs(picture.mean(-1) - background) > 0.3).mean() < 0.5  # text and figures, and room around them


def test_it_prints(window: browser.Browser, written: Path) -> None:
    window.open(written / "report.html")
    printed = window.printed()
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000


def test_validations_are_drawn_and_tabled(tmp_path: Path) -> None:
    path = a_run(tmp_path / "mhr")
    plain = a_run(tmp_path / "poly", "poly")
    run = RunFolder.open(path)
    for step, (loss, score) in {10: (2.0, 0.25), 20: (1.0, 0.75), 30: (1.5, 0.5)}.items():
        run.log({"step": step, "validation": {"loss": loss, "score": score, "losses": {}, "scores": {}}})
    run.write(best={"step": 20, "loss": 1.0, "score": 0.75, "by": "loss", "kept": True})
    report = make_report([path, plain])
    tables = report.to_json()["tables"]
    (row,) = tables["validation"]["rows"]
    assert row == ["MHR, pretrained", 3, 1.5, 0.5, 20, 1.0, 0.75, "best"]
    assert [r[0] for r in tables["learning"]["rows"]] == ["MHR, pretrained", "Poly, pretrained"]
    assert tables["learning"]["rows"][0][2] == 40
    page = report.to_html()
    assert "Pretraining: validation loss, mean over tasks" in page
    assert "Pretraining: validation score, mean over tasks" in page
    assert "validation" not in make_report([plain]).to_json()["tables"]
