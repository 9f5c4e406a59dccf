"""Several processes, one per device, that train one model (Lightning Fabric, DDP)."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch import distributed as dist

from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.launch import Failure, Workers, end_with_parent, started_processes

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_workers: Workers | None = None  # of this process; several trainers of a script share them


def connect(config: Training, folder: Path | None) -> Fabric:
    """Fabric for a run; with several devices the processes are started and connected.

    Under torchrun and SLURM they exist already. Otherwise this process starts the same command
    again for every further device of this machine.

    Args:
        config: ``device``, ``devices`` and ``num_nodes``.
        folder: for TensorBoard's logs, which the first process writes; None for no logs.

    Raises:
        ValueError: there are no such devices, or as many processes as were asked for.
    """
    # Takes a second, which those who do not train need not wait.
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import TensorBoardLogger
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    device = config.device
    if device == "auto":  # Lightning would also take Apple's GPU, which knows no float64
        device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = f"--device {config.device} --devices {config.devices} --num_nodes {config.num_nodes}"
    try:
        fabric = Fabric(
            accelerator=device,
            devices=config.devices,
            num_nodes=config.num_nodes,
            loggers=[] if folder is None else [TensorBoardLogger(folder, name="logs")],
        )
    except (RuntimeError, MisconfigurationException) as error:
        raise ValueError(f"{wanted} cannot be used here: {str(error).splitlines()[0]}") from error
    there = started_processes()
    if there > 1 and there != fabric.world_size:
        raise ValueError(
            f"{there} processes were started, but {wanted} makes {fabric.world_size}: let the "
            "processes per node be --devices and the nodes --num_nodes"
        )
    if fabric.world_size > 1:
        _start_workers(fabric)
        end_with_parent()
        disabled = logging.root.manager.disable
        logging.disable(logging.INFO)  # Lightning announces each process
        fabric.launch()
        if _workers is not None:
            _workers.connected = True
        logging.disable(disabled)
    return fabric


def _start_workers(fabric: Fabric) -> None:
    """Start the processes of this machine, unless torchrun, SLURM or an earlier call did."""
    global _workers
    environment = cast(Any, fabric.strategy).cluster_environment
    if environment.creates_processes_externally:
        return
    if hasattr(sys, "ps1"):
        raise ValueError("several devices need a script or the hipnn command, not a prompt")
    num_nodes = cast(Any, fabric.strategy).num_nodes
    if num_nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"--num_nodes {num_nodes} needs srun, torchrun, or MASTER_ADDR, MASTER_PORT and "
            "NODE_RANK in the environment of one command per node"
        )
    local = fabric.world_size // num_nodes
    _workers = Workers(
        local,
        {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "WORLD_SIZE": str(fabric.world_size),
        },
    )


def watch(on: bool) -> None:
    """Whether this process must be ended if another one fails, as it may wait for that one.

    Args:
        on: from the first collective to the last one; off where this process stops by itself.
    """
    if _workers is not None:
        _workers.watching = on


def failure_elsewhere(error: RuntimeError) -> Failure | None:
    """What happened to another process that made a collective fail here; None if none did.

    Args:
        error: what the step raised.
    """
    if not dist.is_initialized():
        return None
    words = ("gloo", "nccl", "connection", "socket")
    of_communication = isinstance(error, dist.DistError) or any(
        word in str(error).lower() for word in words
    )
    if not of_communication:
        return None
    failure = None if _workers is None else _workers.failure(5.0)
    lost = f"the connection to another process was lost ({str(error).splitlines()[0]})"
    return failure or Failure(lost, "")


def sum_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """Sum over all processes, the same on each to the last bit.

    Args:
        values: this process's, on the CPU.
        device: that the processes communicate with.
    """
    total = values.to(device, copy=True)
    dist.all_reduce(total)
    dist.broadcast(total, 0)
    return total.cpu()


def check_agreement(
    train: PackedMolecules, validation: PackedMolecules, vector: Tensor, steps: int
) -> None:
    """All processes must train the same model on the same molecules.

    Args:
        train: training molecules.
        validation: validation molecules.
        vector: all learned parameters, ``[P]``.
        steps: steps done.

    Raises:
        ValueError: naming the first of these that differs.
    """
    values: dict[str, float] = {}
    for name, molecules in (("training", train), ("validation", validation)):
        place = torch.arange(1, len(molecules) + 1, device=molecules.device)
        values[f"number of {name} molecules"] = len(molecules)
        values[f"{name} molecules"] = float((molecules.target * place).sum())
    values["weights"] = float(vector.detach().double().square().sum())
    values["number of steps done"] = steps
    mine = torch.tensor([*values.values()], dtype=torch.float64, device=vector.device)
    first = mine.clone()
    dist.broadcast(first, 0)
    differs = (~torch.isclose(mine, first, rtol=1e-9, atol=1e-9, equal_nan=True)).double()
    dist.all_reduce(differs)
    wrong = [name for name, count in zip(values, differs.tolist(), strict=True) if count]
    if wrong:
        raise ValueError(
            f"the processes do not agree on the {wrong[0]}: every one must load the same molecules "
            "in the same order, with the same split and run folder"
        )
