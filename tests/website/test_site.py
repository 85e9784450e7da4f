"""What the site is made of, without the packages that build it: `make docs` does that."""

import importlib
import json
import re
from pathlib import Path

import pytest

import datafree
from website import check, notebook, stage

tomllib = pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs").glob("*.ipynb"))


def in_navigation():
    """Pages of the site, as zensical.toml lists them."""
    items = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    titles = [value for item in items for value in item.values()]
    return [
        page
        for value in titles
        for page in ([value] if isinstance(value, str) else [p for i in value for p in i.values()])
    ]


def test_every_page_is_in_the_navigation_once():
    pages = in_navigation()
    assert len(set(pages)) == len(pages)
    assert {stage.place_of(page) for page in PAGES} <= set(pages)


def test_everything_public_is_in_the_reference():
    page = (ROOT / "docs" / "api.md").read_text()
    shown = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    assert [name for name in datafree.__all__ if not name.startswith("_") and name not in shown] == []


def test_what_the_reference_names_is_there():
    page = (ROOT / "docs" / "api.md").read_text()
    for path in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


def test_pages_of_the_navigation_are_staged():
    staged = dict(stage.staged(run=False))
    assert set(in_navigation()) <= staged.keys()
    assert "repository/src/datafree/pipeline.py.md" in staged  # linked from a page


@pytest.mark.parametrize(
    "page, link, expected",
    [
        ("docs/files.md", "[a](../examples/read_packed.py)", "[a](repository/examples/read_packed.py.md)"),
        ("docs/files.md", "[a](limits.md#the-estimate)", "[a](limits.md#the-estimate)"),
        ("docs/index.md", "[a](tour.ipynb)", "[a](tour.md)"),
        ("CHANGELOG.md", "[a](bench/README.md)", "[a](repository/bench/README.md)"),
        ("bench/README.md", "[a](tables/zoo.py)", "[a](tables/zoo.py.md)"),
        ("bench/README.md", "[a](../docs/limits.md)", "[a](../../limits.md)"),
        ("docs/files.md", "[a](https://a.b/c.md) [b](#c)", "[a](https://a.b/c.md) [b](#c)"),
        ("docs/files.md", "```text\n[a](../README.md)\n```", "```text\n[a](../README.md)\n```"),
        ("docs/files.md", "[a](nowhere.md)", "[a](nowhere.md)"),
    ],
)  # fmt: skip
def test_links_lead_to_the_place_of_the_file(page, link, expected):
    assert stage.relinked(link, ROOT / page) == expected


def test_code_is_shown_and_folders_are_listed():
    code = stage.shown(ROOT / "src/datafree/pipeline.py", run=False)
    assert code is not None and "\n# src/datafree/pipeline.py\n\n````python\n" in code
    folder = stage.shown(ROOT / "src/datafree/recipe/presets", run=False)
    assert folder is not None and "- [w8a8.yaml](w8a8.yaml)\n" in folder
    assert stage.shown(ROOT / "docs/pictures/steps.svg", run=False) is None


# ---- links of the built site


def site(tmp_path, **pages):
    for name, body in pages.items():
        (tmp_path / f"{name}.html").write_text(f"<body>{body}</body>")
    return check.problems(tmp_path)


def test_a_site_whose_links_all_lead_somewhere_has_no_problems(tmp_path):
    assert (
        site(tmp_path, a='<a href="b.html#c">x</a><a href="#d" id="d">y</a><a href="https://x.y">z</a>', b="<p id=c>")
        == []
    )


@pytest.mark.parametrize(
    "body, said",
    [
        ('<a href="c.html">', "a.html links to c.html: there is no such file"),
        ('<img src="c.png">', "a.html links to c.png: there is no such file"),
        ('<a href="b.html#e">', "a.html links to b.html#e: there is no such place on that page"),
        ('<script src="https://cdn.x/y.js"></script>', "a.html loads https://cdn.x/y.js from the network"),
        ('<link rel="stylesheet" href="//x/y.css">', "a.html loads //x/y.css from the network"),
    ],
)
def test_what_leads_nowhere_or_elsewhere_is_named(tmp_path, body, said):
    assert site(tmp_path, a=body, b="<p id=c>") == [said]


# ---- the notebook


def test_notebooks_are_kept_without_outputs():
    for file in (ROOT / "docs").glob("*.ipynb"):
        cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
        assert [c for c in cells if c["outputs"] or c["execution_count"] is not None] == []


def test_what_a_cell_printed_is_below_it():
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
        {"output_type": "stream", "name": "stdout", "text": ["2\n"]},
        {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": "<b>3</b>", "text/plain": "3"}},
        {"output_type": "execute_result", "data": {"text/plain": "4"}},
    ]
    cells = [{"cell_type": "markdown", "source": ["# A"]}, {"cell_type": "code", "source": ["f()"], "outputs": outputs}]
    page = notebook.as_markdown(json.dumps({"cells": cells}), Path("a.ipynb"))
    assert page.startswith("# A\n\n[This page as a notebook](a.ipynb)")
    shown = ["```python\nf()\n```", "```text\n1\n2\n```", "data:image/png;base64,AAAA", "<b>3</b>", "```text\n4\n```"]
    assert sorted(shown, key=page.index) == shown
    assert "<Figure>" not in page
