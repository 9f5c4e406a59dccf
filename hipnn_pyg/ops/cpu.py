"""The kernels of ``kernels.cpp``: compiled once with the machine's C++ compiler, then called."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hipnn_pyg.ops.operands import DTYPES, Kept, Weights, Where, checked
from hipnn_pyg.ops.pattern import Pattern

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
HEADERS = sorted(SOURCE.parent.glob("*.h"))
FLAGS = (
    "-O3 -march=native -std=c++17 -fopenmp -shared -fPIC "
    # Selections become masks, so that loops with them fill vector registers; no sum is reordered.
    "-ffp-contract=fast -fno-trapping-math -fno-math-errno"
).split()
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")
ALWAYS = (torch.int64, torch.float64, torch.uint8)
"""What kernels of every dtype take: indices, energies, memory."""
NO_MEMORY = -1
"""What kernels return where they found none."""
SUFFIX = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
"""What names of kernels end in."""


class KernelUnavailableError(RuntimeError):
    """The compiled kernels cannot be had on this machine; the message says why."""


def compiler() -> list[str]:
    """The C++ compiler: ``$CXX`` and its options, or the first of g++, clang++, c++ on the path.

    Raises:
        KernelUnavailableError: there is none.
    """
    named = os.environ.get("CXX", "").strip()
    for name in [named] if named else ["g++", "clang++", "c++"]:
        try:
            program, *options = shlex.split(name)
        except ValueError as error:
            raise KernelUnavailableError(f"CXX={named} cannot be read: {error}") from error
        if found := shutil.which(program):
            return [found, *options]
    looked = f"CXX={named} names none" if named else "g++, clang++ and c++ are not on the path"
    raise KernelUnavailableError(f"no C++ compiler was found: {looked}")


def cache_folder() -> Path:
    """Where the compiled kernels are kept: ``$HIPNN_CACHE`` or the user's cache folder."""
    try:
        if named := os.environ.get("HIPNN_CACHE"):
            return Path(named).expanduser().absolute()  # a bare name would be looked for elsewhere
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise KernelUnavailableError(f"{error} HIPNN_CACHE may name a folder") from error
    return Path(base) / "hipnn_pyg"


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels, from the cache or compiled now (about ten seconds).

    Raises:
        KernelUnavailableError: no compiler, or it failed.
    """
    cxx = compiler()  # none: plain PyTorch, as documented
    try:
        return _loaded(cxx)
    except KernelUnavailableError as error:
        logger.warning("there are no CPU kernels: %s", error)  # as nobody may ask for the error
        raise


def _loaded(cxx: list[str]) -> ctypes.CDLL:
    source = b"".join(file.read_bytes() for file in (SOURCE, *HEADERS))
    key = "\0".join((*cxx, *FLAGS, platform.machine(), cpu_flags(), sys.platform)).encode()
    file = cache_folder() / f"kernels-{hashlib.sha256(source + key).hexdigest()[:16]}.so"
    try:
        there = file.exists()
    except OSError as error:
        raise KernelUnavailableError(f"{file} cannot be looked for: {error}") from error
    if not there:
        _compile(cxx, file)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise KernelUnavailableError(
            f"{file} cannot be loaded: {error}; delete it to have it compiled again"
        ) from error


def cpu_flags() -> str:
    """What ``-march=native`` depends on, so that a shared cache serves different machines."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


def _compile(cxx: list[str], file: Path) -> None:
    """Compile to a temporary name, then rename: two processes may do it at once."""
    logger.warning("compiling the CPU kernels with %s: about 10 s, once", cxx[0])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = Path(folder) / file.name
            command = [*cxx, *FLAGS, str(SOURCE), "-o", str(made)]
            result = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=600
            )
            if result.returncode:
                raise KernelUnavailableError(f"{cxx[0]} failed: {result.stderr.strip()[-500:]}")
            made.replace(file)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelUnavailableError(f"the kernels were not compiled: {error}") from error


