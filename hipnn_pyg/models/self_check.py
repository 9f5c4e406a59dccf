"""Is a fast kernel right on this machine? Compared once with the reference, and remembered."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from pathlib import Path

import torch
from torch import Tensor

from hipnn_pyg import __version__
from hipnn_pyg.models import direct
from hipnn_pyg.models.files import atomic_write
from hipnn_pyg.models.hipnn import HIPNN, Kernel
from hipnn_pyg.ops import cpu
from hipnn_pyg.ops.network import Parameters, Structures

DIRECT = "without autograd: "
"""Before the names of the results of :mod:`hipnn_pyg.models.direct`."""
UNDERIVED = "without derivatives: "
"""Before the names of what is computed where nobody asks for derivatives."""
AT_ONCE = "learning in one call: "
"""Before the names of those of :mod:`hipnn_pyg.ops.network`."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest difference allowed, relative to the largest number of a result."""

_passed: set[tuple[str, torch.device]] = set()
"""Kernels that passed, and where, as far as this process knows."""


class SelfCheckError(RuntimeError):
    """A fast kernel disagrees with the reference on this machine; the message says where."""


def self_check(kernel: Kernel, device: torch.device | str = "cpu", force: bool = False) -> bool:
    """Compare a kernel with ``kernel="reference"`` on two molecules, in both precisions.

    Energies, gradients in the positions and the gradients of both in all weights must agree. A pass
    is remembered in the process and, per kernel, version and device, in the kernels' cache folder.

    Args:
        kernel: ``"fused"`` or ``"padded"`` (``"reference"`` needs no check).
        device: where it runs.
        force: compare again even if a pass is remembered.

    Returns:
        Whether a comparison was made now.

    Raises:
        SelfCheckError: they differ: use another kernel, and report it.
    """
    device = torch.device(device)
    if kernel == "reference" or ((kernel, device) in _passed and not force):
        return False
    record = _record(kernel, device)
    if _there(record) and not force:
        _passed.add((kernel, device))
        return False
    differences = {}
    for dtype, tolerance in TOLERANCE.items():
        expected, actual = (_results(k, device, dtype) for k in ("reference", kernel))
        for name, value in actual.items():
            right = expected[name.rpartition(": ")[2]]
            scale = max(float(right.abs().max()), 1e-30)
            difference = float((value - right).abs().max()) / scale
            differences[f"{name}, {str(dtype).removeprefix('torch.')}"] = difference
            if not difference <= tolerance:
                raise SelfCheckError(
                    f'kernel "{kernel}" on {device} differs from the reference in {name} ({dtype}) '
                    f"by {difference:.1e}, more than {tolerance:.0e}, relatively: use "
                    'kernel="padded" or "reference" (on the command line, on a CPU: CXX=none '
                    "hipnn ...), and please report it"
                )
    if record is not None:
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            atomic_write({record: json.dumps(differences, indent=2).encode()})
        except OSError:
            pass  # a read-only cache: the next process compares again
    _passed.add((kernel, device))
    return True


def _there(record: Path | None) -> bool:
    try:
        return record is not None and record.exists()
    except OSError:  # a folder that may not be read
        return False


