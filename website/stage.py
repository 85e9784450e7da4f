"""The Markdown that the site is made of: docs/, and every file of the repository that it links to.

Links in docs/ are those that work in a clone. A page of the site may link to pages of the site alone, so the files they
lead to come along: Markdown as a page, code as a page that shows it, a folder as a list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from website.notebook import as_markdown, executed

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".jsonl": "json", "": "text"}
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # pages that lie where GitHub looks for them
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
SHOWN = 200_000  # bytes of a file; longer ones are cut


def staged(*, run: bool) -> Iterator[tuple[str, bytes]]:
    """(path in the site's source, content), docs/ first, then what it links to, and so on.

    Args:
        run: execute notebooks, and show what they print.
    """
    waiting = [*sorted(p for p in (ROOT / "docs").rglob("*") if p.is_file()), *(ROOT / name for name in BESIDE)]
    seen = set(waiting)
    while waiting:
        file = waiting.pop(0)
        text = shown(file, run=run)
        if text is None:
            yield place_of(file), file.read_bytes()
            continue
        yield place_of(file), relinked(text, file).encode()
        linked = [target for target in targets(text, file) if target not in seen]
        seen.update(linked)
        waiting += linked
        if file.suffix == ".ipynb":
            yield str(file.relative_to(ROOT / "docs")), file.read_bytes()


def place_of(file: Path) -> str:
    """Where the site keeps a file of the repository."""
    path = file.relative_to(ROOT)
    if path.parts[0] == "docs":
        inside = path.relative_to("docs")
        return str(inside.with_suffix(".md") if inside.suffix == ".ipynb" else inside)
    if str(path) in BESIDE:
        return f"{path.stem.lower()}.md"
    return f"repository/{path}" if path.suffix == ".md" else f"repository/{path}.md"


def shown(file: Path, *, run: bool) -> str | None:
    """A file as Markdown; None, where it is copied as it is."""
    name = str(file.relative_to(ROOT))
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if not p.name.startswith(("_", ".")))
        return f"# {name}/\n\n" + "".join(f"- [{child}]({child})\n" for child in inside)
    if file.suffix == ".md":
        return file.read_text()
    if file.suffix == ".ipynb":
        return as_markdown(executed(file) if run else file.read_text(), file)
    if name.startswith("docs/"):
        return None
    return (
        f"{UNSEARCHED}# {name}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text()[:SHOWN].rstrip()}\n````\n"
    )


def targets(text: str, file: Path) -> list[Path]:
    """The files of the repository that a page links to, in order."""
    found = [_absolute(file, match[1]) for match in LINK.finditer(_prose(text, file))]
    return [path for path in dict.fromkeys(found) if path.exists()]


def relinked(text: str, file: Path) -> str:
    """The page with its links as they are in the site."""

    def link(match: re.Match[str]) -> str:
        target = _absolute(file, match[1])
        if not target.exists():
            return match[0]  # the builder refuses it, and names the line
        here = PurePosixPath(place_of(file)).parent
        return os.path.relpath(place_of(target), here) + (match[2] or "")

    if not _prose(text, file):
        return text
    parts, last = [], 0
    for fence in FENCED.finditer(text):
        parts += [LINK.sub(link, text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, LINK.sub(link, text[last:])])


def _prose(text: str, file: Path) -> str:
    """What of a page may hold links."""
    return FENCED.sub("", text) if file.is_dir() or file.suffix in (".md", ".ipynb") else ""


def _absolute(file: Path, target: str) -> Path:
    folder = file if file.is_dir() else file.parent
    return Path(os.path.normpath(folder / target))
