"""Docstrings for the API reference: Sphinx roles, formulas and simple tables become Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from griffe import Extension, NameResolutionError, Object

API = Path(__file__).parents[1] / "api"
ROLE = re.compile(r":(?:func|class|meth|attr|data|mod|exc):`(~?)([^`]+)`")
MATH = re.compile(r":math:`([^`]+)`")
FORMULA = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*| *$))*)", re.M)
RULE = r"=+(?: +=+)+"
TABLE = re.compile(rf"^( *){RULE}\n(.*\n)\1{RULE}\n((?:.*\n)*?)\1{RULE}$", re.M)
CODE = re.compile(r"::\n\n((?: +.*\n)(?:(?: +.*)?\n)*(?: +.*)?)")


def documented() -> set[str]:
    """Modules that have a place in the API reference."""
    pages = "\n".join(page.read_text() for page in API.glob("*.md"))
    return set(re.findall(r"^::: (\S+)$", pages, re.M))


def as_markdown(text: str, link: Callable[[str, str], str]) -> str:
    """A docstring without reStructuredText.

    Args:
        text: the docstring.
        link: label and name of a reference to what stands in its place.
    """
    text = TABLE.sub(_table, text)
    text = FORMULA.sub(_formula, text)
    text = MATH.sub(lambda m: f"${' '.join(m[1].split())}$", text)
    text = CODE.sub(_code, text)
    return ROLE.sub(lambda m: link(m[2].rpartition(".")[2] if m[1] else m[2], m[2]), text)


def _formula(match: re.Match[str]) -> str:
    lines = [line.strip() for line in match[2].strip().splitlines()]
    return "\n".join(f"{match[1]}{line}" for line in ("", "$$", *lines, "$$", ""))


def _code(match: re.Match[str]) -> str:
    return f":\n\n```python\n{inspect.cleandoc(match[1])}\n```\n\n"


def _table(match: re.Match[str]) -> str:
    indent, head, body = match[1], match[2], match[3]
    rows = [re.split(r" {2,}", line.strip()) for line in (head + body).splitlines()]
    cells = ["| " + " | ".join(row) + " |" for row in rows]
    cells.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(f"{indent}{line}" for line in cells)


class Roles(Extension):
    """Rewrites every docstring before it is parsed."""

    def __init__(self) -> None:
        super().__init__()
        self.modules = documented()

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class, function and attribute once the package is loaded."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = as_markdown(text, lambda label, name: self.link(obj, label, name))

    def link(self, obj: Object, label: str, name: str) -> str:
        """A reference to what the API reference documents; else the name alone."""
        try:
            path = name if name.startswith("hipnn_pyg") else obj.resolve(name)
            target = obj.modules_collection[path]
            path = target.canonical_path
        except (KeyError, NameResolutionError):
            return f"`{label}`"
        known = target.module.canonical_path in self.modules and target.docstring is not None
        shown = known and "._" not in path
        return f"[`{label}`][{path}]" if shown else f"`{label}`"
