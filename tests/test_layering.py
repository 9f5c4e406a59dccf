"""The package reads in one order, and imports only point back along it; importing it is silent."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hipnn_pyg

PACKAGE = Path(hipnn_pyg.__file__).parent
ORDER = (
    "units paper checks ops graph data nn models train uncertainty interfaces plots reproduce "
    "explain cli"
).split()
RANK = {part: place for place, part in enumerate(ORDER)} | {"testing": ORDER.index("models") + 0.5}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE / "__pycache__")


def imported(source: str) -> Iterator[str]:
    """Names of modules that a source file imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [alias.name for alias in node.names]
            yield from ([f"{node.module}.{name}" for name in names] if node.module else names)


def forward_imports(part: str, source: str) -> list[str]:
    """Imports that point forward along the order (``__version__`` belongs to nobody)."""
    wrong = []
    for name in imported(source):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package == "hipnn_pyg" and target != "__version__" and part != "__init__":
            if target not in RANK or RANK[target] > RANK[part]:
                wrong.append(name)
    return wrong


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_back(path: Path) -> None:
    part = part_of(path)
    assert part in RANK or part in ("__init__", "__main__"), f"{part} has no place in the order"
    if part != "__main__":
        assert forward_imports(part, path.read_text()) == []


def test_control_a_forward_import_is_seen() -> None:
    assert forward_imports("nn", "from hipnn_pyg.models import HIPNN") == ["hipnn_pyg.models.HIPNN"]
    assert forward_imports("nn", "def f():\n    import hipnn_pyg.train.loss")
    assert forward_imports("data", "from hipnn_pyg import HIPNN")  # the top sees everything
    assert not forward_imports("models", "from hipnn_pyg.nn import Sensitivity\nimport torch")


def test_every_part_of_the_order_exists() -> None:
    assert {part_of(path) for path in MODULES} - {"__init__", "__main__"} == set(RANK)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_import_is_light_and_silent() -> None:
    heavy = "{'matplotlib', 'rdkit', 'lightning', 'pytorch_lightning', 'torchmetrics', 'hippynn'}"
    code = f"import sys, hipnn_pyg; assert hipnn_pyg.HIPNN; heavy = {heavy} & set(sys.modules); "
    result = run(code + "assert not heavy, heavy")
    assert result.stdout == "" and result.stderr == ""
    control = run(code + "import rdkit; print(sorted({'rdkit'} & set(sys.modules)))")
    assert control.stdout == "['rdkit']\n"


def test_commands_start_without_what_few_of_them_need() -> None:
    """What only training needs took a fifth of the time until ``hipnn --help`` spoke."""
    code = "import sys, hipnn_pyg.cli; print({'lightning', 'rdkit', 'torch'} & set(sys.modules))"
    assert run(code).stdout == "{'torch'}\n"


def test_public_names_exist_and_are_documented() -> None:
    assert len(set(hipnn_pyg.__all__)) == len(hipnn_pyg.__all__)
    for name in hipnn_pyg.__all__:
        assert getattr(hipnn_pyg, name).__doc__, name
