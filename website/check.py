"""Whether every link of the built site leads somewhere, and nothing is loaded from the network."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
REMARKS = ("canonical", "next", "prev", "preconnect")  # relations of <link> that load no file


class Page(HTMLParser):
    """What a page offers (ids), links to and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.update(found[name] for name in ("id", "name") if name in found)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADED and found.get(LOADED[tag]) and found.get("rel") not in REMARKS:
            self.loads.append(found[LOADED[tag]])


def problems(site: Path) -> list[str]:
    """One line for each: a file or an anchor that is not there, a file that comes from elsewhere."""
    found = []
    for file in sorted(site.rglob("*.html")):
        page, name = _page(file), file.relative_to(site)
        found += [f"{name} loads {url} from the network" for url in page.loads if urlsplit(url).netloc]
        for url in dict.fromkeys(page.links + page.loads):
            if reason := _broken(url, file, site):
                found.append(f"{name} links to {url}: {reason}")
    return found


def _broken(url: str, file: Path, site: Path) -> str | None:
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
        return None
    path = unquote(parts.path)
    target = site / path.lstrip("/") if path.startswith("/") else (file.parent / path).resolve() if path else file
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return None if file.name == "404.html" else "there is no such file"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in _page(target).ids:
        return None if parts.fragment.startswith("__") else "there is no such place on that page"
    return None


@cache
def _page(file: Path) -> Page:
    return Page(file.read_text())
