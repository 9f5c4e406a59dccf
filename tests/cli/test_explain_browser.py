"""The page of `hipnn explain` in a real browser: the molecule is drawn, and controls answer.

Run by `make test-browser`: needs playwright, and Chromium, Google Chrome or Edge on the PATH (or
`playwright install chromium`).
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.build
import numpy as np
import pytest
from PIL import Image

from hipnn_pyg.explain import Breakdown, Report, Standing, Trust, render

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser

VIEWER = (files("hipnn_pyg.explain") / "viewer" / "3Dmol-min.js").read_text(encoding="utf-8")
PROGRAMS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser",
            "microsoft-edge", "chromium-headless-shell")  # fmt: skip
NO_GPU = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
NO_WEBGL = """for (const kind of [HTMLCanvasElement, OffscreenCanvas]) {
    const real = kind.prototype.getContext;
    kind.prototype.getContext = function (name, ...more) {
        return /webgl|bitmap/.test(name) ? null : real.call(this, name, ...more);
    };
}"""
PATIENCE = 60_000
"""ms; a loaded machine draws without a GPU."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import Error, sync_playwright

    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=program, args=NO_GPU)
        except Error as error:
            pytest.fail(
                f"no browser ({error.message.splitlines()[0]}): install Chromium (apt-get install "
                "chromium), or run `playwright install chromium`",
                pytrace=False,
            )
        yield started
        started.close()


def report() -> Report:
    """Ethanol with made-up energies; the hierarchy breaks at its oxygen."""
    atoms = ase.build.molecule("CH3CH2OH")
    terms = np.array([[-6.0, 0.5, 0.05]] * len(atoms)) * np.linspace(1, -0.3, len(atoms))[:, None]
    terms[2] = [-4.0, 0.2, 0.6]
    square = terms**2
    steps = square[:, 1:] / (square[:, 1:] + square[:, :-1])
    parts = Breakdown(atoms.numbers, atoms.positions, terms, steps, "eV")
    edges, counts = np.linspace(-1, 1, 11), np.arange(10)
    standing = Standing(0.7, 1.0, 45, "test", edges, counts, 0.4, False)
    trust = Trust({0.5: 0.1, 0.9: 0.3, 0.95: 0.4}, "geometry as given", unlike=["R is large"])
    return Report("ethanol", parts, trust, standing, "made-up", {"target": "U0"})


@pytest.fixture(scope="module")
def html() -> str:
    return render(report())


class Watched:
    """A page, what it said on its console, and what it asked the network for."""

    def __init__(self, context: BrowserContext, path: Path) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def picture(self) -> np.ndarray:
        """The canvas as it is on the screen, without its border, ``[height, width, 3]``."""
        shot = self.page.locator("#viewer").screenshot()
        pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
        return pixels[8:-8, 8:-8]

    def problems(self, num_atoms: int) -> list[str]:
        """Why this is not a molecule on a screen; empty if it is one."""
        found = [f"console: {text}" for text in self.said]
        found += [f"request: {url}" for url in self.asked[1:]]
        if self.run("window.hipnn === undefined"):
            return [*found, "the viewer's script did not run"]
        drawn = self.run("hipnn.viewer.selectedAtoms({}).length")
        if drawn != num_atoms:
            found.append(f"{drawn} atoms drawn, not {num_atoms}")
        picture = self.picture()
        background = picture[0, 0]
        share = (np.abs(picture - background).max(axis=2) > 24).mean()
        if not 0.02 < share < 0.9:
            found.append(f"{100 * share:.1f} % of the canvas is drawn on")
        return found


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """``show(html, init_script, **options of the context)``."""
    contexts = []

    def opened(html: str, before: str = "", **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 420, "height": 420}, **options})
        contexts.append(context)
        if before:
            context.add_init_script(before)
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        return Watched(context, path)

    yield opened
    for context in contexts:
        context.close()


