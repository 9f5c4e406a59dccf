"""`hipnn explain`: the parts add up, the page says what the model says and loads nothing."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

import hipnn_pyg.explain
from hipnn_pyg import HIPNN, load_model
from hipnn_pyg.checks import StructureError
from hipnn_pyg.cli import inputs, main
from hipnn_pyg.cli.explain import facts
from hipnn_pyg.data.molecules import from_smiles, read_structures
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.explain import (
    Breakdown,
    Report,
    Trust,
    break_down,
    known_r,
    render,
    stand,
    summary,
    tables,
)
from hipnn_pyg.explain.colours import colourings
from hipnn_pyg.explain.page import number
from hipnn_pyg.explain.trust import _reasons
from hipnn_pyg.models.files import ModelFileError
from hipnn_pyg.plots.style import BLUE, VERMILION
from hipnn_pyg.uncertainty import (
    CalibratedModel,
    ConformalIntervals,
    ErrorBars,
    FeatureStatistics,
    take_sample,
)
from hipnn_pyg.uncertainty.error_bars import Calibration
from hipnn_pyg.units import convert

Capture = pytest.CaptureFixture[str]
VIEWER = Path(hipnn_pyg.explain.__file__).parent / "viewer"


@pytest.fixture
def ethanol(molecules: Batch) -> Data:
    return molecules.to_data_list()[3]


def made_up(steps_at: dict[int, float], unit: str = "eV", hierarchical: bool = True) -> Breakdown:
    """Water with E^1 = 1/10 of E^0, and E^2 = 1/10 of E^1 but for the given multiples."""
    atoms = ase.build.molecule("H2O")
    first = -1.0 - 0.5 * np.arange(3)
    second = 0.1 * first
    third = second * np.array([steps_at.get(i, 0.1) for i in range(3)])
    terms = np.stack([first, second, third], axis=1)
    square = terms**2
    steps = square[:, 1:] / (square[:, 1:] + square[:, :-1])
    return Breakdown(atoms.numbers, atoms.positions, terms, steps, unit, hierarchical)


def page_of(parts: Breakdown, name: str = "water", trust: Trust | None = None) -> str:
    trust = trust or Trust({}, "geometry as given", "not calibrated")
    return render(Report(name, parts, trust, None, "made-up", {"target": "energy"}))


# --- the parts of one energy --------------------------------------------------------------------


def test_parts_add_up_to_the_prediction(
    small_model: Callable[..., HIPNN], ethanol: Data, dtype: torch.dtype
) -> None:
    model = small_model(dtype)
    parts = break_down([model], ethanol)
    expected = model.energy_terms(ethanol.z, ethanol.pos)
    np.testing.assert_allclose(parts.energy, expected.energy.item(), rtol=1e-12)
    np.testing.assert_allclose(parts.r, expected.nonhierarchicality.item(), rtol=1e-12)
    np.testing.assert_allclose(parts.atoms.sum(), parts.orders.sum(), rtol=1e-12)
    np.testing.assert_allclose(parts.r_atoms.sum(), parts.r_orders.sum(), rtol=1e-12)
    assert parts.terms.shape == (9, 3) and parts.steps.shape == (9, 2)
    assert parts.formula == "C2H6O" and parts.symbols[:3] == ["C", "C", "O"]
    moved = Data(z=ethanol.z, pos=ethanol.pos * 1.02)  # control: another molecule, other parts
    assert abs(break_down([model], moved).energy - parts.energy) > 1e-3


def test_units_scale_energies_and_leave_r(small_model: Callable[..., HIPNN], ethanol: Data) -> None:
    model = small_model()
    model.energy_unit = "eV"
    one, other = break_down([model], ethanol), break_down([model], ethanol, "kcal/mol")
    np.testing.assert_allclose(other.terms, convert(one.terms, "eV", "kcal/mol"), rtol=1e-12)
    np.testing.assert_array_equal(other.steps, one.steps)
    model.energy_unit = "unknown"
    with pytest.raises(ValueError, match="cannot convert 'unknown'"):
        break_down([model], ethanol, "eV")


def test_an_ensemble_is_explained_by_the_mean(
    small_model: Callable[..., HIPNN], ethanol: Data
) -> None:
    models = [small_model(), small_model()]
    with torch.no_grad():
        models[1].blocks[0].readout.bias.add_(0.3)
    each = [break_down([model], ethanol) for model in models]
    both = break_down(models, ethanol)
    for name in ("terms", "steps", "energy", "r"):
        mean = (getattr(each[0], name) + getattr(each[1], name)) / 2
        np.testing.assert_allclose(getattr(both, name), mean, rtol=1e-12)
    assert abs(both.r - each[0].r) > 1e-3  # control: the members differ


def test_the_hierarchy_breaks_exactly_where_an_order_exceeds_the_one_below(
    small_model: Callable[..., HIPNN], ethanol: Data
) -> None:
    model = small_model()
    with torch.no_grad():  # E^2 scatters about 0, so that some of it is small
        model.blocks[1].readout.bias.sub_(
            model.energy_terms(ethanol.z, ethanol.pos).terms[:, 2].mean()
        )
    parts = break_down([model], ethanol)
    size = np.abs(parts.terms)
    np.testing.assert_array_equal(parts.breaks, size[:, 1:] > size[:, :-1])
    assert parts.breaks.any() and not parts.breaks.all()
    largest = [1 if atom[1] > atom[2] else 2 for atom in size]
    assert parts.largest.tolist() == largest


@pytest.mark.parametrize("multiple, broken", [(0.99, []), (1.01, [2])])
def test_control_the_limit_is_one(multiple: float, broken: list[int]) -> None:
    parts = made_up({1: multiple})
    assert [parts.broken_orders(i) for i in range(3)] == [[], broken, []]


def test_a_model_without_hierarchy_has_nothing_that_breaks(
    small_model: Callable[..., HIPNN], ethanol: Data
) -> None:
    parts = break_down([small_model(hierarchical=False)], ethanol)
    assert not parts.breaks.any() and parts.steps[:, 1].min() == 1.0
    page = page_of(parts)
    assert "no hierarchy: R says nothing" in page and "breaks at" not in page
    orders, atoms = ["n", "E^n", "sum to n"], ["atom", "E^0", "E^1", "E^2", "E"]
    for hierarchical, of_orders, of_atoms in ((False, [], []), (True, ["R^n"], ["R", "breaks"])):
        trust = Trust({}, "geometry as given", "not calibrated")
        shown = replace(parts, hierarchical=hierarchical)
        printed = tables(Report("water", shown, trust, None, "made-up", {}))
        headings = [[column.header for column in table.columns] for table in printed]
        assert headings == [orders + of_orders, atoms + of_atoms]
        assert (printed[1].caption is not None) == hierarchical


# --- where R stands -------------------------------------------------------------------------------


def test_standing(tmp_path: Path) -> None:
    r = np.array([0.5, 1.0, 2.0, 4.0])
    np.savez(tmp_path / "predictions.npz", nonhierarchicality=r, part=np.array("test"))
    standing = stand(1.5, known_r(tmp_path, None, "given"))
    assert standing is not None and standing.fraction == 0.5 and standing.counts.sum() == 4
    assert standing.words == "larger than that of 50.0 % of 4 test molecules (median 1.5000)"
    beyond = stand(9.0, known_r(tmp_path, None, "given"))
    assert beyond is not None and beyond.outside and beyond.words.startswith("larger than that of")
    assert "of all 4" in beyond.words and beyond.place == pytest.approx(np.log10(4))
    assert stand(1.5, known_r(tmp_path / "elsewhere", None, "given")) is None


def test_r_is_compared_on_the_same_kind_of_geometry(tmp_path: Path) -> None:
    """Calibration molecules on it come first; else those that were evaluated, if they were so."""
    random = np.random.default_rng(0)
    r = {"given": random.lognormal(0, 0.5, 500), "rdkit": random.lognormal(1, 0.5, 300)}
    calibrations = {
        kind: Calibration(ConformalIntervals.fit(random.exponential(size=len(x)), x), 1.0)
        for kind, x in r.items()
    }
    bars = ErrorBars(None, calibrations, "eV", {})  # type: ignore[arg-type]
    for kind, x in r.items():
        standing = stand(2.0, known_r(tmp_path, bars, kind))  # type: ignore[arg-type]
        assert standing is not None and standing.num == len(x) and standing.part == "calibration"
        assert standing.fraction == pytest.approx((x < 2).mean(), abs=0.01)
        assert standing.median == pytest.approx(np.median(x))
    assert known_r(tmp_path, bars, None) is None  # not relaxed: nobody knows

    np.savez(tmp_path / "predictions.npz", nonhierarchicality=np.ones(3))
    card = {"format": "hipnn_pyg model", "format_version": 1}
    for data_set, kind, other in (("qm9", "given", "rdkit"), ("qm9-rdkit", "rdkit", "given")):
        (tmp_path / "model.json").write_text(json.dumps({**card, "dataset": data_set}))
        assert known_r(tmp_path, None, kind) is not None  # type: ignore[arg-type]
        assert known_r(tmp_path, None, other) is None  # type: ignore[arg-type]


def test_predictions_of_other_weights_do_not_count(tmp_path: Path) -> None:
    np.savez(tmp_path / "predictions.npz", nonhierarchicality=np.ones(3))
    card = {"format": "hipnn_pyg model", "format_version": 1, "epoch": 2}
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "results.json").write_text(json.dumps({"model": card}))
    assert known_r(tmp_path, None, "given") is not None
    (tmp_path / "results.json").write_text(json.dumps({"model": card | {"epoch": 1}}))
    assert known_r(tmp_path, None, "given") is None
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"model\.json is damaged .*restore it"):
        known_r(tmp_path, None, "given")
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"results\.json is damaged .*evaluate"):
        known_r(tmp_path, None, "given")
    (tmp_path / "results.json").unlink()
    for content in (b"", (tmp_path / "predictions.npz").read_bytes()[:100]):
        (tmp_path / "predictions.npz").write_bytes(content)
        with pytest.raises(ModelFileError, match=r"predictions\.npz is damaged .*evaluate"):
            known_r(tmp_path, None, "given")


# --- colours --------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes, IEEE Trans. Vis. Comput. Graph. 15, 1291 (2009), severity 1.
BLINDNESS = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
               (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
               (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
               (0.004733, 0.691367, 0.303900)),
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, kind: str) -> np.ndarray:
    """CIE L*a*b* (D65) of ``#rrggbb`` as a colour-blind person sees it."""
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    seen = TO_XYZ @ np.clip(np.array(BLINDNESS[kind]) @ linear, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one: str, other: str, kind: str) -> float:
    return float(np.linalg.norm(lab(one, kind) - lab(other, kind)))


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colour_blind_people_can_tell_the_colours_apart(kind: str) -> None:
    found = {colouring.key: colouring for colouring in colourings(made_up({0: 3.0}))}
    signed = found["beyond"].stops
    assert difference(signed[0], signed[-1], kind) > 30
    assert difference(signed[0], signed[4], kind) > 20 < difference(signed[4], signed[-1], kind)
    assert difference(found["R"].stops[0], found["R"].stops[-1], kind) > 30
    (first, *_), (second, *_) = found["largest"].classes
    assert difference(first, second, kind) > 30


