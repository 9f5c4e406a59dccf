"""Is a fast kernel right on this machine? Compared once with the reference, and remembered."""

from __future__ import annotations

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

DIRECT = "without autograd: "
"""Before the names of the results of :mod:`hipnn_pyg.models.direct`."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest difference allowed, relative to the largest number of a result."""


class SelfCheckError(RuntimeError):
    """A fast kernel disagrees with the reference on this machine; the message says where."""


def self_check(kernel: Kernel, device: torch.device | str = "cpu", force: bool = False) -> bool:
    """Compare a kernel with ``kernel="reference"`` on two molecules, in both precisions.

    Energies, gradients in the positions and gradients in all weights must agree. A pass is
    remembered in the cache folder of the kernels, per kernel, version and device.

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
    if kernel == "reference":
        return False
    record = _record(kernel, device)
    if record.exists() and not force:
        return False
    differences = {}
    for dtype, tolerance in TOLERANCE.items():
        expected, actual = (_results(k, device, dtype) for k in ("reference", kernel))
        for name, value in actual.items():
            right = expected[name.removeprefix(DIRECT)]
            scale = max(float(right.abs().max()), 1e-30)
            difference = float((value - right).abs().max()) / scale
            differences[f"{name}, {str(dtype).removeprefix('torch.')}"] = difference
            if not difference <= tolerance:
                raise SelfCheckError(
                    f'kernel "{kernel}" on {device} differs from the reference in {name} ({dtype}) '
                    f"by {difference:.1e}, more than {tolerance:.0e}, relatively: use "
                    'kernel="padded" or "reference", and please report it'
                )
    try:
        atomic_write({record: json.dumps(differences, indent=2).encode()})
    except OSError:
        pass  # a read-only cache: it is compared again next time
    return True


def _record(kernel: str, device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    source = b"".join(p.read_bytes() for p in sorted(Path(cpu.__file__).parent.glob("*.[cph]*")))
    versions = (torch.__version__, __version__)
    parts = (kernel, device.type, name, cpu.cpu_flags(), *versions)
    key = hashlib.sha256("\0".join(parts).encode() + source).hexdigest()[:16]
    folder = cpu.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"checked-{kernel}-{key}.json"


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
    slopes = torch.autograd.grad(energy.sum(), [pos, *learned.values()])
    names = ("the gradient in the positions", *(f"the gradient in {name}" for name in learned))
    results = {"the energy": energy.detach(), **dict(zip(names, slopes, strict=True))}
    if kernel == "fused" and direct.serves(model):
        results |= _direct_results(model, z, pos, batch)
    return results


def _direct_results(model: HIPNN, z: Tensor, pos: Tensor, batch: Tensor) -> dict[str, Tensor]:
    """The same without autograd over the layers."""
    pairs = model.pairs(pos, batch)
    terms, passes = direct.forward(model, model.species_index(z), pairs, True)
    ones = torch.ones_like(terms)
    energy = terms.new_zeros(2).index_add(0, batch, terms.sum(1)).to(pos.dtype)
    r = torch.linalg.vector_norm(pos[pairs.j] - pos[pairs.i], dim=1)
    (pull,) = torch.autograd.grad(r, pos, direct.distance_slopes(model, passes, ones))
    gradient, slopes = direct.gradient_parts(model)
    direct.backward(model, passes, ones, slopes)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts = gradient.split([p.numel() for p in learned.values()])
    results = {"the energy": energy.unsqueeze(1), "the gradient in the positions": pull}
    for (name, parameter), part in zip(learned.items(), parts, strict=True):
        results[f"the gradient in {name}"] = part.view_as(parameter)
    return {f"{DIRECT}{name}": value for name, value in results.items()}
