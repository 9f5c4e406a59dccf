"""HIP-NN against PyG's SchNet: same framework, molecules, split, loss, loader and training time.

Both get the same E^0 (least squares on the training set) and the same energy scale, their own
sensible learning rate, a cosine over the given time, and a running average of the weights.

    python examples/06_compare.py --minutes 20

Energies: U0 atomisation energy of QM9; the table is in kcal/mol. ``--json`` keeps the figures.
"""

from __future__ import annotations

import json
import math
import platform
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch_geometric.nn.models import SchNet
from tqdm import tqdm

from hipnn_pyg import HIPNN, PackedLoader, PackedMolecules, RadiusGraph
from hipnn_pyg.data.sets import QM9Set
from hipnn_pyg.data.splits import random_split
from hipnn_pyg.train import error_statistics
from hipnn_pyg.train.recipe import running_average


class ScaledSchNet(SchNet):
    """SchNet whose output is in units of ``scale``, on top of the reference model's E^0.

    Args:
        e0: the fitted zeroth order of a HIPNN.
        scale: energy scale (eV).
    """

    def __init__(self, e0: Callable[[Tensor, Tensor], Tensor], scale: float, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.e0, self.energy_scale = e0, scale

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        """Total energies in eV, float64, ``[G, 1]``."""
        assert batch is not None
        return self.e0(z, batch) + self.energy_scale * super().forward(z, pos, batch).double()


def build(name: str, train: PackedMolecules, quick: bool) -> tuple[torch.nn.Module, float]:
    """A model with the common E^0 and scale (eV), and its learning rate."""
    hipnn = HIPNN(hidden_channels=16 if quick else 80)
    hipnn.fit_e0(train, target=train.spec, scale="residual")
    scale = float(hipnn.sigma_e)

    def e0(z: Tensor, batch: Tensor) -> Tensor:
        energy = hipnn.reference(hipnn.species_index(z))
        num_graphs = int(batch[-1]) + 1
        return energy.new_zeros(num_graphs).index_add(0, batch, energy).unsqueeze(1)

    if name == "HIPNN":
        return hipnn, 1e-3
    sizes = {"hidden_channels": 16, "num_filters": 16} if quick else {}  # else SchNet's defaults
    return ScaledSchNet(e0, scale, interaction_graph=RadiusGraph(10.0), **sizes), 5e-4


NAMES = ("HIPNN", "SchNet")


def parse(argv: Sequence[str] | None) -> Any:
    """Command-line options."""
    options = ArgumentParser(description=__doc__)
    options.add_argument("--root", default="data/qm9", help="folder of QM9")
    options.add_argument("--minutes", type=float, default=20.0, help="training time of each model")
    options.add_argument("--batch_size", type=int, default=30)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--num_train", type=int, default=109_426)
    options.add_argument("--num_test", type=int | None, help="test on the first so many only")
    options.add_argument("--json", type=str | None, help="file for the figures")
    options.add_argument("--quick", action="store_true", help="a few seconds, small models")
    arguments = options.parse_args(argv)
    if arguments.quick:
        arguments.minutes, arguments.num_train, arguments.num_test = 0.05, 500, 200
    return arguments


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train both, print one table, return the figures."""
    arguments = parse(argv)
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
    packed, kept = QM9Set(root=arguments.root).load()
    split = random_split(len(packed), arguments.num_train, 1_000, arguments.seed, kept)
    train, test = packed.subset(split.train), packed.subset(split.test[: arguments.num_test])
    results = {}
    for name in NAMES:  # a process each, so that peak memory is each one's own
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            results[name] = process.submit(contest, name, train, test, arguments).result()
    Console().print(table(results, arguments))
    if arguments.json:
        about = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "options": {k: v for k, v in arguments.as_dict().items() if k not in ("json", "root")},
        }
        Path(arguments.json).write_text(json.dumps({**about, "results": results}, indent=2))
    return results


def contest(
    name: str, train: PackedMolecules, test: PackedMolecules, arguments: Any
) -> dict[str, float]:
    """Train one model for the given time and test it."""
    torch.set_flush_denormal(True)
    torch.manual_seed(arguments.seed)
    model, learning_rate = build(name, train, arguments.quick)
    averaged, seen, seconds = fit(name, model, train, learning_rate, arguments)
    peak = peak_memory()
    statistics = error_statistics(predict(averaged, test), test.target, train.spec.unit)
    return {
        "mae_kcal_per_mol": statistics.mae,
        "rmse_kcal_per_mol": statistics.rmse,
        "molecules_per_second": seen / seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_memory_mb": peak,
        "epochs": seen / len(train),
        "learning_rate": learning_rate,
        "test_molecules": len(test),
    }


def peak_memory() -> float:
    """Of this process in MB; on Linux not of the one that started it, as ``ru_maxrss`` may be."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on a Mac
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def energy(model: torch.nn.Module, data: Any) -> Tensor:
    """Total energies in eV, float64, ``[G]``; the only line that knows the models apart."""
    if isinstance(model, HIPNN):
        return model.energy_terms(data.z, data.pos, data.batch).energy[:, 0]
    return model(data.z, data.pos, data.batch)[:, 0]


def fit(
    name: str, model: torch.nn.Module, train: PackedMolecules, learning_rate: float, arguments: Any
) -> tuple[torch.nn.Module, int, float]:
    """The loop both share; returns the averaged model, molecules seen and seconds."""
    loader = PackedLoader(train, arguments.batch_size, shuffle=True, seed=arguments.seed)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=learning_rate, fused=True)
    average = AveragedModel(model, multi_avg_fn=running_average(0.999))
    budget, seen, step = 60 * arguments.minutes, 0, 0
    began = time.monotonic()
    with tqdm(total=round(budget), unit="s", mininterval=10, desc=name) as bar:
        while (elapsed := time.monotonic() - began) < budget:
            for data in loader:
                warmup = min(1.0, (step + 1) / 500)
                cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, elapsed / budget)))
                optimizer.param_groups[0]["lr"] = learning_rate * warmup * cosine
                loss = (energy(model, data) - data.y).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen, step = seen + data.y.numel(), step + 1
                if step % 5 == 0:
                    average.update_parameters(model)
                elapsed = time.monotonic() - began
                bar.update(min(bar.total, round(elapsed)) - bar.n)
                if elapsed >= budget:
                    break
    return average.module.eval(), seen, elapsed


@torch.no_grad()
def predict(model: torch.nn.Module, molecules: PackedMolecules) -> Tensor:
    """Energies of all molecules in eV."""
    return torch.cat([energy(model, data) for data in PackedLoader(molecules, 128)])


def table(results: dict[str, dict[str, float]], arguments: Any) -> Table:
    """The figures side by side."""
    title = f"QM9 U0, {arguments.minutes:g} minutes of training each, batch {arguments.batch_size}"
    result = Table(title=title)
    result.add_column("")
    for name in results:
        result.add_column(name, justify="right")
    for key, label, digits in (
        ("mae_kcal_per_mol", "test MAE (kcal/mol)", 3),
        ("rmse_kcal_per_mol", "test RMSE (kcal/mol)", 3),
        ("molecules_per_second", "training molecules/s", 0),
        ("epochs", "epochs seen", 2),
        ("parameters", "parameters", 0),
        ("peak_memory_mb", "peak memory of the process (MB)", 0),
    ):
        result.add_row(label, *(f"{figures[key]:,.{digits}f}" for figures in results.values()))
    return result


if __name__ == "__main__":
    main()
