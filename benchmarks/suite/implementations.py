"""The implementations that are compared, ours and the peers, each in the form its users run.

All get the same process-wide settings, molecules, initial E^0 and optimizer (fused Adam). A step
is: find the pairs, predict, form the loss, differentiate, update.
"""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import dataloader
from torch_geometric.nn.models import SchNet

from hipnn_pyg import HIPNN, PackedMolecules, RadiusGraph, radius_graph
from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.graph import edge_distances
from hipnn_pyg.models import CapturedEnergies
from hipnn_pyg.train import HIPNNLoss
from hipnn_pyg.train.adam import VectorAdam
from hipnn_pyg.train.capture import CapturedStep, StepState, adam_state_of, gradient_of
from hipnn_pyg.train.graphs import COMPILES_FROM, TORCH
from hipnn_pyg.train.static import StaticBatches, StaticLoss
from hipnn_pyg.train.step import TrainingStep, compiled_gradient
from suite.rows import Unavailable
from suite.settings import Settings
from suite.structures import SPECIES

LAMBDA_L2, LAMBDA_R = 1e-6, 1e-2


def mae_plus_rmse(error: Tensor) -> Tensor:
    """What the loss of every peer has of the errors of a batch, Eqs. 12 and 13."""
    return error.abs().mean() + error.square().mean().sqrt()


