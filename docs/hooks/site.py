"""What the site shows of files outside docs/: each stands in one place of the repository.

Other folders' Markdown, pictures and lists become pages and files of the site under the same path.
Links are written as they hold in the repository, and changed where the site differs. In a page

- ``<!-- file: PATH -->`` is replaced by that Markdown file of the repository without its title,
- ``<!-- from README.md: NAME -->`` by what stands there between ``<!-- NAME -->`` and
  ``<!-- /NAME -->``,
- ``<!-- trained models -->`` by a table of the models that come with the package.

Formulas become MathML, which browsers show without a script.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MIRRORED = (
    "benchmarks/README.md",
    "benchmarks/results/README.md",
    "benchmarks/results/*.png",
    "datasets/README.md",
    "datasets/*/README.md",
    "datasets/*/*.txt",
    "examples/README.md",
    "results/README.md",
    "results/*.png",
    "results/*/*.png",
    "CHANGELOG.md",
)
CARDS = "hipnn_pyg/pretrained/*/card.md"
CARD_PAGE = re.compile(r"models/.*\.md")
CARD_PICTURES = "hipnn_pyg/pretrained/*/*.png"
FILE = re.compile(r"^<!-- file: (\S+) -->$", re.M)
FROM_README = re.compile(r"<!-- from README\.md: (\w+) -->")
FORMULA = re.compile(r'(class="arithmatex">)\\([(\[])(.*?)\\[)\]](</)', re.S)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def mirrored() -> dict[str, Path]:
    """Files of the repository that the site shows, by their place in the site."""
    found = {
        str(path.relative_to(ROOT)): path for pattern in MIRRORED for path in ROOT.glob(pattern)
    }
    cards = {f"models/{card.parent.name}.md": card for card in ROOT.glob(CARDS)}
    pictures = {f"models/{path.parent.name}-{path.name}": path for path in ROOT.glob(CARD_PICTURES)}
    return dict(sorted((found | cards | pictures).items()))


def in_repository(place: str) -> str:
    """Where a page or file of the site stands in the repository.

    Args:
        place: its path in the site's sources.
    """
    path = mirrored().get(place)
    return f"docs/{place}" if path is None else str(path.relative_to(ROOT))


def relinked(markdown: str, source: str, place: str) -> str:
    """Text whose links between files of the repository hold in the site.

    Args:
        markdown: the text.
        source: the file that it is from, as a path in the repository.
        place: the page that shows it, as a path in the site's sources.
    """
    places = {str(path.relative_to(ROOT)): where for where, path in mirrored().items()}

    def relink(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        target = path.removeprefix("docs/") if path.startswith("docs/") else places.get(path)
        if target is None:
            return match[0]
        return "](" + posixpath.relpath(target, posixpath.dirname(place) or ".")

    return LINK.sub(relink, markdown)


def of_file(source: str, place: str) -> str:
    """A Markdown file without its title, for a page that shows it.

    Args:
        source: the file, as a path in the repository.
        place: the page, as a path in the site's sources.
    """
    text = re.sub(r"\A# .*\n+", "", (ROOT / source).read_text())
    return relinked(text, source, place).rstrip("\n")


def from_readme(name: str) -> str:
    """A table of the README.

    Args:
        name: between which markers.

    Raises:
        ValueError: the README has no such markers.
    """
    text = (ROOT / "README.md").read_text()
    match = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.S)
    if match is None:
        raise ValueError(f"README.md has no <!-- {name} --> ... <!-- /{name} -->")
    return match[1]


def trained_models(place: str) -> str:
    """The models that come with the package, with links from a page and figures of their cards."""
    cards = {card: path for card, path in mirrored().items() if CARD_PAGE.fullmatch(card)}
    if not cards:
        return "No model comes with this version; `hipnn train` makes one."
    lines = [
        "| model | geometry | MAE (kcal/mol) | 90 % half-width | CRPS with R | spread | both |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for card, path in cards.items():
        report = json.loads((path.parent / "calibration.json").read_text())
        link = posixpath.relpath(card, posixpath.dirname(place) or ".")
        for geometry, values in report["geometries"].items():
            width = values["mean_half_width"][values["levels"].index(0.9)]
            gains = {
                row["kind"]: f"{row['crps_relative']:.3f} ± {row['crps_relative_se']:.3f}"
                for row in report["comparison"][geometry]
            }
            cells = [
                f"[{Path(card).stem}]({link})",
                {"given": "DFT", "rdkit": "RDKit"}[geometry],
                f"{values['statistics']['mae']:.3f}",
                f"{width:.3f}",
                *(gains.get(kind, "-") for kind in ("R", "ensemble", "R and ensemble")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page_of(markdown: str, place: str) -> str:
    """A page as the site shows it.

    Args:
        markdown: as it stands in the repository.
        place: its path in the site's sources.
    """
    page = relinked(markdown, in_repository(place), place)
    page = FILE.sub(lambda match: of_file(match[1], place), page)
    page = FROM_README.sub(lambda m: relinked(from_readme(m[1]), "README.md", place), page)
    return page.replace("<!-- trained models -->", trained_models(place))


def with_mathml(page: str) -> str:
    """HTML whose formulas, as pymdownx.arithmatex marks them, are MathML."""
    from latex2mathml.converter import convert

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        return match[1] + convert(html.unescape(match[3]).strip(), display=display) + match[4]

    return FORMULA.sub(mathml, page)


def on_files(files: Any, config: Any) -> Any:
    """MkDocs asks for the files of the site."""
    from mkdocs.structure.files import File

    for place, path in mirrored().items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs hands over a page before it is rendered."""
    return page_of(markdown, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """MkDocs hands over a page after it is rendered."""
    return with_mathml(html)
