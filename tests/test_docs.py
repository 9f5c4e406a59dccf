"""The documentation holds: its Python runs, its commands parse, its names and links exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import posixpath
import re
import shlex
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.datasets
import yaml
from ase.build import molecule
from jsonargparse import ArgumentError
from torch_geometric.data import Data, InMemoryDataset

from hipnn_pyg.cli import parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FENCE = re.compile(r"^(?:<!-- not run: (.+) -->\n)?```(\w+)\n(.*?)^```$", re.M | re.S)
REFERENCE = re.compile(r"\]\[([\w.]+)\]")
PUBLIC = ["", ".nn", ".models", ".graph", ".train", ".data", ".interfaces", ".uncertainty"]
PUBLIC += [".plots", ".explain"]


def load_hook(name: str) -> types.ModuleType:
    """A file of docs/hooks."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site, roles = load_hook("site"), load_hook("roles")


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language, but for what says why it cannot run here."""
    found = FENCE.findall((DOCS / page).read_text())
    return [code for reason, kind, code in found if kind == language and not reason]


# -- Python ------------------------------------------------------------------------------------


class FewMolecules(InMemoryDataset):
    """Stands for PyG's QM9: 32 molecules with its 19 columns, energies by the number of atoms."""

    def __init__(self, root: str) -> None:
        super().__init__()
        items = []
        for seed in range(32):
            atoms = molecule(("CH4", "NH3", "H2O", "CH3OH")[seed % 4])
            atoms.rattle(0.05, seed=seed)
            z, pos = torch.tensor(atoms.numbers), torch.tensor(atoms.positions).float()
            items.append(Data(z=z, pos=pos, y=torch.full((1, 19), -4.0 * len(z) - 0.1 * seed)))
        self.data, self.slices = self.collate(items)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to work in, PyG's QM9 without a download, and the process left as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch_geometric.datasets, "QM9", FewMolecules)
    with torch.random.fork_rng(devices=[]):
        yield


def run_page(name: str, codes: list[str]) -> dict[str, Any]:
    """Run the Python of a page from top to bottom in one namespace."""
    space: dict[str, Any] = {"__name__": f"docs_{Path(name).stem}"}
    for number, code in enumerate(codes, 1):
        exec(compile(code, f"{name}, block {number}", "exec"), space)
    return space


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page: str, elsewhere: None) -> None:
    run_page(page, blocks(page, "python"))


def test_control_python_that_fails_is_seen(elsewhere: None) -> None:
    codes = blocks("data.md", "python")
    wrong = [code.replace('unit == "eV"', 'unit == "Hartree"') for code in codes]
    assert wrong != codes
    with pytest.raises(AssertionError) as caught:
        run_page("data.md", wrong)
    failed = caught.traceback[-1]
    number = int(str(failed.path).rpartition(" ")[2])
    assert 'unit == "Hartree"' in wrong[number - 1].splitlines()[failed.lineno]


# -- commands ----------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """The ``hipnn`` commands of shell code, continued lines joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[words.index("hipnn") + 1 :] for words in split if "hipnn" in words]


def test_commands_parse() -> None:
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
    found = [block for text in [*texts, *pages().values()] for block in FENCE.findall(text)]
    codes = [code for reason, kind, code in found if kind in ("sh", "bash") and not reason]
    seen = [argv for code in codes for argv in commands(code)]
    assert len(seen) > 40
    top = parser()
    for argv in seen:
        try:
            top.parse_args(argv)
        except SystemExit:
            pytest.fail(f"hipnn {shlex.join(argv)}")


@pytest.mark.parametrize("argv", ["train qm9 --recipe slow", "md a.xyz", "forget qm9"])
def test_control_a_wrong_command_is_seen(argv: str) -> None:
    with pytest.raises((SystemExit, ArgumentError)):
        parser().parse_args(argv.split())


# -- names and links ---------------------------------------------------------------------------


def find(path: str) -> object:
    """The object of a dotted path.

    Raises:
        AttributeError: there is none.
    """
    module, *rest = path.split(".")
    found: Any = importlib.import_module(module)
    for name in rest:
        if isinstance(found, types.ModuleType) and not hasattr(found, name):
            try:
                importlib.import_module(f"{found.__name__}.{name}")
            except ModuleNotFoundError as error:
                raise AttributeError(path) from error
        found = getattr(found, name)
    return found