def call(name: str, dtype: torch.dtype, *arguments: Any) -> int:
    """Call a kernel with contiguous tensors (of ``dtype``, int64, bytes or, for energies, float64),
    sizes, numbers, addresses, None for null; what it returns.

    Raises:
        TypeError: a tensor of another dtype, with gaps, or without memory.
        MemoryError: there was none for a kernel's own sums.
    """
    values, taken = [], (dtype, *ALWAYS)
    for a in arguments:
        if isinstance(a, Tensor):
            if a.dtype not in taken:
                raise TypeError(f"{name} wants {dtype} and int64 tensors, not {a.dtype}")
            if not a.is_contiguous():
                raise TypeError(
                    f"{name} wants contiguous tensors, not strides {a.stride()} of {list(a.shape)}"
                )
            address = a.data_ptr()
            if not address and a.numel():
                raise TypeError(
                    f"{name} wants plain tensors, not {type(a).__name__} without memory"
                )
            a = address
        values.append(a)
    kernels = library()
    function = getattr(kernels, f"{name}_{SUFFIX[dtype]}")
    if function.argtypes is None:  # converting arguments is then ctypes' own, fast, work
        function.argtypes, function.restype = [*map(_c_type, arguments)], ctypes.c_int64
    found = int(function(*values))
    if found == NO_MEMORY:
        raise MemoryError(
            f"{name}: no memory for the sums of its threads: take fewer atoms at once"
        )
    return found


def _c_type(argument: Any) -> Any:
    if isinstance(argument, int):
        return ctypes.c_int64
    return ctypes.c_double if isinstance(argument, float) else ctypes.c_void_p


def loaded() -> bool:
    """Whether the kernels are there already: what also goes without does not compile them."""
    return library.cache_info().currsize > 0


def gather(
    index: Tensor, rows: tuple[Tensor, Tensor], z: Tensor, pos: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, Tensor] | None:
    """A mini-batch of packed molecules: copies, one after the other.

    Args:
        index: molecules, int64, ``[G]``.
        rows: atoms and first atom of every molecule, int64, ``[M]`` each.
        z: atomic numbers of all atoms, int64, ``[A]``.
        pos: positions in Å, ``[A, 3]``.
        target: energies, float64, ``[M]``.

    Returns:
        Atomic numbers, positions, the molecule of each atom and where each begins; the atoms of the
        largest and the number of pairs; the energies. None if there is no such molecule.
    """
    sizes, numbers = (ctypes.c_int64 * 3)(), (index.numel(), target.numel())
    if not call("gather_sizes", torch.float64, index, rows[0], sizes, *numbers):
        return None
    atoms, largest, num_edges = sizes
    own_z, batch = z.new_empty(atoms), z.new_empty(atoms)
    own_pos, own_target = pos.new_empty(atoms, 3), target.new_empty(index.numel())
    ptr = z.new_empty(index.numel() + 1)
    own = (ptr, batch, own_z, own_pos, own_target, index.numel())
    call("gather", pos.dtype, index, *rows, z, pos, target, *own)
    return own_z, own_pos, batch, ptr, largest, num_edges, own_target


def molecule_edges(pos: Tensor, ptr: Tensor, num_edges: int) -> tuple[Pattern, Tensor]:
    """All pairs inside each molecule; not differentiable.

    Args:
        pos: positions in Å, ``[N, 3]``.
        ptr: first atom of each molecule and, last, N; ``[G + 1]``.
        num_edges: E = sum of n (n - 1) over the molecules.

    Returns:
        The pattern and the distances in Å, ``[E]``.
    """
    row = ptr.new_empty(pos.size(0) + 1)
    j, i, r = ptr.new_empty(num_edges), ptr.new_empty(num_edges), pos.new_empty(num_edges)
    arguments = (pos.contiguous(), ptr.contiguous(), row, j, i, r, ptr.numel() - 1)
    call("molecule_edges", pos.dtype, *arguments)
    return Pattern(j, i, row, j.new_empty(0), torch.zeros_like(row)), r


def whole_registers(nu: int, dtype: torch.dtype) -> int:
    """``nu`` rounded up to whole vector registers of this processor."""
    return call("whole_registers", dtype, nu)


