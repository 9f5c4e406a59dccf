"""The network's input and its readouts as Triton kernels, first derivatives included."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.standard import _sum_combine as _add

from hipnn_pyg.ops.triton_tiles import ROWS, column_block, sum_parts


@triton.jit
def _readout(
    Z: tl.tensor,
    W: tl.tensor,
    B: tl.tensor,
    SIGMA_E: tl.tensor,
    ENERGY: tl.tensor,
    atoms: tl.tensor,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """sigma_E w . z + b of some atoms."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    f = tl.arange(0, BLOCK)
    mask = (row < atoms)[:, None] & (f < F)[None, :]
    z = tl.load(Z + row[:, None] * F + f[None, :], mask=mask, other=0)
    w = tl.load(W + f, mask=f < F, other=0)
    sigma_e = tl.load(SIGMA_E).to(Z.dtype.element_ty)
    energy = sigma_e * tl.reduce(z * w[None, :], 1, _add) + tl.load(B)
    tl.store(ENERGY + row, energy.to(tl.float64), mask=row < atoms)


@triton.jit
def _readout_slopes(
    Z: tl.tensor,
    W: tl.tensor,
    G: tl.tensor,
    SIGMA_E: tl.tensor,
    DZ: tl.tensor,
    DWB: tl.tensor,
    atoms: tl.tensor,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    MANY: tl.constexpr,
) -> None:
    """Gradients in z: one program for some atoms. In w and b, ``[parts, F + 1]``: the last
    programs, each MANY atoms and 16 columns.
    """
    sigma_e = tl.load(SIGMA_E).to(Z.dtype.element_ty)
    blocks = (atoms + ROWS - 1) // ROWS
    if tl.program_id(0) < blocks:
        i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        f = tl.arange(0, BLOCK)
        slope = tl.load(G + i, mask=i < atoms, other=0).to(Z.dtype.element_ty)
        w = tl.load(W + f, mask=f < F, other=0)
        at = DZ + i[:, None] * F + f[None, :]
        dz = (sigma_e * slope)[:, None] * w[None, :]
        tl.store(at, dz, mask=(i < atoms)[:, None] & (f < F)[None, :])
    else:
        columns: tl.constexpr = (F + 15) // 16
        mine = tl.program_id(0) - blocks
        part = mine // columns
        b = (mine % columns) * 16 + tl.arange(0, 16)
        row = part.to(tl.int64) * MANY + tl.arange(0, MANY)
        live = row < atoms
        g = tl.load(G + row, mask=live, other=0).to(Z.dtype.element_ty)
        mask = live[:, None] & (b < F)[None, :]
        z = tl.load(Z + row[:, None] * F + b[None, :], mask=mask, other=0)
        to = DWB + part * (F + 1)
        tl.store(to + b, sigma_e * tl.reduce(g[:, None] * z, 0, _add), mask=b < F)
        if mine % columns == 0:
            tl.store(to + F, tl.reduce(g, 0, _add))


@triton.jit
def _inputs(
    SPECIES: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    Z: tl.tensor,
    ENERGY: tl.tensor,
    atoms: tl.tensor,
    NUM: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One-hot features and E^0 of some atoms."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, COLUMNS)
    live = i < atoms
    species = tl.load(SPECIES + i, mask=live, other=0)
    energy = tl.load(WEIGHT + species, mask=live, other=0) + tl.load(BIAS)
    tl.store(ENERGY + i, energy, mask=live)
    hot = (species[:, None] == f[None, :]).to(Z.dtype.element_ty)
    at = Z + i.to(tl.int64)[:, None] * NUM + f[None, :]
    tl.store(at, hot, mask=live[:, None] & (f < NUM)[None, :])


def inputs(species: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Any:
    """Input features (Eq. 3) and zeroth-order energies.

    Args:
        species: places in the species list, ``[N]``.
        weight: E^0 of each species, float64, ``[S]``.
        bias: added to them, ``[1]``.
        dtype: of the features.

    Returns:
        ``[N, S]`` and, float64, ``[N]``.
    """
    species = species.contiguous()
    atoms, num = species.numel(), weight.numel()
    z = torch.empty(atoms, num, dtype=dtype, device=species.device)
    energy = weight.new_empty(atoms)
    if atoms:
        with torch.cuda.device_of(species):
            _inputs[(triton.cdiv(atoms, 128),)](
                *(species, weight, bias, z, energy, atoms, num, triton.next_power_of_2(num), 128),
                num_warps=4,
            )
    return z, energy


def readout(z: Tensor, w: Tensor, b: Tensor, sigma_e: Tensor) -> Tensor:
    """See :func:`hipnn_pyg.ops.cpu.readout`; sigma_E is on the device, ``[]``."""
    energy = z.new_empty(z.size(0), dtype=torch.float64)
    if z.size(0):
        with torch.cuda.device_of(z):
            _readout[(triton.cdiv(z.size(0), ROWS),)](
                *(z, w, b, sigma_e, energy, *z.shape, column_block(z.size(1)), ROWS), num_warps=4
            )
    return energy


def readout_backward(
    z: Tensor, w: Tensor, gradient: Tensor, sigma_e: Tensor, dw: Tensor | None, db: Tensor | None
) -> Tensor:
    """See :func:`hipnn_pyg.ops.cpu.readout_backward`; sigma_E is on the device, ``[]``."""
    dz = torch.empty_like(z)
    (atoms, width), learned = z.shape, dw is not None and db is not None
    if not atoms:
        for slope in (dw, db):
            if slope is not None:
                slope.zero_()
        return dz
    blocks, parts = triton.cdiv(atoms, ROWS), triton.cdiv(atoms, 256)
    found = z.new_empty(parts, width + 1) if learned else z
    with torch.cuda.device_of(z):
        _readout_slopes[(blocks + (parts * triton.cdiv(width, 16) if learned else 0),)](
            *(z, w, gradient.contiguous(), sigma_e, dz, found, atoms, width),
            *(column_block(width), ROWS, 256),
            num_warps=4,
        )
        if dw is not None and db is not None:
            sum_parts[(width + 1,)](found, dw, db, parts, width, 1, 64, num_warps=1)
    return dz
