"""Learn energies and forces of an MD17 trajectory: HIP-NN and PyG's SchNet through the same loop.

Neither model gives forces by itself: ``Forces(model)`` makes them by one gradient of any model that
is called as ``(z, pos, batch)``, and keeps its graph in training, so that a loss on forces can be
differentiated. Frames, split, loss, loader, average of the weights and time are the same for both.

    python examples/07_forces.py --molecule benzene --minutes 15

Energies are learned relative to their mean over the training frames, since float32 cannot hold
-146,000 kcal/mol to 0.01. ``--json FOLDER`` keeps the figures; with ``--keep FOLDER`` a run that
was stopped goes on. The fast way to a HIP-NN potential is ``hipnn train md17 --forces``.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch_geometric.nn.models import SchNet
from tqdm import tqdm

from hipnn_pyg import HIPNN, Forces, PackedLoader, PackedMolecules, RadiusGraph
from hipnn_pyg.data.sets import MD17Set
from hipnn_pyg.data.splits import random_split
from hipnn_pyg.train.recipe import running_average

NAMES = ("HIPNN", "SchNet")
LEARNING_RATE = {"HIPNN": 2e-3, "SchNet": 5e-4}
SAVE_EVERY = 30.0
"""Seconds between two checkpoints."""
PLACES = {"root", "json", "keep", "model", "num_test"}
"""Options that a run that goes on may change."""


class ScaledSchNet(SchNet):
    """SchNet whose output is in units of ``scale`` (kcal/mol), as HIP-NN's is."""

    def __init__(self, scale: float, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.energy_scale = scale

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        """Energies in kcal/mol, ``[G, 1]``."""
        return self.energy_scale * super().forward(z, pos, batch)


def build(name: str, train: PackedMolecules, quick: bool) -> Forces:
    """A model with forces; sigma_E, the spread of the training energies, scales both outputs."""
    species = sorted(set(train.z.tolist()))
    size = 8 if quick else 64
    sizes = {"num_interactions": 3, "num_onsite": 2, "num_sensitivities": 10}
    hipnn = HIPNN(species, size, **sizes, energy_unit="kcal/mol")
    hipnn.fit_e0(train, target=train.spec)
    if name == "HIPNN":
        return Forces(hipnn)
    small = {"hidden_channels": size, "num_filters": size} if quick else {}  # else its defaults
    return Forces(ScaledSchNet(hipnn.sigma_e, interaction_graph=RadiusGraph(10.0), **small))


def loss_of(model: Forces, data: Any, scales: tuple[float, float]) -> Tensor:
    """MAE + RMSE of forces and, with weight 0.01, of energies, in units of their scales."""
    energy, forces = model(data.z, data.pos, data.batch)
    loss = energy.new_zeros(())
    errors = (energy[:, 0] - data.energy, forces - data.force)
    for weight, scale, error in zip((0.01, 1.0), scales, errors, strict=True):
        loss = loss + weight / scale * (error.abs().mean() + error.square().mean().sqrt())
    return loss


class Progress:
    """How far a run is, and the file that keeps it.

    Args:
        file: of the checkpoint; None keeps nothing.
        parts: what is kept: model, average, optimizer.
        options: of the run; one with others cannot go on from it.
    """

    def __init__(self, file: Path | None, parts: dict[str, Any], options: dict[str, Any]) -> None:
        self.file, self.parts, self.options = file, parts, options
        self.seconds, self.steps, self.epochs, self.saved = 0.0, 0, 0, 0.0
        if file is not None and file.exists():
            state = torch.load(file, weights_only=True)
            if state["options"] != options:
                raise ValueError(f"{file} is of a run with other options: {state['options']}")
            self.seconds, self.steps, self.epochs = state["done"]
            self.saved = self.seconds
            for name, part in parts.items():
                part.load_state_dict(state[name])

    def save(self) -> None:
        """Write the checkpoint; the old one is there until the new one is."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        done = (self.seconds, self.steps, self.epochs)
        torch.save({**state, "done": done, "options": self.options}, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)
        self.saved = self.seconds


def fit(name: str, model: Forces, train: PackedMolecules, options: Any) -> tuple[Forces, Progress]:
    """The loop both share; returns the averaged model and what was done."""
    sigma_e = float(train.target.std())
    sigma_f = float(next(iter(PackedLoader(train, len(train)))).force.square().mean().sqrt())
    loader = PackedLoader(train, options.batch_size, shuffle=True, seed=options.seed)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=LEARNING_RATE[name], fused=True)
    average = AveragedModel(model, multi_avg_fn=running_average(0.999))
    file = Path(options.keep) / f"{label(name, options)}.pt" if options.keep else None
    kept = {k: v for k, v in options.as_dict().items() if k not in PLACES}
    done = Progress(file, {"model": model, "average": average, "optimizer": optimizer}, kept)
    budget, began = 60 * options.minutes, time.monotonic() - done.seconds

    def share() -> float:
        """How much of the budget is spent: of the time, or of the steps where they are given."""
        return done.steps / options.steps if options.steps else done.seconds / budget

    bar = tqdm(
        total=round(budget), initial=round(done.seconds), unit="s", mininterval=10, desc=name
    )
    while share() < 1:
        loader.epoch = done.epochs
        for data in loader:
            done.seconds = time.monotonic() - began
            warmup = min(1.0, (done.steps + 1) / options.warmup_steps)
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share())))
            optimizer.param_groups[0]["lr"] = LEARNING_RATE[name] * warmup * cosine
            loss = loss_of(model, data, (sigma_e, sigma_f))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done.steps += 1
            if done.steps % 5 == 0:
                average.update_parameters(model)
            bar.update(min(bar.total, round(done.seconds)) - bar.n)
            if share() >= 1:
                break
        done.epochs += 1
        if done.seconds - done.saved > SAVE_EVERY or share() >= 1:
            done.save()
    bar.close()
    return cast(Forces, average.module.eval()), done


def label(name: str, options: Any) -> str:
    """Name of a run's files."""
    return f"{name.lower()}-loop-{options.molecule.replace(' ', '-')}-{options.seed}"


def errors_of(model: Forces, molecules: PackedMolecules) -> dict[str, float]:
    """MAE and RMSE of energies (kcal/mol) and of force components (kcal/mol/Å)."""
    energy_errors, force_errors = [], []
    for data in PackedLoader(molecules, 100):
        energy, forces = model(data.z, data.pos, data.batch)
        energy_errors.append(energy[:, 0] - data.energy)
        force_errors.append(forces - data.force)
    figures = {}
    for key, errors in (("", energy_errors), ("force_", force_errors)):
        error = torch.cat(errors).double()
        figures[f"{key}mae"] = float(error.abs().mean())
        figures[f"{key}rmse"] = float(error.square().mean().sqrt())
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, test on every frame left over, print one table, return the figures."""
    torch.set_flush_denormal(True)
    options = parse(argv)
    frames, _ = MD17Set(options.root, options.molecule, forces=True).load()
    split = random_split(len(frames), options.num_train, options.num_train, options.seed)
    frames = replace(frames, target=frames.target - frames.target[split.train].mean())
    train, validation, test = (
        frames.subset(part)
        for part in (split.train, split.validation, split.test[: options.num_test])
    )
    results = {}
    for name in NAMES if options.model == "both" else (options.model,):
        torch.manual_seed(options.seed)
        model, done = fit(name, build(name, train, options.quick), train, options)
        on_validation = {f"validation_{k}": v for k, v in errors_of(model, validation).items()}
        results[name] = {
            **errors_of(model, test),
            **on_validation,
            "test_frames": len(test),
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": done.seconds,
            "steps": done.steps,
        }
        if options.json:
            write(name, results[name], options)
    Console().print(table(results, options))
    return results


def write(name: str, figures: dict[str, float], options: Any) -> None:
    """The figures of one model, for the tables of ``make tables``."""
    about = {
        "method": f"{name}, plain loop",
        "molecule": options.molecule,
        "seed": options.seed,
        "num_train": options.num_train,
        "minutes": None if options.steps else options.minutes,
        "batch_size": options.batch_size,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    folder = Path(options.json)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, **figures}, indent=2) + "\n"
    (folder / f"{label(name, options)}.json").write_text(text)


def table(results: dict[str, dict[str, float]], options: Any) -> Table:
    """The figures side by side."""
    budget = f"{options.steps} steps" if options.steps else f"{options.minutes:g} minutes"
    title = f"{options.molecule}, {budget} of training each, test errors"
    result = Table(title=title)
    for heading in ("", *results):
        result.add_column(heading, justify="right" if heading else "left")
    for key, label, digits in (
        ("mae", "energy MAE (kcal/mol)", 3),
        ("rmse", "energy RMSE (kcal/mol)", 3),
        ("force_mae", "force MAE (kcal/mol/Å)", 3),
        ("force_rmse", "force RMSE (kcal/mol/Å)", 3),
        ("steps", "steps", 0),
        ("parameters", "parameters", 0),
    ):
        result.add_row(label, *(f"{figures[key]:,.{digits}f}" for figures in results.values()))
    return result


def parse(argv: Sequence[str] | None) -> Any:
    """Command-line options."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=str, default="data/md17", help="folder of MD17")
    parser.add_argument("--molecule", type=str, default="benzene", help='e.g. "revised toluene"')
    parser.add_argument("--model", type=Literal["both", "HIPNN", "SchNet"], default="both")
    parser.add_argument("--minutes", type=float, default=15.0, help="training time of each model")
    parser.add_argument("--steps", type=int | None, help="so many steps, whatever time they take")
    parser.add_argument("--warmup_steps", type=int, default=500, help="of the learning rate")
    parser.add_argument("--num_train", type=int, default=1_000, help="and as many to validate")
    parser.add_argument("--num_test", type=int | None, help="test on the first so many only")
    parser.add_argument("--batch_size", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and mini-batches")
    parser.add_argument("--json", type=str | None, help="folder for the figures")
    parser.add_argument("--keep", type=str | None, help="folder for checkpoints, to go on from")
    parser.add_argument("--quick", action="store_true", help="a few seconds, small models")
    options = parser.parse_args(argv)
    if options.quick:
        options.steps, options.warmup_steps = 300, 50
        options.num_train, options.num_test = 150, 200
    return options


if __name__ == "__main__":
    main()