def test_control_red_and_green_are_alike_to_some() -> None:
    assert (
        difference("#a83232", "#5f6b00", "deutan") < 20 < difference("#a83232", "#5f6b00", "tritan")
    )


def test_colours_follow_the_numbers() -> None:
    found = {colouring.key: colouring for colouring in colourings(made_up({0: 3.0}))}
    assert list(found) == ["energy", "beyond", "order1", "order2", "largest", "R", "element"]
    order2, parts = found["order2"], made_up({0: 3.0})
    assert order2.high == -order2.low == pytest.approx(np.abs(parts.terms[:, 2]).max())
    assert order2.colours[np.abs(parts.terms[:, 2]).argmax()] == order2.stops[0]  # it is negative
    assert (order2.stops[0], order2.stops[-1]) == (BLUE.lower(), VERMILION.lower())  # raises
    assert found["beyond"].high == pytest.approx(np.abs(parts.terms[:, 1:].sum(axis=1)).max())
    for key, values in (("energy", parts.atoms), ("R", parts.r_atoms)):
        colouring = found[key]
        assert colouring.colours[values.argmax()] == colouring.stops[-1]
        assert colouring.high == values.max()
        inner = colouring.colours[values.argsort()[1]]
        assert (colouring.colours[values.argmin()] == colouring.stops[0]) == (key == "energy")
        assert inner not in (colouring.stops[0], colouring.stops[-1])
    counts = [[row[1:] for row in found[key].classes] for key in ("largest", "element")]
    assert counts == [[("E<sup>1</sup>", 2), ("E<sup>2</sup>", 1)], [("H", 2), ("O", 1)]]
    alone = Breakdown(parts.z[:1], parts.pos[:1], parts.terms[:1], parts.steps[:1], "eV")
    assert colourings(alone)[0].colours == [colourings(alone)[0].stops[0]]  # the only one
    assert len(set(found["largest"].colours)) == 2 and found["R"].low == 0.0
    assert all(len(colouring.colours) == 3 for colouring in found.values())


