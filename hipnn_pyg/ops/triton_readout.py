"""The network's input and its readouts as Triton kernels, first derivatives included."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.standard import _sum_combine as _add

from hipnn_pyg.ops.triton_tiles import ROWS, column_block, kernel, stack_of, sum_parts


@kernel
def _readout(
    Z: tl.tensor,
    W: tl.tensor,
    B: tl.tensor,
    SIGMA_E: tl.tensor,
    ENERGY: tl.tensor,
    atoms: tl.tensor,
    each: tl.tensor,
    stride: tl.tensor,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """sigma_E w . z + b of some atoms."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    model = first // each
    f = tl.arange(0, BLOCK)
    mask = (row < atoms)[:, None] & (f < F)[None, :]
    z = tl.load(Z + row[:, None] * F + f[None, :], mask=mask, other=0)
    w = tl.load(W + model * stride + f, mask=f < F, other=0)
    sigma_e = tl.load(SIGMA_E + model).to(Z.dtype.element_ty)
    energy = sigma_e * tl.reduce(z * w[None, :], 1, _add) + tl.load(B + model * stride)
    tl.store(ENERGY + row, energy.to(tl.float64), mask=row < atoms)


@kernel
def _readout_slopes(
    Z: tl.tensor,
    W: tl.tensor,
    G: tl.tensor,
    SIGMA_E: tl.tensor,
    DZ: tl.tensor,
    DWB: tl.tensor,
    atoms: tl.tensor,
    each: tl.tensor,
    stride: tl.tensor,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    MANY: tl.constexpr,
) -> None:
    """Gradients in z: one program for some atoms. In w and b, ``[parts, F + 1]`` of each model: the
    last programs, each MANY atoms and 16 columns.
    """
    blocks = (atoms + ROWS - 1) // ROWS
    if tl.program_id(0) < blocks:
        first = tl.program_id(0).to(tl.int64) * ROWS
        i = first + tl.arange(0, ROWS)
        model = first // each
        f = tl.arange(0, BLOCK)
        slope = tl.load(G + i, mask=i < atoms, other=0).to(Z.dtype.element_ty)
        w = tl.load(W + model * stride + f, mask=f < F, other=0)
        sigma_e = tl.load(SIGMA_E + model).to(Z.dtype.element_ty)
        at = DZ + i[:, None] * F + f[None, :]
        dz = (sigma_e * slope)[:, None] * w[None, :]
        tl.store(at, dz, mask=(i < atoms)[:, None] & (f < F)[None, :])
    else:
        columns: tl.constexpr = (F + 15) // 16
        mine = tl.program_id(0) - blocks
        part = (mine // columns).to(tl.int64)  # of all models
        parts = (each + MANY - 1) // MANY
        model = part // parts
        b = (mine % columns) * 16 + tl.arange(0, 16)
        row = model * each + (part % parts) * MANY + tl.arange(0, MANY)
        live = row < (model + 1) * each
        sigma_e = tl.load(SIGMA_E + model).to(Z.dtype.element_ty)
        g = tl.load(G + row, mask=live, other=0).to(Z.dtype.element_ty)
        mask = live[:, None] & (b < F)[None, :]
        z = tl.load(Z + row[:, None] * F + b[None, :], mask=mask, other=0)
        to = DWB + part * (F + 1)
        tl.store(to + b, sigma_e * tl.reduce(g[:, None] * z, 0, _add), mask=b < F)
        if mine % columns == 0:
            tl.store(to + F, tl.reduce(g, 0, _add))


@kernel
def _inputs(
    SPECIES: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    Z: tl.tensor,
    ENERGY: tl.tensor,
    atoms: tl.tensor,
    each: tl.tensor,
    NUM: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One-hot features and E^0 of some atoms; of a foreign one no number."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, COLUMNS)
    live = i < atoms
    species = tl.load(SPECIES + i, mask=live, other=0)
    model = tl.where(live, i // each, 0)
    known = live & (species >= 0)
    energy = tl.load(WEIGHT + model * NUM + species, mask=known, other=float("nan"))
    energy += tl.load(BIAS + model)
    tl.store(ENERGY + i, energy, mask=live)
    hot = (species[:, None] == f[None, :]).to(Z.dtype.element_ty)
    at = Z + i.to(tl.int64)[:, None] * NUM + f[None, :]
    tl.store(at, hot, mask=live[:, None] & (f < NUM)[None, :])


def inputs(species: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Any:
    """Input features (Eq. 3) and zeroth-order energies.

    Args:
        species: places in the species list, ``[N]``.
        weight: E^0 of each species, float64, ``[S]``, or ``[K, S]`` of K models.
        bias: added to them, ``[1]`` or ``[K, 1]``.
        dtype: of the features.

    Returns:
        ``[N, S]`` and, float64, ``[N]``.
    """
    species = species.contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    atoms, (models, num) = species.numel(), (bias.numel(), weight.size(-1))
    z = torch.empty(atoms, num, dtype=dtype, device=species.device)
    energy = weight.new_empty(atoms)
    if atoms:
        with torch.cuda.device_of(species):
            _inputs[(triton.cdiv(atoms, 128),)](
                *(species, weight, bias, z, energy, atoms, atoms // models),
                *(num, triton.next_power_of_2(num), 128),
                num_warps=4,
            )
    return z, energy


def readout(z: Tensor, w: Tensor, b: Tensor, sigma_e: Tensor) -> Tensor:
    """See :func:`hipnn_pyg.ops.cpu.readout`; sigma_E is on the device, ``[]`` or ``[K]``."""
    energy = z.new_empty(z.size(0), dtype=torch.float64)
    (atoms, width), stride = z.shape, stack_of(w, 1)[1]
    if atoms:
        with torch.cuda.device_of(z):
            _readout[(triton.cdiv(atoms, ROWS),)](
                *(z, w, b, sigma_e, energy, atoms, atoms // sigma_e.numel(), stride),
                *(width, column_block(width), ROWS),
                num_warps=4,
            )
    return energy


def readout_backward(
    z: Tensor, w: Tensor, gradient: Tensor, sigma_e: Tensor, dw: Tensor | None, db: Tensor | None
) -> Tensor:
    """See :func:`hipnn_pyg.ops.cpu.readout_backward`; sigma_E as in :func:`readout`."""
    dz = torch.empty_like(z)
    (atoms, width), models, stride = z.shape, sigma_e.numel(), stack_of(w, 1)[1]
    learned = dw is not None and db is not None
    if not atoms:
        for slope in (dw, db):
            if slope is not None:
                slope.zero_()
        return dz
    each = atoms // models
    blocks, parts = triton.cdiv(atoms, ROWS), triton.cdiv(each, 256)
    found = z.new_empty(models * parts, width + 1) if learned else z
    with torch.cuda.device_of(z):
        _readout_slopes[(blocks + (models * parts * triton.cdiv(width, 16) if learned else 0),)](
            *(z, w, gradient.contiguous(), sigma_e, dz, found, atoms, each, stride),
            *(width, column_block(width), ROWS, 256),
            num_warps=4,
        )
        if dw is not None and db is not None:
            apart = (stack_of(dw, 1)[1], stack_of(db, 1)[1])
            sum_parts[(width + 1, models)](
                *(found, dw, db, parts, *apart, width, 1, 64), num_warps=1
            )
    return dz
