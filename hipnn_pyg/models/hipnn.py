"""HIP-NN, read from left to right as Fig. 1 of the paper (J. Chem. Phys. 148, 241715, 2018)."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from hipnn_pyg.checks import HIPNNWarning, check_distances, check_graphs, check_species
from hipnn_pyg.data.packed import PackedLoader, PackedMolecules
from hipnn_pyg.data.statistics import EnergyScale, fit_reference_energies
from hipnn_pyg.data.targets import Target, resolve_target
from hipnn_pyg.graph import (
    Pairs,
    all_pairs,
    edge_distances,
    edge_pairs,
    laid_out,
    molecule_sizes,
    radius_graph,
)
from hipnn_pyg.graph.neighbors import BACKENDS
from hipnn_pyg.nn import (
    EnergyReadout,
    EnvironmentSum,
    Interaction,
    OnSite,
    ReferenceEnergy,
    Sensitivity,
    fused_layers,
    has_kernels,
    molecule_sums,
)
from hipnn_pyg.ops import KernelUnavailableError, available, molecule_kernels, transformed
from hipnn_pyg.units import Bohr

Kernel = Literal["auto", "fused", "padded", "reference"]

UNDER_TRANSFORMS = "torch.jit.trace, torch.func and forward-mode derivatives cannot see kernels"
SEARCH_BEYOND = 64
"""Molecules of at most so many atoms need no neighbour search."""


class EnergyTerms(NamedTuple):
    """What HIP-NN knows about a batch of molecules. Energies are in the model's energy unit.

    Attributes:
        energy: total energies, float64, ``[G, 1]``.
        terms: :math:`E_i^n` of each atom and order, float64, ``[N, num_interactions + 1]``.
        nonhierarchicality: R of each molecule (Eq. 18), dimensionless, ``[G]``.
        features: the last layer's atomic features, dimensionless, ``[N, hidden_channels]``.
    """

    energy: Tensor
    terms: Tensor
    nonhierarchicality: Tensor
    features: Tensor


class Block(nn.Module):
    """One order of the hierarchy: an interaction layer, its on-site layers, the linear readout.

    Args:
        in_channels: features of the order below.
        hidden_channels: features of every layer of the block.
        num_onsite: number of on-site layers.
        order: n of the readout.
        sensitivity: the interaction layer's functions.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_onsite: int,
        order: int,
        sensitivity: Sensitivity,
    ) -> None:
        super().__init__()
        self.interaction = Interaction(in_channels, hidden_channels, sensitivity)
        self.onsite = nn.Sequential(
            *(OnSite(hidden_channels, hidden_channels) for _ in range(num_onsite))
        )
        self.readout = EnergyReadout(hidden_channels, order)

    def forward(self, z: Tensor, pairs: Pairs, sigma_e: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[N, in]`` to features ``[N, hidden]`` and energies E_i^n ``[N]``."""
        if has_kernels(self.interaction, self.onsite, z, pairs):
            z = fused_layers(self.interaction, [*self.onsite], z, pairs)
        else:
            z = self.onsite(self.interaction(z, pairs))
        return z, self.readout(z, sigma_e)


class HIPNN(nn.Module):
    r"""Hierarchically Interacting Particle Neural Network.

    .. math:: E = \sum_i \sum_{n=0}^{N_\mathrm{interaction}} E_i^n,
        \qquad E_i^n = w^n \cdot z_i^{\ell_n} + b^n \quad \text{(Eqs. 1, 2, 4)}

    Called like ``torch_geometric.nn.models.SchNet``: ``model(z, pos, batch) -> [num_graphs, 1]``.
    Defaults are the paper's QM9 model: lengths 1.7, 10 and 15 Bohr, given here in Å.

    Args:
        species: atomic numbers the model knows, in the order of its one-hot input (Eq. 3).
        hidden_channels: N_feature.
        num_interactions: N_interaction, the highest order n.
        num_onsite: N_on-site, on-site layers after each interaction.
        num_sensitivities: N_sensitivity.
        r_low: shortest initial sensitivity centre in Å.
        r_high: longest initial sensitivity centre in Å.
        cutoff: R_cut in Å.
        hierarchical: False gives the paper's "no hierarchy": w^n = b^n = 0 below the last order.
        e0: energies of the species (E^0 per atom), a sequence in the order of ``species`` or a
            mapping from atomic number; None for 0. Usually set by :meth:`fit_e0`.
        sigma_e: sigma_E, the energy scale of the readouts (energy unit).
        energy_unit: name of the energy unit; set by :meth:`fit_e0` from the target.
        kernel: how neighbours are summed, always to the same numbers: ``"reference"`` (message
            passing over edges, the specification), ``"padded"`` (plain PyTorch, faster),
            ``"fused"`` (compiled kernels: C++ on a CPU, Triton on a GPU) or ``"auto"`` (fused
            where a compiler is found, else padded).
        backend: neighbour search, see :func:`hipnn_pyg.graph.radius_graph`.
        validate: check inputs on every eager call (:mod:`hipnn_pyg.checks`). Without, energies with
            an atom of another species are NaN. To be False under ``torch.vmap``.

    Raises:
        ValueError: a size or a length that makes no model.
        TypeError: a size that is not a whole number, or species that are no sequence.
    """

    def __init__(
        self,
        species: Sequence[int] = (1, 6, 7, 8, 9),
        hidden_channels: int = 80,
        num_interactions: int = 2,
        num_onsite: int = 3,
        num_sensitivities: int = 20,
        r_low: float = 1.7 * Bohr,
        r_high: float = 10 * Bohr,
        cutoff: float = 15 * Bohr,
        hierarchical: bool = True,
        e0: Sequence[float] | Mapping[int, float] | None = None,
        sigma_e: float = 1.0,
        energy_unit: str = "unknown",
        kernel: Kernel = "auto",
        backend: str = "torch",
        validate: bool = True,
    ) -> None:
        super().__init__()
        try:
            numbers = [operator.index(number) for number in species]
        except TypeError:
            raise TypeError(
                f"species must be a sequence of atomic numbers, not {species!r}: unlike SchNet's, "
                "the other sizes are given by name"
            ) from None
        self.hyperparameters: dict[str, Any] = {
            "species": numbers,
            "hidden_channels": operator.index(hidden_channels),
            "num_interactions": operator.index(num_interactions),
            "num_onsite": operator.index(num_onsite),
            "num_sensitivities": operator.index(num_sensitivities),
            "r_low": float(r_low),
            "r_high": float(r_high),
            "cutoff": float(cutoff),
            "hierarchical": bool(hierarchical),
        }
        _check_hyperparameters(self.hyperparameters, backend)
        cutoff = self.cutoff
        self.energy_unit = energy_unit
        self.kernel = kernel
        self.backend = backend
        self.validate = validate
        self.warn_unfitted = True
        self.card: dict[str, Any] = {}
        """What the file says that the model was read from."""

        self.reference = ReferenceEnergy(len(self.species))
        self._species_index = self._index_of_species(self.reference.weight.device)
        sizes = [len(self.species)] + [hidden_channels] * num_interactions
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(
                sizes[n - 1],
                hidden_channels,
                num_onsite,
                n,
                Sensitivity(num_sensitivities, r_low, r_high, cutoff),
            )
            for n in range(1, num_interactions + 1)
        )
        self._fix_lower_orders()
        self.set_e0(e0, sigma_e)

    def _index_of_species(self, device: torch.device) -> Tensor:
        """Place of each atomic number in the species list; -1 for 0, foreign ones and the last."""
        index = [-1] * (max(self.species) + 2)
        for place, number in enumerate(self.species):
            index[number] = place
        return torch.tensor(index, device=device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HIPNN:
        """The index moves, too: as a buffer, averages and casts would take it for weights."""
        super()._apply(fn, recurse)
        device = self.reference.weight.device
        if self._species_index.device != device:  # else a recorded graph may read this one
            self._species_index = self._index_of_species(device)
        return self

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that the model knows, in the order of its one-hot input."""
        return tuple(self.hyperparameters["species"])

    @property
    def cutoff(self) -> float:
        """R_cut in Å; another makes another model."""
        return float(self.hyperparameters["cutoff"])

    @property
    def hierarchical(self) -> bool:
        """Whether all orders have a readout."""
        return bool(self.hyperparameters["hierarchical"])

    @property
    def kernel(self) -> Kernel:
        """How neighbours are summed; may be changed at any time.

        Raises:
            ValueError: a kernel that there is not.
        """
        return self._kernel

    @kernel.setter
    def kernel(self, kernel: Kernel) -> None:
        if kernel not in get_args(Kernel):
            raise ValueError(f"kernel must be one of {get_args(Kernel)}, not {kernel!r}")
        self._kernel = kernel

    @classmethod
    def from_pretrained(cls, name: str, device: torch.device | str = "cpu") -> HIPNN:
        """A trained model that comes with the package; needs no network.

        Of an ensemble it is the first; :class:`hipnn_pyg.uncertainty.CalibratedModel` loads all,
        with their error bars.

        Args:
            name: such as ``"qm9-u0"``, see :func:`hipnn_pyg.models.pretrained_models`.
            device: where to put it.

        Raises:
            ModelFileError: no model of that name comes with this version.
        """
        from hipnn_pyg.models.files import load_model  # the file reader builds a HIPNN
        from hipnn_pyg.models.pretrained import pretrained_folder

        return load_model(pretrained_folder(name), device)

    def reset_parameters(self) -> None:
        """Draw all weights anew (global seed); E^0 and sigma_E stay."""
        for module in self.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None and module is not self:
                reset()
        self._fix_lower_orders()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] |= {"species": self.species, "cutoff": self.cutoff}

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *given: Any,
    ) -> None:
        """Refuse weights that have the right shapes and mean something else."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *given)
        errors: list[str] = given[-1]
        species = tuple(local_metadata.get("species", self.species))
        cutoff = float(local_metadata.get("cutoff", self.cutoff))
        if species != self.species:
            errors.append(
                f"the weights are of a model with species={species}, not {self.species}: build "
                f"this one with HIPNN(species={species}, ...)"
            )
        if not math.isclose(cutoff, self.cutoff, rel_tol=1e-6):
            errors.append(
                f"the weights are of a model with cutoff={cutoff:.6g} Å, not {self.cutoff:.6g}: "
                f"build this one with HIPNN(cutoff={cutoff!r}, ...)"
            )

    def _fix_lower_orders(self) -> None:
        """Without hierarchy w^n = b^n = 0 below the last order (Table II)."""
        for block in () if self.hierarchical else self.blocks[:-1]:
            for parameter in block.readout.parameters():
                nn.init.zeros_(parameter).requires_grad_(False)

    # -- the energy scale ----------------------------------------------------------------------

    @property
    def sigma_e(self) -> float:
        """sigma_E, the energy scale of readouts and loss (energy unit); see :meth:`fit_e0`."""
        return float(self.reference.sigma_e)

    @property
    def num_parameters(self) -> int:
        """The number of parameters, E^0 and sensitivities included, as the paper counts."""
        return sum(parameter.numel() for parameter in self.parameters())

    def set_e0(
        self, e0: Sequence[float] | Mapping[int, float] | Tensor | None, sigma_e: float
    ) -> None:
        """Set the frozen zeroth order and the energy scale.

        Args:
            e0: see the class; None for 0 (always 0 without hierarchy).
            sigma_e: sigma_E > 0 (energy unit).

        Raises:
            ValueError: an energy is missing or not finite, or sigma_e is not positive.
        """
        if isinstance(e0, Mapping):
            missing = sorted(set(self.species) - set(e0))
            if missing:
                raise ValueError(f"e0 has no energy for atomic number {missing[0]}: add it")
            e0 = [e0[number] for number in self.species]
        given = [0.0] * len(self.species) if e0 is None else e0
        values = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
        if values.shape != (len(self.species),) or not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"e0 must be {len(self.species)} finite energies, one per species "
                f"{self.species}, not {values.tolist()}"
            )
        if not 0 < sigma_e < float("inf"):
            raise ValueError(f"sigma_e must be positive and finite, not {sigma_e}")
        if not self.hierarchical and bool((values != 0).any()):
            raise ValueError("hierarchical=False fixes w^0 = 0 (Table II): leave e0 out")
        with torch.no_grad():
            self.reference.weight.copy_(values)
            self.reference.sigma_e.fill_(sigma_e)

    def fit_e0(
        self,
        data: Any,
        target: str | int | Target | None = None,
        scale: EnergyScale = "total",
    ) -> HIPNN:
        """Set E^0 (least squares, float64) and sigma_E from training molecules (Sec. II.F).

        Without hierarchy E^0 stays 0 and only sigma_E is set.

        Args:
            data: the training molecules: a PyG dataset, a list of ``Data``, a ``DataLoader``,
                :class:`~hipnn_pyg.data.packed.PackedMolecules` or a loader of these.
            target: a QM9 name such as ``"U0_atom"``, ``"energy"``, a column of ``y``, the name of
                an attribute (:func:`~hipnn_pyg.data.targets.resolve_target` says in which unit),
                or a :class:`~hipnn_pyg.data.targets.Target`; None for the one that molecules were
                packed with, else ``"U0_atom"``.
            scale: sigma_E is the standard deviation of the energies (``"total"``, the paper's) or
                of E - E^0 (``"residual"``, which trains to lower errors in the same time).

        Returns:
            The model itself.

        Raises:
            StructureError: no molecules, foreign species, or a target that is not finite.
            ValueError: packed molecules of another target.
        """
        if isinstance(data, PackedLoader):
            data = data.molecules
        if target is None:
            target = data.spec if isinstance(data, PackedMolecules) else "U0_atom"
        target = resolve_target(target, data)
        scale = scale if self.hierarchical else "total"
        weight, sigma_e = fit_reference_energies(data, target, self.species, scale)
        self.set_e0(weight if self.hierarchical else None, sigma_e)
        self.energy_unit = target.unit
        return self

    def _warn_if_unfitted(self) -> None:
        """One warning per model, when it is first trained without an energy scale."""
        if not self.training or not self.warn_unfitted or transformed():
            return
        self.warn_unfitted = False
        if self.sigma_e == 1.0 and not bool(self.reference.weight.any()):
            warnings.warn(
                "E^0 is 0 and sigma_E is 1: call model.fit_e0(train_dataset, target=...) before "
                "training, it makes HIP-NN learn much faster",
                HIPNNWarning,
                stacklevel=4,
            )

    # -- Fig. 1, left to right -----------------------------------------------------------------

    def kernel_on(self, device: torch.device) -> Kernel:
        """What ``kernel`` means on a device: ``"auto"`` decided; kernels are compiled if need be.

        A trace (``torch.jit.trace``) takes the reference, where no number of atoms is kept.

        Raises:
            KernelUnavailableError: ``kernel="fused"`` and there are no kernels; the reason.
        """
        if torch.jit.is_tracing() and self.kernel != "fused":
            return "reference"
        if self.kernel not in ("auto", "fused"):
            return self.kernel
        missing = UNDER_TRANSFORMS if transformed() else available(device.type)
        if missing and self.kernel == "fused":
            other = "reference" if torch.jit.is_tracing() else "padded"
            raise KernelUnavailableError(f'{missing}: use kernel="{other}"')
        return "padded" if missing else "fused"

    def pairs(
        self,
        pos: Tensor,
        batch: Tensor,
        edge_index: Tensor | None = None,
        shift: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> Pairs:
        """Neighbour pairs of a batch in the layout that the model's kernel takes.

        Args:
            pos: positions in Å, ``[N, 3]``.
            batch: molecule of each atom, sorted, ``[N]``.
            edge_index: the user's own edges ``[2, E]`` (j, i) instead of the built-in search.
            shift: their periodic-image vectors in Å, ``[E, 3]``.
            num_graphs: G, if known (saves a synchronisation on a GPU).
        """
        if edge_index is not None and self._explained():
            j, i = edge_index.long()  # a mask has an entry for each edge, in the user's order
            return Pairs(j, i, edge_distances(pos, edge_index, shift))
        kernel = self.kernel_on(pos.device)
        if edge_index is None and self.backend == "torch" and kernel != "reference":
            ptr, largest, num_edges = molecule_sizes(pos, batch, num_graphs, kernel == "fused")
            if largest <= SEARCH_BEYOND:
                return all_pairs(kernel, pos, batch, ptr, largest, num_edges)
        if edge_index is None:
            edge_index = radius_graph(pos, self.cutoff, batch, self.backend)
        return laid_out(kernel, edge_pairs(pos, edge_index, shift), pos.size(0))

    def _explained(self) -> bool:
        """Whether PyG's explainers mask messages."""
        sums = (getattr(block.interaction, "environment_sum", None) for block in self.blocks)
        return any(isinstance(part, EnvironmentSum) and part.explain for part in sums)

    def species_index(self, z: Tensor) -> Tensor:
        """Atomic numbers ``[N]`` to places in the species list ``[N]``; -1 for foreign ones."""
        # In a compiled graph a constant, so that its size is none of the graph's symbols.
        if torch.compiler.is_compiling() or self._species_index.device != z.device:
            index = self._index_of_species(z.device)
        else:
            index = self._species_index
        return index[z.clamp(0, index.numel() - 1).long()]

    def one_hot(self, species: Tensor) -> Tensor:
        """Places in the species list ``[N]`` to input features ``[N, len(species)]`` (Eq. 3); 0 for
        foreign atoms."""
        place = torch.arange(len(self.species), device=species.device)
        return (species.unsqueeze(1) == place).to(self.blocks[0].interaction.V.dtype)

    def atom_terms(self, species: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The whole network on checked input; no checks, no data-dependent shapes.

        Args:
            species: places in the species list, ``[N]``.
            pairs: neighbour pairs.

        Returns:
            ``(terms [N, num_interactions + 1] float64, features [N, hidden_channels])``.
        """
        dtype = self.blocks[0].interaction.V.dtype
        pairs = pairs._replace(r=pairs.r.to(dtype))
        if _underived(pairs):
            from hipnn_pyg.models import direct  # which is built on this module

            if direct.serves(self):
                return direct.values(self, species, pairs)
        z = self.one_hot(species)
        terms = [self.reference(species)]
        for block in self.blocks:
            z, energy = block(z, pairs, self.reference.sigma_e)
            terms.append(energy.double())
        return torch.stack(terms, dim=1), z

    @torch.compiler.disable  # in eager mode it has the kernels, and sizes depend on data anyway
    def energy_terms(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor | None = None,
        edge_index: Tensor | None = None,
        shift: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> EnergyTerms:
        """Energies with their hierarchy.

        Args:
            z: atomic numbers, ``[N]``.
            pos: positions in Å, ``[N, 3]``.
            batch: molecule of each atom, sorted, ``[N]``; None for one molecule.
            edge_index: own edges ``[2, E]``, row 0 = j (sends), row 1 = i (receives); None for
                all pairs within the cutoff.
            shift: periodic-image vectors of those edges in Å, ``[E, 3]``:
                r_ij = pos_j - pos_i + shift.
            num_graphs: G, if known (saves a synchronisation on a GPU).

        Raises:
            StructureError: bad input, see :mod:`hipnn_pyg.checks`.
            ValueError: ``shift`` without ``edge_index``.
        """
        if self.validate:
            _check_visible(pos)
            check_graphs(z, pos, batch, num_graphs, edge_index, shift)
        if shift is not None and edge_index is None:
            raise ValueError("shift belongs to edge_index: pass both, or neither")
        if batch is None:
            batch = torch.zeros(z.size(0), dtype=torch.long, device=z.device)
            num_graphs = 1
        batch = batch.long()
        if num_graphs is None and torch.jit.is_tracing():  # which keeps numbers, but not sizes
            num_graphs = torch.bincount(batch).size(0)
        elif num_graphs is None:
            num_graphs = int(batch[-1]) + 1
        self._warn_if_unfitted()
        species = self.species_index(z)
        pairs = self.pairs(pos, batch, edge_index, shift, num_graphs)
        if self.validate:
            check_species(z, species >= 0, self.species)
            check_distances(pairs.r)
        terms, features = self.atom_terms(species, pairs)
        energy, r = molecule_sums(terms, batch, num_graphs, pairs.pattern is not None)
        return EnergyTerms(energy.unsqueeze(1), terms, r, features)

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor | None = None,
        edge_index: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Total energies ``[G, 1]``, in the dtype of ``pos`` or, if that is shorter, float32;
        arguments as in :meth:`energy_terms`."""
        energy = self.energy_terms(z, pos, batch, edge_index, shift).energy
        return energy.to(torch.promote_types(pos.dtype, torch.float32))

    def extra_repr(self) -> str:
        """Species, cutoff and energy unit."""
        return f"species={self.species}, cutoff={self.cutoff:.4g} Å, unit={self.energy_unit}"


def _underived(pairs: Pairs) -> bool:
    """Whether a GPU's kernels take these pairs and nobody asks for derivatives."""
    if pairs.pattern is None or torch.is_grad_enabled():
        return False
    return molecule_kernels(pairs.r) is not None


def _check_visible(pos: Any) -> None:
    """Checks read values, which ``torch.vmap`` hides."""
    while isinstance(pos, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(pos):
        if torch._C._functorch.is_batchedtensor(pos):
            raise RuntimeError(
                "positions cannot be checked under torch.vmap: set model.validate = False"
            )
        pos = torch._C._functorch.get_unwrapped(pos)


def _check_hyperparameters(parameters: dict[str, Any], backend: str) -> None:
    species = parameters["species"]
    if not species or len(set(species)) < len(species) or min(species) < 1:
        raise ValueError(f"species must be different atomic numbers >= 1, not {species}")
    for name, least in (
        ("hidden_channels", 1),
        ("num_interactions", 1),
        ("num_onsite", 0),
        ("num_sensitivities", 1),
    ):
        if parameters[name] < least:
            raise ValueError(f"{name} must be at least {least}, not {parameters[name]}")
    r_low, r_high, cutoff = (parameters[name] for name in ("r_low", "r_high", "cutoff"))
    if not 0 < r_low < r_high or not 0 < cutoff < float("inf"):
        raise ValueError(
            f"lengths must satisfy 0 < r_low < r_high and 0 < cutoff (Å), not r_low={r_low}, "
            f"r_high={r_high}, cutoff={cutoff}"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {sorted(BACKENDS)}, not {backend!r}")
