"""Learn the energy of one MD17 trajectory from 1,000 frames, as in Table III of the paper.

The high-level way: packed molecules and the Trainer, which keeps the best validation epoch.

    python examples/03_md17.py --molecule benzene --epochs 2000

Energies are read in float64, which PyG's own MD17 rounds to float32; errors are in kcal/mol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.data.md17 import load_md17
from hipnn_pyg.data.splits import random_split
from hipnn_pyg.data.targets import MD17_ENERGY
from hipnn_pyg.paper import TABLE_3
from hipnn_pyg.train import Trainer, Training, error_statistics, predict


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, test on every frame left over, print the error beside the paper's."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    options = parse(argv)

    frames = PackedMolecules.pack(load_md17(options.root, options.molecule), MD17_ENERGY)
    split = random_split(len(frames), options.num_train, options.num_train, seed=0)
    train, validation, test = (
        frames.subset(part) for part in (split.train, split.validation, split.test)
    )

    species = sorted(set(frames.z.tolist()))
    model = HIPNN(species, hidden_channels=20, num_onsite=0).fit_e0(train, target=MD17_ENERGY)
    settings = Training(options.recipe, epochs=options.epochs, device=options.device)
    trainer = Trainer(model, train, validation, settings, folder=options.run)
    model = trainer.fit()

    prediction = predict(model, test.to(trainer.device))
    errors = error_statistics(prediction.energy, test.target, MD17_ENERGY.unit)
    published = TABLE_3[options.molecule][0] if options.molecule in TABLE_3 else None
    print(f"{options.molecule}: test MAE {errors.mae:.3f} {errors.unit} ({len(test)} frames)")
    if published is not None:
        print(f"paper, from 1,000 training frames: {published} kcal/mol")
    return {
        "train_loss": [row["train_loss"] for row in trainer.history],
        "validation_mae": trainer.best_mae,
        "test_mae": errors.mae,
        "published_mae": published,
        "unit": errors.unit,
        "sizes": split.sizes,
        "shape": prediction.energy.shape,
    }


def parse(argv: Sequence[str] | None) -> Any:
    """Command-line options."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=str, default="data/md17", help="folder of MD17")
    parser.add_argument("--molecule", type=str, default="benzene", help="name of the trajectory")
    parser.add_argument("--recipe", type=Literal["fast", "paper"], default="fast")
    parser.add_argument("--epochs", type=int, default=2_000)
    parser.add_argument("--num_train", type=int, default=1_000, help="and as many to validate")
    parser.add_argument("--run", type=str | None, help="folder for model files and logs")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="few frames and epochs")
    options = parser.parse_args(argv)
    if options.quick:
        options.recipe, options.epochs, options.num_train = "paper", 50, 180
    return options


if __name__ == "__main__":
    main()