def _record(kernel: str, device: torch.device) -> Path | None:
    """Where a pass is remembered; None where there is no cache."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    versions = (torch.__version__, __version__)
    parts = (kernel, device.type, name, cpu.cpu_flags(), *versions)
    key = hashlib.sha256("\0".join(parts).encode() + _source()).hexdigest()[:16]
    try:
        return cpu.cache_folder() / f"checked-{kernel}-{key}.json"
    except cpu.KernelUnavailableError:
        return None


@functools.cache
def _source() -> bytes:
    """All kernels."""
    return b"".join(p.read_bytes() for p in sorted(Path(cpu.__file__).parent.glob("*.[cph]*")))


@torch.inference_mode(False)
@torch.enable_grad()
def _results(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Energies and gradients of a model with fixed weights on formaldehyde and an oxygen atom."""
    generator = torch.Generator().manual_seed(0)
    model = HIPNN((1, 6, 8), 20, num_onsite=1, kernel=kernel, e0=(-1.0, -2.0, -3.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.rpartition(".")[2] not in ("mu", "sigma"):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.1 * noise)
    model = model.to(device, dtype)
    z = torch.tensor([6, 8, 1, 1, 8], device=device)
    pos = torch.tensor(
        [[0, 0, 0], [0, 0, 1.2], [0.94, 0, -0.58], [-0.94, 0, -0.58], [0, 0, 0]],
        dtype=dtype,
        device=device,
    ).requires_grad_()
    batch = torch.tensor([0, 0, 0, 0, 1], device=device)
    energy = model(z, pos, batch)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(energy.sum(), [pos, *learned.values()], retain_graph=True)
    (pull,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
    rise = (pull * _displacement(pos)).sum()
    turns = torch.autograd.grad(rise, [*learned.values()], materialize_grads=True)
    results = {"the energy": energy.detach(), "the gradient in the positions": slopes[0]}
    for name, slope, turn in zip(learned, slopes[1:], turns, strict=True):
        results[f"the gradient in {name}"] = slope
        results[f"the gradient of forces in {name}"] = turn
    with torch.no_grad():
        results[f"{UNDERIVED}the energy"] = model(z, pos, batch)
    if kernel == "fused" and direct.serves(model):
        results |= _direct_results(model, z, pos, batch)
    return results


def _displacement(pos: Tensor) -> Tensor:
    """A direction for each atom, ``[N, 3]``: which forces are looked at."""
    return torch.arange(pos.numel(), dtype=pos.dtype, device=pos.device).cos().view_as(pos)


def _direct_results(model: HIPNN, z: Tensor, pos: Tensor, batch: Tensor) -> dict[str, Tensor]:
    """The same without autograd over the layers."""
    pairs = model.pairs(pos, batch)
    terms, passes = direct.forward(model, model.species_index(z), pairs, True)
    ones = torch.ones_like(terms)
    energy = terms.new_zeros(2).index_add(0, batch, terms.sum(1)).to(pos.dtype)
    r_ij = pos[pairs.j] - pos[pairs.i]
    r = torch.linalg.vector_norm(r_ij, dim=1)
    (pull,) = torch.autograd.grad(r, pos, direct.distance_slopes(model, passes, ones))
    results = {"the energy": energy.unsqueeze(1), "the gradient in the positions": pull}
    move = _displacement(pos)
    along = ((move[pairs.j] - move[pairs.i]) * r_ij / r.unsqueeze(1)).sum(1).detach()
    gradient, slopes = direct.gradient_parts(model)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    both = ("the gradient", "the gradient of forces")
    for what in both if pos.device.type == "cpu" else both[:1]:
        if what == "the gradient":
            direct.backward(model, passes, ones, slopes)
        else:
            direct.force_backward(model, passes, along, torch.zeros_like(terms), slopes)
        parts = gradient.clone().split([p.numel() for p in learned.values()])
        for (name, parameter), part in zip(learned.items(), parts, strict=True):
            results[f"{what} in {name}"] = part.view_as(parameter)
    results = {f"{DIRECT}{name}": value for name, value in results.items()}
    return results | _learned(model, z, pos, batch, terms) if pos.device.type == "cpu" else results


def _learned(
    model: HIPNN, z: Tensor, pos: Tensor, batch: Tensor, terms: Tensor
) -> dict[str, Tensor]:
    """Gradients from the step in one call: of a loss that is sum of E / sigma_E for these targets,
    1 below the energies, so that MAE = RMSE = 1."""
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradient, slopes = direct.gradient_parts(model)
    total, sizes = torch.empty_like(gradient), [p.numel() for p in learned.values()]
    target = terms.new_zeros(2).index_add(0, batch, terms.sum(1)) - 1
    structures = Structures(z, torch.tensor([0, *batch.bincount().cumsum(0)]), pos.detach())
    parameters = Parameters(gradient, gradient, torch.zeros_like(gradient), total)
    whole = direct.network(direct.block_weights(model), slopes)
    direct.learn(model, whole, structures, target, parameters, 0.0, 0.0)
    parts = zip(learned.items(), (total * model.sigma_e).split(sizes), strict=True)
    return {f"{AT_ONCE}the gradient in {n}": part.view_as(p) for (n, p), part in parts}
