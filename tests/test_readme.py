"""The text for users says what is there: code that compiles, presets, fields and files that exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import datafree
import readme
from datafree.recipe import Recipe, presets
from datafree.recipe import schema as recipes
from datafree.signals import SIGNALS
from datafree.solve import ROUNDING

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
METHOD = (ROOT / "docs" / "method.md").read_text()
PRESETS = (ROOT / "docs" / "presets.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PRESET = re.compile(r"`((?:paper-)?(?:w\da\d(?:-tensor|-mixed)?|prune\d+(?:-w\da\d)?|nm\d+|channels\d+|slim))`")
PRESET_ROW = re.compile(r"^\| `([\w-]+)` \| (.*) \|$", re.MULTILINE)
FIELDS = {f"{c.__name__}.{f}": f for c in vars(recipes).values()
          if isinstance(c, type) and issubclass(c, BaseModel) for f in c.model_fields}  # fmt: skip


def anchors(markdown):
    """Of all headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for block in readme.blocks(page.read_text()):
        if block.language == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {path}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page.name} links to {target}"


def test_presets_named_are_those_that_exist():
    assert set(PRESET.findall(PRESETS)) == set(presets())
    assert [name for name, _ in PRESET_ROW.findall(PRESETS)] == presets()


@pytest.mark.parametrize("name, cells", PRESET_ROW.findall(PRESETS), ids=lambda value: value.partition(" ")[0])
def test_preset_does_what_its_row_says(name, cells):
    r = Recipe.preset(name)
    ends = "8 bits" if r.first_last == 8 else "same"
    order = ", in sequence" if r.solve.sequential else ""
    solve = f"{r.equalize} | {r.signal.kind} | {r.solve.method}{order}"
    if r.slim == "on":
        assert (
            cells
            == f"channels that do nothing | all of them | float | float | {r.equalize} | {r.signal.kind} | nothing"
        )
        assert r.prune is r.weights.bits is r.activations.bits is None
        return
    if r.prune is None:
        mean = r.budget and r.budget.mean_activation_bits
        inputs = f"{r.activations.bits} to 8 bits, {mean:g} on average" if mean else f"{r.activations.bits} bits"
        assert cells == f"{r.weights.bits} bits | {r.weights.per} | {inputs} | {ends} | {solve}"
        return
    of = {"unstructured": "the weights", "channels": "the multiply-adds"}.get(r.prune.pattern, r.prune.pattern)
    bits = " | ".join(f"{part.bits} bits" if part.bits else "float" for part in (r.weights, r.activations))
    assert cells == f"{100 * r.prune.sparsity:.0f} % of {of} | {r.prune.score} | {bits} | {solve}"


def test_every_field_of_a_recipe_is_explained():
    text = (ROOT / "docs" / "recipe.md").read_text()
    headings = " ".join(re.findall(r"^## (.*)$", text, re.MULTILINE))
    assert [f for f, name in FIELDS.items() if f"`{name}`" not in text and name not in headings] == []


def rows_of(heading):
    """Name and cells of every row of the first table below a heading of the method's page."""
    text = METHOD.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {row[0]: row[1].split(" | ") for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)}


@pytest.mark.parametrize(
    "heading, kinds",
    [
        ("Signal", {kind.model_fields["kind"].default for kind in SIGNALS if kind.__module__.startswith("datafree.")}),
        ("One layer", {m.model_fields["method"].default for m in ROUNDING if m.__module__.startswith("datafree.")}),
    ],
    ids=["signals", "rounding"],
)
def test_every_kind_has_its_equation_and_its_source(heading, kinds):
    rows = rows_of(heading)
    assert rows.keys() == kinds
    without = [name for name, (*_, source) in rows.items() if not re.search(r"arXiv|ours|the paper", source)]
    assert set(without) <= {"loader", "nearest"}


def test_recipes_shown_are_recipes():
    shown = [b for b in readme.blocks((ROOT / "docs" / "recipe.md").read_text()) if b.language == "yaml"]
    assert len(shown) > 1
    for block in shown:
        assert Recipe.parse(block.text).layers


def test_first_recipe_shown_names_every_part():
    first = next(b for b in readme.blocks((ROOT / "docs" / "recipe.md").read_text()) if b.language == "yaml")
    assert yaml.safe_load(first.text).keys() == Recipe.model_fields.keys()


@pytest.mark.parametrize("page, block", [("README.md", "lite0 table"), ("docs/accuracy.md", "zoo table")])
def test_tables_of_real_networks_have_their_places(page, block):
    assert re.search(rf"^<!-- {block} -->$.*^<!-- end -->$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_readme_is_short():
    text = re.sub(r"^\|.*$|^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    assert len(text.split()) <= 900


def test_first_paragraph_is_made_from_rows():
    """By `bench/tables/render.py`."""
    assert re.search(r"^<!-- first paragraph -->\n.+^<!-- end -->$", README, re.MULTILINE | re.DOTALL)


# The script that runs the blocks


def run(tmp_path, capsys, text):
    (tmp_path / "page.md").write_text(text)
    code = readme.main([str(tmp_path / "page.md")])
    return code, capsys.readouterr().out


def test_blocks_share_a_namespace_and_a_directory(tmp_path, capsys):
    text = "```python\nx = 1\nopen('f', 'w').close()\n```\n```python\nassert x == 1\n```\n```sh\ntest -f f\n```\n"
    code, out = run(tmp_path, capsys, text)
    assert code == 0
    assert out.splitlines() == [
        "page.md:2 x = 1: ok", "page.md:6 assert x == 1: ok", "page.md:9 test -f f: ok", "3 passed, 0 failed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "block, said",
    [
        ("python\n1 / 0", "ZeroDivisionError"),
        ("python\nx = (", "SyntaxError"),
        ("python\nraise SystemExit", "SystemExit"),
        ("sh\necho hello; false; true", "hello\nexit code 1"),
    ],
)
def test_a_block_that_fails_is_shown(block, said, tmp_path, capsys):
    code, out = run(tmp_path, capsys, f"```{block}\n```\n```sh\ntrue\n```\n")
    assert code == 1
    assert said in out and out.endswith("1 passed, 1 failed\n")


def test_a_block_that_is_a_file_is_there_for_those_after_it(tmp_path, capsys):
    blocks = ("python\n# file: kept.py\nx = 1", "python\nfrom kept import x\nassert x == 1", "sh\ntest -f kept.py")
    text = "".join(f"```{block}\n```\n" for block in blocks)
    code, out = run(tmp_path, capsys, text)
    assert (code, out.splitlines()[-1]) == (0, "3 passed, 0 failed")
    assert not any(Path(place, "kept.py").exists() for place in sys.path)


@pytest.mark.slow  # CI runs the page
def test_the_examples_of_own_kinds_run():
    """In a process of their own, for they add rows to the tables."""
    command = [sys.executable, str(ROOT / "tests" / "readme.py"), str(ROOT / "docs" / "extending.md")]
    environment = {**os.environ, "PYTHONPATH": str(Path(datafree.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("7 passed, 0 failed\n")


def test_setting_up_is_not_run(tmp_path, capsys):
    code, out = run(
        tmp_path, capsys, "```sh\nmake demo\n```\n```sh\ngit clone x\n```\n```text\nx\n```\n```sh\ntrue\n```\n"
    )
    assert (code, out.splitlines()[-1]) == (0, "1 passed, 0 failed")


def test_a_page_without_code_fails(tmp_path, capsys):
    assert run(tmp_path, capsys, "# Nothing\n") == (1, "0 passed, 0 failed\n")