def interact(where: Where, z: Tensor, V: Tensor, keep: bool) -> tuple[Tensor, Kept | None]:
    """See :func:`hipnn_pyg.ops.layers.interact`.

    Returns:
        The result and, if ``keep``, what gradients in the weights need.
    """
    (nu, in_channels, out_channels), z = V.shape, z.contiguous()
    received = z.new_empty(z.size(0), out_channels)
    kept = None
    if keep:
        environments = z.new_empty(z.size(0), nu * in_channels)
        kept = Kept(environments, z.new_empty(where.r.numel(), whole_registers(nu, z.dtype)))
    sizes = (z.size(0), nu, in_channels, out_channels)
    given = (*where.arrays, z, V, received, *(kept or (None, None)), *sizes, float(where.cutoff))
    call("interact", z.dtype, *given)
    return received, kept


def interact_backward(
    where: Where,
    z: Tensor,
    V: Tensor,
    kept: Kept | None,
    gradient: Tensor,
    slopes: Sequence[Tensor | None],
) -> None:
    """Gradients of :func:`interact` in r, mu, sigma, z, V, written to ``slopes`` (None: not).

    That in V needs what was kept; the others are faster with it.
    """
    dr, dmu, dsigma, dz, dV = slopes
    z, (nu, in_channels, out_channels) = z.contiguous(), V.shape
    dmu = torch.empty_like(where.mu) if dmu is None else dmu
    dsigma = torch.empty_like(where.sigma) if dsigma is None else dsigma
    sizes = (z.size(0), nu, in_channels, out_channels)
    given = (*where.arrays, z, V, *(kept or (None, None)), gradient.contiguous())
    wanted = (dmu, dsigma, dz, dV, dr)
    call("interact_backward", z.dtype, *given, *wanted, *sizes, float(where.cutoff))


def interact_tangent(
    where: Where, along: Tensor, z: Tensor, z_dot: Tensor | None, V: Tensor, kept: Kept
) -> tuple[Tensor, Tensor]:
    """The change of :func:`interact` if the distances move by ``along`` and z by ``z_dot``.

    Args:
        where: pairs and sensitivities.
        along: ``[E]``.
        z: features, ``[N, in]``.
        z_dot: their change; None for 0.
        V: interaction weights, ``[nu, in, out]``.
        kept: of :func:`interact`.

    Returns:
        The change ``[N, out]`` and that of the environments ``[N, nu in]``.
    """
    nu, in_channels, out_channels = V.shape
    received = z.new_empty(z.size(0), out_channels)
    environments = torch.empty_like(kept.environments)
    given = (*where.arrays, along, z, z_dot, V, kept.sensitivities)
    sizes = (z.size(0), nu, in_channels, out_channels, float(where.cutoff))
    call("interact_tangent", z.dtype, *given, received, environments, *sizes)
    return received, environments


def interact_tangent_backward(
    where: Where,
    along: Tensor,
    features: tuple[Tensor, Tensor | None],
    V: Tensor,
    kept: Kept,
    environments_dot: Tensor,
    gradients: Tensor,
    dfeatures: Tensor | None,
    slopes: Sequence[Tensor | None],
) -> None:
    """Gradients of a function of :func:`interact` and its change.

    Args:
        where: pairs and sensitivities.
        along: change of the distances, ``[E]``.
        features: z and its change.
        V: interaction weights, ``[nu, in, out]``.
        kept: of :func:`interact`.
        environments_dot: of :func:`interact_tangent`.
        gradients: in the result and in its change, ``[2, N, out]``.
        dfeatures: where those in z and in its change go, ``[2, N, in]``; None: not.
        slopes: where those in mu, sigma, V go.
    """
    (nu, in_channels, out_channels), (dmu, dsigma, dV) = V.shape, slopes
    environments, sensitivities = kept
    given = (*where.arrays, along, *features, V, environments, environments_dot, sensitivities)
    below = (None, None) if dfeatures is None else dfeatures.unbind()
    wanted = (dmu, dsigma, *below, dV)
    sizes = (features[0].size(0), nu, in_channels, out_channels, float(where.cutoff))
    call("interact_tangent_backward", V.dtype, *given, *gradients, *wanted, *sizes)