def test_the_molecule_is_drawn_and_every_control_answers(
    show: Callable[..., Watched], html: str
) -> None:
    watched = show(html)
    assert watched.problems(9) == []
    assert watched.page.locator("#no-picture").is_hidden()

    before = watched.picture()
    watched.page.check("input[value=largest]")
    changed = np.abs(watched.picture() - before).max(axis=2) > 24
    assert changed.mean() > 0.01, "the colours did not change"
    assert watched.page.locator(".legend:visible").get_attribute("data-colouring") == "largest"
    styles = watched.run("hipnn.viewer.selectedAtoms({}).map((atom) => atom.style.sphere.color)")
    data = watched.run('JSON.parse(document.getElementById("data").textContent)')
    assert styles == data["colours"]["largest"] and len(set(styles)) == 2

    shapes = "hipnn.viewer.shapes.length"
    assert watched.run(shapes) == 0
    watched.page.click("tr[data-atom='2'] button")
    assert watched.run(shapes) == 1
    assert watched.run("document.querySelector('tr.chosen').dataset.atom") == "2"
    watched.page.click("tr[data-atom='2'] button")
    assert watched.run(shapes) == 0 and watched.run("document.querySelector('tr.chosen')") is None

    labels = "hipnn.viewer.labels.length"
    assert watched.run(labels) == 9 + 1  # names, and the mark at the oxygen
    watched.page.uncheck("#names")
    assert watched.run(labels) == 1
    watched.page.uncheck("#marks")
    assert watched.run(labels) == 0

    view = watched.run("hipnn.viewer.getView()")
    watched.page.focus("#viewer")
    for key in ("ArrowLeft", "+"):
        watched.page.keyboard.press(key)
        turned = watched.run("hipnn.viewer.getView()")
        assert not np.allclose(turned, view, atol=1e-3)
        view = turned
    assert watched.said == [] and len(watched.asked) == 1


@pytest.mark.parametrize("scheme, light", [("light", True), ("dark", False)])
def test_on_a_phone(show: Callable[..., Watched], html: str, scheme: str, light: bool) -> None:
    phone = {"width": 360, "height": 740}
    watched = show(html, viewport=phone, color_scheme=scheme, is_mobile=True, has_touch=True)
    assert watched.problems(9) == []
    assert watched.run("document.documentElement.scrollWidth") <= 360
    corner = watched.picture()[0, 0]
    assert (corner > 200).all() if light else (corner < 60).all()


def test_without_webgl_the_numbers_stay(show: Callable[..., Watched], html: str) -> None:
    watched = show(html, before=NO_WEBGL)
    assert watched.page.locator("#no-picture").is_visible()
    assert watched.page.locator("#picture").is_hidden()
    assert watched.page.locator("#atoms tbody tr").count() == 9
    assert "the viewer's script did not run" in watched.problems(9)


def test_control_a_page_without_its_viewer_fails(show: Callable[..., Watched], html: str) -> None:
    assert VIEWER in html
    watched = show(html.replace(VIEWER, ""))
    assert watched.problems(9)[-1] == "the viewer's script did not run"
    assert watched.page.locator("#no-picture").is_visible()


@pytest.mark.parametrize(
    "element",
    [
        '<img src="https://example.org/a.png" alt="">',
        "<script>fetch('https://example.org')</script>",
    ],
)
def test_control_a_page_that_asks_the_network_fails(
    show: Callable[..., Watched], html: str, element: str
) -> None:
    light = html.replace(VIEWER, "")  # the policy stands in the page's head, whatever it draws
    watched = show(light.replace("</main>", f"{element}</main>"))
    assert any("Content Security Policy" in text for text in watched.problems(9))


def test_control_an_empty_canvas_fails(show: Callable[..., Watched], html: str) -> None:
    watched = show(html)
    watched.run("hipnn.viewer.removeAllModels(); hipnn.viewer.removeAllLabels()")
    watched.run("hipnn.viewer.render()")
    assert watched.problems(9) == ["0 atoms drawn, not 9", "0.0 % of the canvas is drawn on"]


def test_without_scripts_the_numbers_stay(show: Callable[..., Watched], html: str) -> None:
    page = show(html, java_script_enabled=False).page
    assert page.locator("#no-picture").is_visible() and page.locator("#picture").is_hidden()
    assert page.locator("#atoms tbody tr").count() == 9