def documented_modules() -> list[str]:
    api = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: (\S+)$", api, re.M)


REFERRING = [page for page in PAGES if REFERENCE.search((DOCS / page).read_text())]


@pytest.mark.parametrize("page", REFERRING)
def test_names_exist_and_are_in_the_reference(page: str) -> None:
    modules = documented_modules()
    for name in REFERENCE.findall((DOCS / page).read_text()):
        found = find(name)
        assert found.__doc__ or not callable(found), name
        assert any(name == module or name.startswith(f"{module}.") for module in modules), name


def test_equations_1_to_18_have_code() -> None:
    text = (DOCS / "theory.md").read_text()
    rows = [row for row in re.findall(r"^\| (\d[\d, ]*) \|(.*)$", text, re.M)]
    numbers = [int(number) for row, _ in rows for number in row.split(",")]
    assert numbers == [*range(1, 19)]
    assert all(REFERENCE.search(rest) for _, rest in rows)


@pytest.mark.parametrize("name", ["hipnn_pyg.nn.cutoff.cosine_cutof", "hipnn_pyg.nm.cutoff"])
def test_control_a_wrong_name_is_seen(name: str) -> None:
    assert find("hipnn_pyg.nn.cutoff.cosine_cutoff")
    with pytest.raises(AttributeError):
        find(name)


def test_public_names_are_in_the_reference() -> None:
    modules = documented_modules()
    assert len(set(modules)) == len(modules)
    for name in modules:
        assert find(name).__doc__, name
    for part in PUBLIC:
        package = importlib.import_module(f"hipnn_pyg{part}")
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            home = getattr(value, "__module__", None)
            if isinstance(home, str) and home.startswith("hipnn_pyg"):
                assert home in modules, f"{package.__name__}.{name}, of {home}"
    index = REFERENCE.findall((DOCS / "api" / "index.md").read_text())
    top = importlib.import_module("hipnn_pyg").__all__
    assert sorted(path.rpartition(".")[2] for path in index) == sorted(top)


def pages() -> dict[str, str]:
    """Every page of the site: place -> text."""
    texts = {page: (DOCS / page).read_text() for page in PAGES}
    mirrored = site.mirrored().items()
    return texts | {place: path.read_text() for place, path in mirrored if place.endswith(".md")}


def places() -> set[str]:
    """Every page and file of the site's sources."""
    own = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.is_file()}
    return own | set(site.mirrored())


def broken_links(place: str, text: str, there: set[str]) -> list[str]:
    """Relative links of a page, and of what it includes, that lead nowhere in the site."""
    targets = [match[1] for match in site.LINK.finditer(site.page_of(text, place))]
    folder = posixpath.dirname(place)
    return [t for t in targets if posixpath.normpath(posixpath.join(folder, t)) not in there]