def dense(
    z: Tensor, received: Tensor, weights: Weights, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See :func:`hipnn_pyg.ops.layers.dense`.

    Returns:
        The result and, if ``keep``, what the backward pass needs: activations
        ``[layers, N, out]`` and the layers' inputs from the second on ``[layers - 1, N, out]``.
    """
    z, received, layers = z.contiguous(), received.contiguous(), len(weights) // 5
    atoms, out_channels = received.shape
    result = torch.empty_like(received)
    activations = between = None
    if keep:
        activations = z.new_empty(layers, atoms, out_channels)
        between = z.new_empty(layers - 1, atoms, out_channels)
    sizes = (atoms, z.size(1), out_channels, layers)
    buffers = (activations, between, result)
    call("dense", z.dtype, z, received, weights.addresses, *buffers, *sizes)
    return result, activations, between


def dense_backward(
    z: Tensor,
    weights: Weights,
    activations: Tensor,
    between: Tensor,
    gradient: Tensor,
    dz: Tensor | None,
    dweights: Tensor | None,
) -> Tensor:
    """Gradient of :func:`dense` in ``received``, ``[N, out]``; those in z and the weights (one
    after the other) are written to ``dz`` and ``dweights`` (None: not)."""
    z, gradient, layers = z.contiguous(), gradient.contiguous(), len(weights) // 5
    dreceived = torch.empty_like(gradient)
    sizes = (z.size(0), z.size(1), gradient.size(1), layers)
    given = (z, weights.addresses, activations, between, gradient)
    call("dense_backward", z.dtype, *given, dreceived, dz, dweights, *sizes)
    return dreceived


def dense_tangent(
    z_dot: Tensor | None, received_dot: Tensor, weights: Weights, activations: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The change of :func:`dense` if z and what was received change.

    Args:
        z_dot: change of z, ``[N, in]``; None for 0.
        received_dot: change of what was received, ``[N, out]``.
        weights: of the layers.
        activations: as :func:`dense` kept them.

    Returns:
        The changes of what :func:`dense` gives.
    """
    result, changes = torch.empty_like(received_dot), torch.empty_like(activations)
    between = activations.new_empty(activations.size(0) - 1, *activations.shape[1:])
    (layers, atoms, out_channels), first = activations.shape, weights[0]
    assert first is not None
    in_channels = first.size(1)
    given = (z_dot, received_dot, weights.addresses, activations)
    sizes = (atoms, in_channels, out_channels, layers)
    call("dense_tangent", result.dtype, *given, changes, between, result, *sizes)
    return result, changes, between


def dense_tangent_backward(
    features: tuple[Tensor, Tensor | None],
    weights: Weights,
    activations: tuple[Tensor, Tensor],
    between: tuple[Tensor, Tensor],
    gradients: Tensor,
    dfeatures: Tensor | None,
    dweights: Tensor,
) -> Tensor:
    """Gradients of a function of :func:`dense` and its change.

    Args:
        features: z and its change.
        weights: of the layers.
        activations: and their change.
        between: inputs of the layers from the second on, and their change.
        gradients: in the result and in its change, ``[2, N, out]``.
        dfeatures: where those in z and in its change go, ``[2, N, in]``; None: not.
        dweights: where those in the weights go, one after the other.

    Returns:
        Those in what was received and in its change, ``[2, N, out]``.
    """
    (layers, atoms, out_channels), z = activations[0].shape, features[0]
    received = torch.empty_like(gradients)
    below = (None, None) if dfeatures is None else dfeatures.unbind()
    given = (*features, weights.addresses, *activations, *between, *gradients)
    sizes = (atoms, z.size(1), out_channels, layers)
    call("dense_tangent_backward", z.dtype, *given, *received, *below, dweights, *sizes)
    return received


def penalise(
    gradient: Tensor, vector: Tensor, penalised: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """The gradient with that of the L2 term (Eq. 16), and the term.

    Args:
        gradient: of the rest of the loss, ``[P]``.
        vector: all weights, ``[P]``.
        penalised: 1 for those that enter the term, else 0, ``[P]``.
        factor: twice the weight of the term.

    Returns:
        ``gradient + factor penalised vector``, ``[P]``, and the sum of squares of the penalised
        weights, a scalar.
    """
    total, l2 = torch.empty_like(gradient), gradient.new_empty(())
    given = (gradient, vector, penalised, total, l2, vector.numel(), float(factor))
    call("penalise", vector.dtype, *given)
    return total, l2


def adam(
    vector: Tensor,
    gradient: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    rates: tuple[float, float, float, float],
) -> None:
    """A step of Adam, in place.

    Args:
        vector: weights, ``[P]``.
        gradient: of the loss, ``[P]``.
        state: running means of the gradient and of its square, ``[P]`` each, and the number of
            steps done, float32.
        rates: learning rate, both betas, epsilon.
    """
    *moments, steps = state
    if steps.dtype != torch.float32:
        raise TypeError(f"Adam counts its steps in float32, not in {steps.dtype}")
    given = (vector, gradient, *moments, ctypes.c_void_p(steps.data_ptr()), vector.numel())
    call("adam", vector.dtype, *given, *map(float, rates))


def readout(z: Tensor, w: Tensor, b: Tensor, sigma_e: float) -> Tensor:
    r"""Energies of atoms :math:`E_i = \sigma_E w \cdot z_i + b` (Eq. 4), float64, ``[N]``.

    Args:
        z: features, ``[N, in]``.
        w: weights, dimensionless, ``[in]``.
        b: bias (energy unit), ``[1]``.
        sigma_e: sigma_E (energy unit).
    """
    energy = z.new_empty(z.size(0), dtype=torch.float64)
    call("readout", z.dtype, z.contiguous(), w, b, energy, *z.shape, float(sigma_e))
    return energy


def readout_backward(
    z: Tensor, w: Tensor, gradient: Tensor, sigma_e: float, dw: Tensor | None, db: Tensor | None
) -> Tensor:
    """Gradient of :func:`readout` in z, ``[N, in]``; those in w and b are written to ``dw`` and
    ``db`` (None: neither)."""
    z, gradient = z.contiguous(), gradient.contiguous()
    dz = torch.empty_like(z)
    call("readout_backward", z.dtype, z, w, gradient, dz, dw, db, *z.shape, float(sigma_e))
    return dz


def error_sums(terms: Tensor, ptr: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over molecules of abs(e), e^2 and R (Eqs. 12, 13, 18).

    Args:
        terms: E_i^n, float64, ``[N, orders + 1]``.
        ptr: first atom of each molecule and, last, N; ``[G + 1]``.
        target: energies, float64, ``[G]``.

    Returns:
        The sums ``[3]`` and the errors e ``[G]``, float64.
    """
    error, sums = torch.empty_like(target), target.new_empty(3)
    sizes = (target.numel(), terms.size(1) - 1)
    call("error_sums", torch.float64, terms, ptr, target, error, sums, *sizes)
    return sums, error


def error_sums_backward(terms: Tensor, ptr: Tensor, error: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of :func:`error_sums` in the terms."""
    slopes, sizes = torch.empty_like(terms), (error.numel(), terms.size(1) - 1)
    given = (terms, ptr, error, gradient.contiguous())
    call("error_sums_backward", torch.float64, *given, slopes, *sizes)
    return slopes


def envsum(s: Tensor, z: Tensor, pattern: Pattern) -> Tensor:
    """See :func:`hipnn_pyg.ops.reference.envsum`."""
    pattern, s, z = checked(pattern, s=s, z=z)
    rows, nu, width = pattern.num_receivers, s.size(1), z.size(1)
    e = z.new_empty(rows, nu, width)
    call("envsum", z.dtype, s, z, pattern.row, pattern.j, e, rows, nu, width)
    return e


def sensesum(g: Tensor, z: Tensor, pattern: Pattern) -> Tensor:
    """See :func:`hipnn_pyg.ops.reference.sensesum`."""
    pattern, g, z = checked(pattern, g=g, z=z)
    rows, nu, width = g.shape
    t = z.new_empty(pattern.j.numel(), nu)
    call("sensesum", z.dtype, g, z, pattern.row, pattern.j, t, rows, nu, width)
    return t


def featsum(g: Tensor, s: Tensor, pattern: Pattern) -> Tensor:
    """See :func:`hipnn_pyg.ops.reference.featsum`."""
    pattern, g, s = checked(pattern.with_order(), g=g, s=s)
    senders, nu, width = pattern.num_senders, g.size(1), g.size(2)
    u = g.new_empty(senders, width)
    where = (pattern.column, pattern.order, pattern.i)
    call("featsum", g.dtype, g, s, *where, u, senders, nu, width)
    return u
