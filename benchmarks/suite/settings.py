"""Sizes and repeats of a benchmark run."""

from __future__ import annotations

from dataclasses import dataclass, field

from hipnn_pyg.train import Network


@dataclass(frozen=True)
class Settings:
    """What is measured, on how much, how often.

    Args:
        seed: of molecules, batches, structures and weights.
        root: folder of QM9.
        synthetic: random molecules instead of QM9.
        threads: of every implementation.
        peers: implementations to compare with on a CPU.
        network: sizes of HIP-NN, ours and hippynn's.
        schnet: arguments of PyG's SchNet; empty for its defaults.
        schnetpack: arguments of SchNetPack's PaiNN; empty for its defaults for QM9.
        compiled: measure our compiled step too.
        molecules: how many are drawn from the data set.
        batch_sizes: of training steps; the last one also of inference and memory.
        gpu_batch_sizes: of training steps on a GPU.
        molecules_per_turn: steps of a turn = this divided by the batch size, but at least 2.
        rounds: turns of each implementation.
        seldom: slow implementations take part in every so many-th round only.
        trainer_steps: steps of one epoch of the measured trainer.
        trainer_rounds: epochs of it.
        gpu_trainer_steps: steps of an epoch on a GPU: one of QM9.
        gpu_epochs: epochs of a turn on a GPU, in one run.
        memory_rounds: batches whose peak memory is measured.
        large: sizes of the large structures (atoms).
        large_rounds: energies of each, at most.
        dynamics: sizes of the periodic boxes of water (atoms).
        dynamics_steps: steps of a turn up to 150 atoms; in proportion fewer for more, at least 2.
        dynamics_molecules: molecules that TorchSim moves at once.
        memory_limit_gb: memory a large structure may take.
        run: folder of the model whose precision is measured; None for the shipped one.
        precision_molecules: molecules of that measurement.
    """

    seed: int = 0
    root: str = "data/qm9"
    synthetic: bool = False
    threads: int = 2
    peers: tuple[str, ...] = ("hippynn numba", "SchNet", "SchNetPack")
    network: Network = field(default_factory=Network)
    schnet: tuple[tuple[str, int], ...] = ()
    schnetpack: tuple[tuple[str, int], ...] = ()
    compiled: bool = True
    molecules: int = 31_000
    batch_sizes: tuple[int, ...] = (30, 256)
    gpu_batch_sizes: tuple[int, ...] = (30, 1024)
    molecules_per_turn: int = 600
    rounds: int = 4
    seldom: int = 3
    trainer_steps: int = 400
    trainer_rounds: int = 4
    gpu_trainer_steps: int = 3_648
    gpu_epochs: int = 5
    memory_rounds: int = 1
    large: tuple[int, ...] = (1_000, 10_000, 100_000)
    large_rounds: int = 3
    dynamics: tuple[int, ...] = (1_000, 10_000)
    dynamics_steps: int = 150
    dynamics_molecules: int = 50
    memory_limit_gb: float = 16.0
    run: str | None = None
    precision_molecules: int = 256


QUICK = {
    "network": Network(hidden_channels=4, num_onsite=1, num_sensitivities=4),
    "schnet": (("hidden_channels", 4), ("num_filters", 4), ("num_interactions", 1)),
    "schnetpack": (("n_atom_basis", 4), ("n_interactions", 1)),
    "compiled": False,
    "molecules": 64,
    "batch_sizes": (2, 8),
    "gpu_batch_sizes": (2, 8),
    "molecules_per_turn": 4,
    "rounds": 3,
    "seldom": 2,
    "trainer_steps": 1,
    "gpu_trainer_steps": 2,
    "gpu_epochs": 2,
    "trainer_rounds": 2,
    "memory_rounds": 2,
    "large": (90, 150, 300),
    "large_rounds": 2,
    "dynamics": (81,),
    "dynamics_steps": 2,
    "dynamics_molecules": 3,
    "precision_molecules": 8,
}
"""What ``--quick`` replaces: everything runs, no figure means anything."""