# --- the page -------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Nesting, ids, references to ids, addresses that a browser would load, and table cells."""

    VOID = frozenset({"meta", "input", "line", "rect"})
    LOADS = frozenset({"src", "srcset", "data", "poster", "background", "action", "xlink:href"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.uses: set[str] = set()
        self.loads: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("for", "aria-labelledby"):
                self.uses.add(value or "")
            elif name in self.LOADS or (name == "href" and tag != "a"):
                self.loads.append(value or "")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def without_viewer(page: str) -> str:
    return page.replace((VIEWER / "3Dmol-min.js").read_text(), "")


def test_the_page_loads_nothing_and_is_well_formed() -> None:
    page = page_of(made_up({0: 3.0}))
    outline = Outline(page)
    assert outline.loads == []
    assert len(set(outline.ids)) == len(outline.ids) and outline.uses <= set(outline.ids)
    own = without_viewer(page)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", own)
    assert "default-src 'none'" in own and "connect-src" not in own
    assert '<meta name="viewport" content="width=device-width' in own
    assert "prefers-color-scheme: dark" in own and '<html lang="en">' in own
    # controls: what the outline must see
    assert Outline('<img src="https://x.org/a.png"></img>').loads == ["https://x.org/a.png"]
    with pytest.raises(AssertionError, match="closes something else"):
        Outline("<p><b></p></b>")


def test_the_page_holds_the_numbers() -> None:
    parts = made_up({2: 3.0}, unit="kcal/mol")
    rows = Outline(page_of(parts)).rows
    value = lambda text: float(text.replace("\N{MINUS SIGN}", "-"))  # noqa: E731
    atoms = [row for row in rows if row and row[0] in ("O0", "H1", "H2")]
    for i, (_, *cells) in enumerate(atoms):
        shown = [value(cell) for cell in cells[:5]]
        expected = [*parts.terms[i], parts.atoms[i], parts.r_atoms[i]]
        np.testing.assert_allclose(shown, expected, atol=0.0051)
    assert [cells[-1].split() for cells in atoms] == [[], [], ["▲", "E2"]]
    (sums,) = [row for row in rows if row and row[0] == "sum"]
    np.testing.assert_allclose(
        [value(c) for c in sums[1:5]], [*parts.orders, parts.energy], atol=6e-3
    )


def test_numbers_for_people() -> None:
    shown = [number(x, 2) for x in (-1234.567, -0.001, 0.0, -0.01, 1e6)]
    assert shown == ["\N{MINUS SIGN}1,234.57", "0.00", "0.00", "\N{MINUS SIGN}0.01", "1,000,000.00"]


@pytest.mark.parametrize("unit, other", [("eV", "kcal/mol"), ("kcal/mol", "eV"), ("D", None)])
def test_the_energy_in_a_second_unit(unit: str, other: str | None) -> None:
    parts = made_up({}, unit=unit)
    also = Report("water", parts, Trust({}, ""), None, "made-up", {}).also()
    if other is None:
        assert also is None
    else:
        assert also == (pytest.approx(convert(parts.energy, unit, other)), other)


def test_the_picture_shows_the_structure_and_marks_what_breaks() -> None:
    parts = made_up({2: 3.0})
    (text,) = re.findall(r'type="application/json" id="data">(.*?)</script>', page_of(parts))
    data = json.loads(text)
    number_of_atoms, _, *rows = data["xyz"].splitlines()
    assert number_of_atoms == "3" and data["broken"] == [False, False, True]
    assert [row.split()[0] for row in rows] == ["O", "H", "H"]
    found = np.array([row.split()[1:] for row in rows], dtype=float)
    np.testing.assert_allclose(found, parts.pos, atol=6e-6)
    assert np.ptp(parts.pos[:, 1]) != pytest.approx(np.ptp(parts.pos[:, 2]), rel=0.1)  # control
    assert "hierarchy breaks at: H2" in summary(
        Report("water", parts, Trust({}, ""), None, "made-up", {})
    )


def test_names_from_outside_stay_text() -> None:
    page = page_of(made_up({}), name="</script><img src=x>.xyz")
    assert "<img" not in page and "&lt;/script&gt;" in page


def test_error_bar_and_flag_in_the_page() -> None:
    trust = Trust({0.5: 0.1, 0.9: 0.25, 0.95: 0.4}, "RDKit geometry")
    page = page_of(made_up({}), trust=trust)
    assert "± 0.2500 eV" in page and "no promise" not in page and "made from the SMILES" in page
    assert "made as the data set's were" not in html.unescape(page)
    given = page_of(made_up({}), trust=trust._replace(geometry="geometry as given"))
    assert "made as the data set's were" in html.unescape(given)
    assert "not by the method of the training data" in page
    learned = Report("water", made_up({}), trust, None, "m", {"data set": "qm9-rdkit"})
    assert "as those of the training data were" in render(learned)
    unrelaxed = learned._replace(trust=trust._replace(geometry="RDKit geometry, not relaxed"))
    assert "not by the method of the training data" in render(unrelaxed)
    flagged = page_of(made_up({}), trust=trust._replace(unlike=["R is outside"]))
    assert "no promise: R is outside." in flagged
    bare = page_of(made_up({}))
    assert "not calibrated." in bare and "±" not in without_viewer(bare)


@pytest.mark.parametrize("grows, words", [(True, "grow"), (False, "do not grow")])
def test_it_says_whether_errors_grow_with_r(grows: bool, words: str) -> None:
    trust = Trust({0.9: 0.25}, "geometry as given", grows=grows)
    report = Report("water", made_up({}), trust, None, "made-up", {})
    for text in (" ".join(summary(report)), without_viewer(render(report))):
        assert f"rrors of this model {words} with R" in text
    unknown = report._replace(trust=trust._replace(grows=None))  # control
    for text in (" ".join(summary(unknown)), without_viewer(render(unknown))):
        assert "rrors of this model" not in text


def test_the_viewer_is_the_one_on_record() -> None:
    content = (VIEWER / "3Dmol-min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() in (VIEWER / "README.md").read_text()
    page = page_of(made_up({}))
    assert content.decode() in page and (VIEWER / "3Dmol-LICENSE.txt").read_text() in page


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run without what other tests left in it."""
    target = tmp_path / "copy"
    shutil.copytree(trained, target)
    for name in ("predictions.npz", "results.json", "error_bars.json"):
        (target / name).unlink(missing_ok=True)
    return target


def test_text(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)  # where people work there may be a page
    monkeypatch.setenv("COLUMNS", "30")  # a narrow terminal takes no digits away
    assert main(["explain", "CO", "--model", str(copy), "--text"]) == 0
    out = capsys.readouterr().out
    assert main(["predict", "CO", "--model", str(copy), "--output", str(copy / "e.csv")]) == 0
    header, row = (copy / "e.csv").read_text().splitlines()
    predicted = dict(zip(header.split(","), row.split(","), strict=True))
    assert f"E = {float(predicted['energy']):.4f} eV (RDKit geometry; error bar: not cal" in out
    assert f"R = {float(predicted['R']):.4f}" in out
    (sums,) = [line for line in out.splitlines() if "sum" in line and "sum to n" not in line]
    shown = [float(word) for word in re.findall(r"-?\d+\.\d+", sums)]
    expected = [float(predicted[name]) for name in ("E0", "E1", "E2", "energy", "R")]
    np.testing.assert_allclose(shown, expected, atol=6e-5)
    assert not list(Path().glob("explain.html"))


def test_the_conformer_is_the_one_asked_for(copy: Path, capsys: Capture) -> None:
    model, found = load_model(copy), []
    for seed, optimize in ((0, True), (2, True), (0, False)):
        data = from_smiles("NCCO", seed, optimize)
        found.append(f"E = {model.energy_terms(data.z, data.pos).energy.item():.4f} eV")
        line = ["explain", "NCCO", "--model", str(copy), "--text", "--seed", str(seed)]
        assert main([*line, "--optimize", str(optimize).lower()]) == 0
        assert found[-1] in capsys.readouterr().out
    assert len({*found}) == 3  # control


def test_page_of_a_run_that_was_evaluated(copy: Path, molecule_file: Path) -> None:
    page = copy / "page.html"
    command = ["explain", str(molecule_file), "--index", "7", "--model", str(copy)]
    assert main([*command, "--output", str(page)]) == 0
    assert "Not known where R stands" in page.read_text()
    assert "errors of this model" not in page.read_text().casefold()  # it was not calibrated
    assert main(["evaluate", str(copy)]) == 0
    assert main([*command, "--output", str(page), "--unit", "kcal/mol"]) == 0
    text = page.read_text()
    assert "of 20 test molecules" in text or "of all 20 test molecules" in text
    assert "molecules.extxyz#7" in text and "CH4O, 6 atoms, geometry as given" in text
    atoms = read_structures(molecule_file)[7]
    energy = load_model(copy).energy_terms(atoms.z, atoms.pos).energy.item()
    shown = f"{convert(energy, 'eV', 'kcal/mol'):.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"{shown} kcal/mol" in text


def test_error_bar_and_flag_of_a_calibrated_model(
    copy: Path, molecule_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    packed = PackedMolecules.pack(read_structures(molecule_file), ASE_ENERGY)
    first, second = packed.subset(torch.arange(100)), packed.subset(torch.arange(100, 200))
    model = load_model(copy)
    statistics = FeatureStatistics.fit(model, first)
    sample = take_sample([model], statistics, second)
    ErrorBars.fit(statistics, {"given": sample}, model.energy_unit).save(copy, [copy])
    known = ase.build.molecule("CH4")
    crushed = known.copy()
    crushed.positions *= 0.6
    for name, atoms in (("known", known), ("crushed", crushed)):
        ase.io.write(tmp_path / f"{name}.xyz", atoms)
    command = ["explain", "--model", str(copy), "--text"]
    assert main([*command, str(tmp_path / "known.xyz")]) == 0
    calm = capsys.readouterr().out
    assert re.search(r"± 0\.\d+ eV \(90 %, geometry as given\)", calm) and "warning" not in calm
    assert "of 100 calibration molecules" in calm
    assert "errors of this model" not in calm  # 100 are one bin: not known
    assert "the error bar is for geometries made as the data set's were" in calm
    data = Data(z=torch.tensor(known.numbers), pos=torch.tensor(known.positions).float())
    out = CalibratedModel.load(copy).predict(data, "given")
    for unit in ("eV", "kcal/mol"):
        assert main([*command, str(tmp_path / "known.xyz"), "--unit", unit]) == 0
        energy, q90 = (convert(float(value), "eV", unit) for value in (out.energy, out.q90))
        digits = 4 if unit == "eV" else 2
        shown = capsys.readouterr().out
        assert f"E = {energy:.{digits}f} ± {q90:.{digits}f} {unit} (90 %" in shown
    assert main([*command, str(tmp_path / "crushed.xyz")]) == 0
    assert "warning: unlike the training data (an atom is at distance" in capsys.readouterr().out
    assert main([*command, "C"]) == 0
    assert "the error bar is for" not in (told := capsys.readouterr().out)  # control
    assert "calibration molecules" not in told  # R is another on RDKit's geometries
    assert "not calibrated for this, only for: geometry as given" in told


def test_the_flag_names_its_reasons() -> None:
    error, r = np.linspace(0.1, 1, 50), np.linspace(1, 2, 50)
    calibration = Calibration(ConformalIntervals.fit(error, r), 3.0)
    atom = "an atom is at distance {} from the training atoms (3.00 is the limit)".format
    outside = "R is outside the calibration's range, 1 to 2"
    assert _reasons(calibration, 4.0, 1.5) == [atom("4.00")]
    assert _reasons(calibration, 2.0, 2.5) == [outside] == _reasons(calibration, 2.0, 0.5)
    assert _reasons(calibration, np.nan, np.nan) == [atom("nan"), outside]
    assert _reasons(calibration, 3.0, 2.0) == []  # control


def test_facts_of_one_model_and_of_several(trained: Path) -> None:
    card = json.loads((trained / "model.json").read_text())
    one, three = facts(card, 1), facts(card, 3)
    assert one["epoch"] == str(card["epoch"]) and "models" not in one
    assert one["validation MAE"] == f"{card['validation_mae']:.3f} kcal/mol"
    assert three.items() - one.items() == {("models", "3")}
    assert one.keys() - three.keys() == {"epoch", "validation MAE"}  # each member has its own


def test_of_a_list_only_the_molecule_that_is_shown_is_embedded(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "library.smi").write_text("C methane\nO water\nnonsense\nCO methanol\n")
    embedded: list[str] = []

    def conformers(smiles: list[str], *options: object) -> Iterator[Data | StructureError]:
        embedded.extend(smiles)
        return embed(smiles, *options)

    embed = inputs.conformers
    monkeypatch.setattr(inputs, "conformers", conformers)
    command = ["explain", str(tmp_path / "library.smi"), "--model", str(copy), "--text"]
    assert main([*command, "--index", "3"]) == 0
    assert "methanol: CH4O" in capsys.readouterr().out and embedded == ["CO"]
    assert main(command) == 1
    assert "holds 4 structures: choose one" in capsys.readouterr().err and embedded == ["CO"]
    assert main([*command, "--index", "2"]) == 1
    assert "nonsense" in capsys.readouterr().err and embedded == ["CO", "nonsense"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{file}"], "holds 200 structures: choose one with --index 0 ... 199"),
        (["{file}", "--index", "200"], "--index 0 ... 199, not 200"),
        (["C", "--output", "page.pdf"], "--output page.pdf must end in .html"),
        (["C", "--unit", "parsec"], "cannot convert 'eV' to 'parsec'"),
        (["FC"], "atomic number 9"),
        (["nosuch.xyz"], "does not exist"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, copy: Path, molecule_file: Path, capsys: Capture
) -> None:
    filled = [argument.format(file=molecule_file) for argument in arguments]
    assert main(["explain", *filled, "--model", str(copy)]) == 1
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_the_data_in_the_page_are_json(copy: Path) -> None:
    page = copy / "new" / "page.html"
    assert main(["explain", "CO", "--model", str(copy), "--output", str(page)]) == 0
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text()
    )
    data = json.loads(text)
    assert data["xyz"].splitlines()[0] == "6" and data["names"][:3] == ["C0", "O1", "H2"]
    assert {len(colours) for colours in data["colours"].values()} == {6}