def test_links_hold() -> None:
    there = places()
    broken = {place: broken_links(place, text, there) for place, text in pages().items()}
    assert {place: links for place, links in broken.items() if links} == {}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_repository_hold(name: str) -> None:
    links = re.findall(r"\]\(((?!\w+:|#)[^)#\s]+)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_control_a_wrong_link_is_seen() -> None:
    there = places()
    assert (
        broken_links("index.md", "[a](theory.md) [b](https://pyg.org) [c](#install)", there) == []
    )
    assert broken_links("index.md", "[a](theories.md)", there) == ["theories.md"]
    assert broken_links("index.md", "[a](../datasets/README.md)", there) == []
    assert broken_links("datasets/README.md", "[a](../docs/theory.md)", there) == []
    assert broken_links("datasets/README.md", "[a](../docs/theories.md)", there) != []


def test_pages_are_in_the_menu() -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def leaves(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            parts = entry.values() if isinstance(entry, dict) else entry
            for part in parts:
                yield from leaves(part)

    listed = [*leaves(menu)]
    pages = {place for place in places() if place.endswith(".md") and "models/" not in place}
    assert len(set(listed)) == len(listed)
    assert set(listed) == pages


# -- what the build makes of pages and docstrings ----------------------------------------------


def test_tables_come_from_their_files() -> None:
    shown = site.page_of((DOCS / "reproduction.md").read_text(), "reproduction.md")
    assert "<!--" not in shown
    for name in ("table1", "table2", "table3", "fig3", "time-curve"):
        text = (ROOT / "results" / f"{name}.md").read_text()
        assert text.replace("](", "](results/").strip() in shown
    table = site.page_of("<!-- from README.md: comparison -->", "index.md")
    assert table.startswith("|  | HIPNN | SchNet |") and table in (ROOT / "README.md").read_text()
    with pytest.raises(ValueError, match="no <!-- nothing -->"):
        site.page_of("<!-- from README.md: nothing -->", "index.md")
    with pytest.raises(FileNotFoundError):
        site.page_of("<!-- file: results/nothing.md -->", "index.md")


def test_trained_models_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = site.mirrored()
    bare = {place: path for place, path in known.items() if not place.startswith("models/")}
    monkeypatch.setattr(site, "mirrored", lambda: bare)
    assert site.page_of("<!-- trained models -->", "index.md").startswith("No model comes")
    card = {"models/qm9-u0.md": ROOT / "hipnn_pyg" / "pretrained" / "qm9-u0" / "card.md"}
    monkeypatch.setattr(site, "mirrored", lambda: bare | card)
    first, *_, last = site.page_of("<!-- trained models -->", "a/b.md").splitlines()
    text = card["models/qm9-u0.md"].read_text()
    link, geometry, mae, width, gain, *others = last.strip("| ").split(" | ")
    assert first.startswith("| model ") and link == "[qm9-u0](../models/qm9-u0.md)"
    assert geometry == "RDKit" and others == ["-", "-"]  # no ensemble
    (statistics,) = re.findall(r"^\| RDKit geometry \| [\d,]+ \| (\S+) ", text, re.M)
    gains = re.findall(r"^\| \S+, RDKit geometry \|.*\| (\S+ ± \S+) \|$", text, re.M)
    (widths,) = re.findall(r"^\| RDKit geometry, mean half-width \| \S+ \| (\S+) ", text, re.M)
    assert (mae, width, ["1.000 ± 0.000", gain]) == (statistics, widths, gains)


def test_formulas_become_mathml() -> None:
    page = r'a <span class="arithmatex">\(x &lt; \frac{1}{2}\)</span> b <code>\(x\)</code>'
    shown = site.with_mathml(page)
    assert (
        "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in shown
        and 'display="inline"' in shown
    )
    assert shown.startswith('a <span class="arithmatex"><math') and shown.count("<math") == 1
    assert shown.endswith(r"</math></span> b <code>\(x\)</code>")
    block = site.with_mathml(r'<div class="arithmatex">\[ E = \sum_i E_i \]</div>')
    assert 'display="block"' in block and "\\" not in block


def rewritten(text: str) -> str:
    return roles.as_markdown(text, lambda label, name: f"<{label}|{name}>")


def test_roles_become_markdown() -> None:
    assert rewritten("see :func:`a.b` and :class:`~c.D`") == "see <a.b|a.b> and <D|c.D>"
    assert rewritten("at :math:`r \\le\n    R`, ``x``") == "at $r \\le R$, ``x``"
    formula = rewritten("Eq. 1.\n\n.. math:: a = b,\n    \\quad c\n\nArgs:\n    x: y")
    assert formula == "Eq. 1.\n\n\n$$\na = b,\n\\quad c\n$$\n\nArgs:\n    x: y"
    table = rewritten("===  =====\na    b c\n===  =====\n1    2 3\n===  =====")
    assert table == "| a | b c |\n|---|---|\n| 1 | 2 3 |"
    assert rewritten("so::\n\n    x = 1\n    y = 2\n\nend") == (
        "so:\n\n```python\nx = 1\ny = 2\n```\n\nend"
    )


def test_every_docstring_becomes_markdown() -> None:
    docstrings = []
    for name in documented_modules():
        tree = ast.parse(Path(inspect.getfile(importlib.import_module(name))).read_text())
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        docstrings += [ast.get_docstring(node) or "" for node in nodes]
    left = re.compile(r":\w+:`|\.\. \w+::|^=+ +=+|::$", re.M)
    assert sum(bool(left.search(text)) for text in docstrings) > 50
    assert [text for text in docstrings if left.search(rewritten(text))] == []