class Implementation(ABC):
    """A model with its loss and its optimizer.

    Attributes:
        optimizer: of the learned parameters.
    """

    optimizer: torch.optim.Optimizer

    def _adam(self, *modules: torch.nn.Module) -> torch.optim.Adam:
        learned = (p for module in modules for p in module.parameters() if p.requires_grad)
        return torch.optim.Adam(learned, lr=1e-3, fused=True)

    def prepare(self, batch: MoleculeBatch) -> Any:
        """The batch in the form the model takes, without pairs. Not timed."""
        return batch

    def load(self, molecules: PackedMolecules, batches: Sequence[Tensor], action: str) -> list[Any]:
        """What the calls of ``action`` take, one after the other. Not timed.

        Args:
            molecules: all, on the device.
            batches: molecules of each batch.
            action: ``"step"`` or ``"energies"``.
        """
        return [self.prepare(molecules.gather(index)) for index in batches]

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The loss of a prepared batch."""

    @abstractmethod
    def energies(self, batch: Any) -> Tensor:
        """Energies of a prepared batch (call without gradients)."""

    def step(self, batch: Any) -> None:
        """One training step."""
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ours(Implementation):
    """HIP-NN of this package, as its trainer runs it.

    Args:
        molecules: for E^0 and sigma_E.
        settings: sizes and seed.
        device: where it runs.
        compiled: whether the step is compiled.
    """

    def __init__(
        self, molecules: PackedMolecules, settings: Settings, device: str, compiled: bool
    ) -> None:
        if compiled and not settings.compiled:
            raise Unavailable("not compiled in this run")
        if compiled and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            raise Unavailable("no C++ compiler")
        if compiled and TORCH < COMPILES_FROM:
            raise Unavailable(f"PyTorch {torch.__version__} does not compile training steps")
        model = HIPNN(SPECIES, **asdict(settings.network), validate=False)
        self.model = model.fit_e0(molecules, molecules.spec).to(device).train()
        self.objective = TrainingStep(HIPNNLoss(self.model, LAMBDA_L2, LAMBDA_R))
        self.frozen = self.objective.frozen
        gradient = self.objective.gradient
        self.gradient = compiled_gradient(gradient) if compiled else gradient
        self.optimizer = VectorAdam(self.objective.vector)

    def loss(self, batch: MoleculeBatch) -> Tensor:
        return self.objective(batch).loss

    def step(self, batch: MoleculeBatch) -> None:
        vector = self.objective.vector
        _, vector.grad = self.gradient(vector, self.frozen, batch)
        self.optimizer.update()

    def energies(self, batch: MoleculeBatch) -> Tensor:
        num_graphs = batch.target.numel()
        return self.model.energy_terms(
            batch.z, batch.pos, batch.batch, num_graphs=num_graphs
        ).energy

    def energy_from_pairs(self, z: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        """Energy of one structure whose pairs are known."""
        return self.model.energy_terms(z, pos, edge_index=edge_index).energy


class Captured(Ours):
    """HIP-NN of this package as its trainer runs it on a GPU: a step is one CUDA graph.

    Mini-batches are drawn within the step, from molecules that live on the device. On a CPU the
    same step runs without a graph. Energies are those of ``CapturedEnergies``.

    Args:
        molecules: for E^0 and sigma_E.
        settings: sizes and seed.
        device: where it runs.
    """

    def __init__(self, molecules: PackedMolecules, settings: Settings, device: str) -> None:
        super().__init__(molecules, settings, device, compiled=False)
        self.objective = TrainingStep(StaticLoss(self.model, LAMBDA_L2, LAMBDA_R))
        self.optimizer = VectorAdam(self.objective.vector)
        self.steps: dict[int, CapturedStep] = {}  # by batch size
        self.captured = CapturedEnergies(self.model)

    def load(self, molecules: PackedMolecules, batches: Sequence[Tensor], action: str) -> list[Any]:
        """All that steps draw is written to the device here."""
        if action != "step":
            return super().load(molecules, batches, action)
        size = batches[0].numel()
        if size not in self.steps or len(self.steps[size].rates) < len(batches):
            drawn = StaticBatches(molecules, size, steps=max(len(batches), 64))
            totals = torch.zeros(3, dtype=torch.float64, device=molecules.device)
            bad = torch.tensor(-1, device=molecules.device)
            vector = self.objective.vector
            moments = adam_state_of(self.optimizer, vector)
            state = StepState(vector.detach(), *moments, totals, bad)
            settings = self.optimizer.param_groups[0]
            self.steps[size] = CapturedStep(gradient_of(self.objective), state, settings, drawn)
        step = self.steps[size]
        rates = torch.full_like(step.rates, 1e-3)
        step.begin(torch.cat(list(batches)), 0, rates, torch.zeros_like(rates))
        return [step] * len(batches)

    def step(self, batch: CapturedStep) -> None:
        batch()

    def energies(self, batch: MoleculeBatch) -> Tensor:
        return self.captured.in_float64(batch.z, batch.pos, batch.batch, batch.target.numel())


class Hippynn(Implementation):
    """hippynn's HIP-NN of the same sizes: its graph, pair finder and kernels, the same loss.

    Args:
        molecules: for E^0 and sigma_E.
        settings: sizes and seed.
        device: where it runs.
        kernels: a name of hippynn's ``set_custom_kernels``.
    """

    def __init__(
        self, molecules: PackedMolecules, settings: Settings, device: str, kernels: str
    ) -> None:
        if kernels in ("numba", "triton"):
            importlib.import_module(kernels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import hippynn
            from hippynn.graphs import GraphModule, inputs, networks, targets
        hippynn.settings.WARN_LOW_DISTANCES = False
        hippynn.custom_kernels.set_custom_kernels(kernels)
        sizes = settings.network
        species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
        module_kwargs = {
            "possible_species": [0, *SPECIES],
            "n_features": sizes.hidden_channels,
            "n_sensitivities": sizes.num_sensitivities,
            "n_interaction_layers": sizes.num_interactions,
            "n_atom_layers": sizes.num_onsite,
            "dist_soft_min": sizes.r_low,
            "dist_soft_max": sizes.r_high,
            "dist_hard_max": sizes.cutoff,
        }
        node = networks.Hipnn("net", (species, positions), module_kwargs=module_kwargs)
        energy = targets.HEnergyNode("energy", node)
        outputs = [energy.mol_energy, energy.hierarchicality]
        self.graph = GraphModule([species, positions], outputs).to(device)
        self.network, self.henergy = node.torch_module, energy.torch_module
        self.energy_node = energy
        reference = HIPNN(SPECIES).fit_e0(molecules, molecules.spec)
        self.sigma_e = reference.sigma_e
        e0, *readouts = self.henergy.layers
        with torch.no_grad():
            e0.weight.copy_(reference.reference.weight).requires_grad_(False)
        self.weights = [*self.network.regularization_params(), *(w.weight for w in readouts)]
        self.optimizer = self._adam(self.network, self.henergy)

    def prepare(self, batch: MoleculeBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Species and positions padded to the largest molecule of the batch; the target."""
        counts = (batch.ptr[1:] - batch.ptr[:-1]).tolist()
        z, pos = (pad_sequence(x.split(counts), True) for x in (batch.z, batch.pos))
        return z, pos, batch.target.to(pos.dtype).unsqueeze(1)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        z, pos, target = batch
        energy, hierarchicality = self.graph(z, pos)
        error = energy - target
        l2 = torch.stack([w.square().sum() for w in self.weights]).sum()
        fit = mae_plus_rmse(error) / self.sigma_e
        return fit + LAMBDA_L2 * l2 + LAMBDA_R * hierarchicality.mean()

    def energies(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return self.graph(batch[0], batch[1])[0]

    def energy_from_pairs(self, z: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        """Energy of one structure whose pairs are known; hippynn's "first" atom receives."""
        from hippynn.custom_kernels.utils import clear_pair_cache

        clear_pair_cache()  # a new structure each time: no sorting is left from the last one
        j, i = edge_index
        species = (z.unsqueeze(1) == torch.tensor(SPECIES, device=z.device)).int().argmax(1)
        features = one_hot(species, len(SPECIES))
        terms = self.network(features, i, j, edge_distances(pos, edge_index))
        return self.henergy(terms, torch.zeros_like(z), 1)[0]


class PyGSchNet(Implementation):
    """PyG's SchNet with its defaults and a plain loss, MAE + RMSE.

    Its pairs (10 Å) come from our ``RadiusGraph``, which runs without torch-cluster.

    Args:
        molecules: not used.
        settings: seed, and sizes in a quick run.
        device: where it runs.
    """

    def __init__(self, molecules: PackedMolecules, settings: Settings, device: str) -> None:
        graph = RadiusGraph(10.0)
        self.model = SchNet(interaction_graph=graph, **dict(settings.schnet)).to(device)
        self.optimizer = self._adam(self.model)

    def loss(self, batch: MoleculeBatch) -> Tensor:
        error = self.energies(batch)[:, 0] - batch.target.to(batch.pos.dtype)
        return mae_plus_rmse(error)

    def energies(self, batch: MoleculeBatch) -> Tensor:
        return self.model(batch.z, batch.pos, batch.batch)


class SchNetPack(Implementation):
    """What SchNetPack trains on QM9 by default, PaiNN with pairs within 5 Å; loss MAE + RMSE.

    Pairs belong to its data pipeline, which can keep them: they are found before the clock starts.

    Args:
        molecules: not used.
        settings: seed, and sizes in a quick run.
        device: where it runs.
    """

    CUTOFF = 5.0

    def __init__(self, molecules: PackedMolecules, settings: Settings, device: str) -> None:
        # The newest whose requirements PyTorch's allow, 2.0.3, imports a name that PyTorch gave up.
        vars(dataloader).setdefault("T_co", TypeVar("T_co", covariant=True))
        import schnetpack as spk

        self.keys = spk.properties
        sizes = {"n_atom_basis": 128, "n_interactions": 3} | dict(settings.schnetpack)
        painn = spk.representation.PaiNN(
            **sizes,
            radial_basis=spk.nn.GaussianRBF(n_rbf=20, cutoff=self.CUTOFF),
            cutoff_fn=spk.nn.CosineCutoff(self.CUTOFF),
        )
        self.model = spk.model.NeuralNetworkPotential(
            painn,
            input_modules=[spk.atomistic.PairwiseDistances()],
            output_modules=[spk.atomistic.Atomwise(painn.n_atom_basis, output_key="energy")],
        ).to(device)
        self.optimizer = self._adam(self.model)

    def prepare(self, batch: MoleculeBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Atoms and pairs under SchNetPack's names; the target."""
        j, i = radius_graph(batch.pos, self.CUTOFF, batch.batch)
        keys, offsets = self.keys, batch.pos.new_zeros(i.numel(), 3)
        atoms = {keys.Z: batch.z, keys.R: batch.pos, keys.idx_m: batch.batch}
        pairs = {keys.idx_i: i, keys.idx_j: j, keys.offsets: offsets}
        return atoms | pairs, batch.target.to(batch.pos.dtype)

    def loss(self, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        error = self.energies(batch) - batch[1]
        return mae_plus_rmse(error)

    def energies(self, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        return self.model(dict(batch[0]))["energy"]


BUILDERS: dict[str, Callable[[PackedMolecules, Settings, str], Implementation]] = {
    "HIPNN compiled": partial(Ours, compiled=True),
    "HIPNN": partial(Ours, compiled=False),
    "HIPNN captured": Captured,
    "hippynn numba": partial(Hippynn, kernels="numba"),
    "hippynn triton": partial(Hippynn, kernels="triton"),
    "hippynn pytorch": partial(Hippynn, kernels="pytorch"),
    "SchNet": PyGSchNet,
    "SchNetPack": SchNetPack,
}
OURS = ("HIPNN", "HIPNN compiled")
CAPTURED = "HIPNN captured"
