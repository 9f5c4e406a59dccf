"""Settings of a training run, as typed dataclasses; the command line is made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal

from hipnn_pyg.data.statistics import EnergyScale
from hipnn_pyg.nn.precision import Precision
from hipnn_pyg.units import Bohr

OWN: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 2000, "energy_scale": "total"},
    "fast": {"epochs": 100, "energy_scale": "residual"},
}
"""What a recipe takes where a setting is null."""
BEFORE: dict[str, Any] = {"energy_scale": "total"}
"""Settings whose default is not what was done before they existed -> what was done."""


@dataclass(frozen=True)
class Network:
    """The network. Lengths in Å.

    Without arguments it is the paper's QM9 model.

    Args:
        hidden_channels: N_feature.
        num_interactions: N_interaction.
        num_onsite: N_on-site.
        num_sensitivities: N_sensitivity.
        r_low: shortest initial sensitivity centre (Å).
        r_high: longest initial sensitivity centre (Å).
        cutoff: R_cut (Å).
        hierarchical: false for the paper's "no hierarchy" (Table II).
    """

    hidden_channels: int = 80
    num_interactions: int = 2
    num_onsite: int = 3
    num_sensitivities: int = 20
    r_low: float = round(1.7 * Bohr, 6)
    r_high: float = round(10 * Bohr, 6)
    cutoff: float = round(15 * Bohr, 6)
    hierarchical: bool = True


@dataclass(frozen=True)
class Training:
    """How to train.

    Args:
        recipe: "paper" (Secs. II.E.2, II.F: annealing on plateaus) or "fast" (warm-up, cosine,
            average of the weights).
        epochs: most epochs; null for the recipe's own, 2000 (paper) or 100 (fast).
        batch_size: molecules per mini-batch.
        learning_rate: initial (paper) or highest (fast) learning rate of Adam.
        energy_scale: what sigma_E is the standard deviation of: "total" for the energies or
            "residual" for E - E^0; null for the recipe's own, total (paper) or residual (fast).
            `hipnn train` reads it: a script gives it to ``HIPNN.fit_e0(scale=...)``.
        lambda_l2: weight of the L2 term (Eq. 16).
        lambda_r: weight of the non-hierarchicality term (Eq. 17).
        energy_weight: with forces: weight of the energies' error, relative to sigma_E.
        force_weight: with forces: weight of the forces' error, relative to their root mean square.
        stress_weight: with stress: weight of its error, relative to its root mean square.
        validate_every: epochs between two validations (fast only).
        t_init: paper: epochs before annealing may begin.
        t_patience: paper: epochs without a new best before the learning rate falls.
        decay: paper: factor by which it falls.
        warmup_steps: fast: steps of linear warm-up.
        average_decay: fast: decay of the weight average per update.
        average_every: fast: steps between updates of the average, at most those of an epoch.
        seed: of weights, mini-batches and, without a split_seed, of the split.
        split_seed: of the split, for several models on one split (calibrated error bars of an
            ensemble need that); null for seed. As energy_scale, `hipnn train` reads it.
        device: "cpu", "cuda" or "auto" for the latter where there is one.
        devices: processes on each node, one per device; "auto" for all GPUs. The mini-batch is
            split over them: their number changes the speed, not the result.
        num_nodes: nodes, each with so many devices.
        compile: run the step through torch.compile: "on", "off" or "auto" (on a GPU long runs that
            learn forces, in one process; on a CPU the package's own kernels are faster).
        capture: run the whole step as one CUDA graph: "auto" (on a GPU, one process), "on" or
            "off". On a CPU "on" runs the same step of fixed shapes without a graph, for tests.
        precision: of the matrix products of a training step: "float32", "tf32" (on a GPU) or
            "bf16"; validation and predictions stay float32.
        self_check: compare the kernel with the reference even if it passed on this machine before.
        checkpoint_seconds: time between checkpoints.
    """

    recipe: Literal["paper", "fast"] = "fast"
    epochs: int | None = None
    batch_size: int = 30
    learning_rate: float = 1e-3
    energy_scale: EnergyScale | None = None
    lambda_l2: float = 1e-6
    lambda_r: float = 1e-2
    energy_weight: float = 1.0
    force_weight: float = 1.0
    stress_weight: float = 0.3
    validate_every: int = 1
    t_init: int = 100
    t_patience: int = 50
    decay: float = 0.5
    warmup_steps: int = 500
    average_decay: float = 0.999
    average_every: int = 5
    seed: int = 0
    split_seed: int | None = None
    device: str = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    compile: Literal["auto", "on", "off"] = "auto"
    capture: Literal["auto", "on", "off"] = "auto"
    precision: Precision = "float32"
    self_check: bool = False
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        smallest = {"batch_size": 1, "warmup_steps": 0, "average_every": 1, "num_nodes": 1}
        smallest |= {"energy_weight": 0, "force_weight": 0, "validate_every": 1}
        smallest |= {"stress_weight": 0, "lambda_l2": 0, "lambda_r": 0, "seed": 0}
        smallest |= {"checkpoint_seconds": 0}
        if self.split_seed is not None:
            smallest["split_seed"] = 0
        if self.devices != "auto":
            smallest["devices"] = 1
        for name, least in smallest.items():
            if not getattr(self, name) >= least:  # nor nan
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("seed", "split_seed"):
            if (getattr(self, name) or 0) >= 2**63:  # files keep int64
                raise ValueError(f"{name} must be below 2**63, not {getattr(self, name)}")
        for name in ("average_decay", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")
        if self.recipe == "paper" and self.validate_every > 1:
            raise ValueError(
                f"validate_every = {self.validate_every}, but the paper's annealing needs a "
                "validation after every epoch: set it to 1, or take the recipe fast"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")

    @property
    def seed_of_split(self) -> int:
        """The seed that the split is drawn with."""
        return self.seed if self.split_seed is None else self.split_seed

    def resolved(self) -> Training:
        """The same settings with the recipe's own in the place of null."""
        own = {name: value for name, value in OWN[self.recipe].items() if not getattr(self, name)}
        return replace(self, **own)


def as_trained(settings: Mapping[str, Any], data: type) -> dict[str, Any]:
    """The settings of a run, with what was done where one did not exist yet.

    Args:
        settings: as they were kept.
        data: kind of the data set.
    """
    every = [field for kind in (data, Network, Training) for field in fields(kind)]
    defaults = {field.name: field.default for field in every if field.default is not MISSING}
    return {**defaults, **BEFORE, **settings}
