"use strict";
const draw = () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("viewer");
  const element = (id) => document.getElementById(id);
  const viewer = $3Dmol.createViewer(box, { backgroundColor: "black", backgroundAlpha: 0 });
  viewer.addModel(data.xyz, "xyz");
  const atoms = viewer.selectedAtoms({});
  let chosen = null;
  const colouring = () => document.querySelector("input[name=colouring]:checked").value;

  // White or black, whichever is easier to read on a colour (relative luminance, WCAG 2).
  const inkOn = (colour) => {
    const [r, g, b] = [1, 3, 5].map((place) => (parseInt(colour.slice(place, place + 2), 16) / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.35 ? "black" : "white";
  };

  // Spheres in the chosen colours; bonds stay grey.
  const paint = () => {
    const key = colouring();
    data.colours[key].forEach((colour, index) =>
      viewer.setStyle(
        { index },
        { sphere: { scale: 0.3, color: colour }, stick: { radius: 0.1, color: "#8c939b" } },
      ),
    );
    document.querySelectorAll(".legend").forEach((legend) => {
      legend.hidden = legend.dataset.colouring !== key;
    });
    annotate();
  };

  // Names and marks of atoms, and a shell around the chosen one.
  const annotate = () => {
    const names = element("names").checked;
    const marks = element("marks") !== null && element("marks").checked;
    viewer.removeAllLabels();
    viewer.removeAllShapes();
    const colours = data.colours[colouring()];
    const roomy = box.clientWidth > 32 * atoms.length; // else hydrogens stay without names
    atoms.forEach((atom, index) => {
      const style = { position: { x: atom.x, y: atom.y, z: atom.z }, font: "sans-serif", inFront: true };
      if ((names && (roomy || atom.elem !== "H")) || index === chosen) {
        const plain = { alignment: "center", fontSize: 13, bold: true, showBackground: false };
        viewer.addLabel(data.names[index], { ...style, ...plain, fontColor: inkOn(colours[index]) });
      }
      if (marks && data.broken[index]) {
        const corner = { alignment: "bottomLeft", screenOffset: { x: 6, y: 6 }, fontSize: 11 };
        const dark = { fontColor: "#ffb366", backgroundColor: "#14171b", backgroundOpacity: 0.85 };
        viewer.addLabel("▲", { ...style, ...corner, ...dark });
      }
    });
    if (chosen !== null) {
      const { x, y, z } = atoms[chosen];
      viewer.addSphere({ center: { x, y, z }, radius: 0.7, color: "#0090ff", wireframe: true });
    }
    viewer.render();
  };

  const choose = (index) => {
    chosen = index === chosen ? null : index;
    document.querySelectorAll("#atoms tbody tr").forEach((row, place) => {
      row.classList.toggle("chosen", place === chosen);
      row.querySelector("button").setAttribute("aria-pressed", String(place === chosen));
    });
    annotate();
  };

  // As large as the box allows, at most twice what the viewer chooses, which is small.
  const showAll = () => {
    viewer.zoomTo();
    const { left, top, width, height } = box.getBoundingClientRect();
    const room = (place, start, length) => (0.5 * length - 40) / (Math.abs(place - start - 0.5 * length) + 1);
    const rooms = atoms.flatMap((atom) => {
      const { x, y } = viewer.modelToScreen(atom);
      return [room(x, left + window.scrollX, width), room(y, top + window.scrollY, height)];
    });
    viewer.zoom(Math.min(2, ...rooms));
    viewer.render();
  };
  const turns = {
    ArrowLeft: () => viewer.rotate(-10, "y"),
    ArrowRight: () => viewer.rotate(10, "y"),
    ArrowUp: () => viewer.rotate(-10, "x"),
    ArrowDown: () => viewer.rotate(10, "x"),
    "+": () => viewer.zoom(1.2),
    "-": () => viewer.zoom(1 / 1.2),
    0: () => showAll(),
  };
  box.addEventListener("keydown", (event) => {
    if (!(event.key in turns)) return;
    event.preventDefault();
    turns[event.key]();
    viewer.render();
  });
  document.querySelectorAll("input[name=colouring]").forEach((input) => input.addEventListener("change", paint));
  [element("names"), element("marks")].forEach((input) => input && input.addEventListener("change", annotate));
  element("reset").addEventListener("click", showAll);
  document.querySelectorAll("#atoms tbody tr").forEach((row, index) => row.addEventListener("click", () => choose(index)));
  viewer.setClickable({}, true, (atom) => choose(atom.index));

  paint();
  showAll();
  window.hipnn = { viewer, choose };
};
try {
  draw();
} catch (error) {
  console.error(error);
  document.documentElement.className = "";
}
