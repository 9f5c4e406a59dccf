"""The three sums in plain PyTorch: what every kernel must equal."""

from __future__ import annotations

from torch import Tensor

from hipnn_pyg.ops.pattern import Pattern


def envsum(s: Tensor, z: Tensor, pattern: Pattern) -> Tensor:
    r"""Environment sum :math:`e_{i,\nu b} = \sum_{x \to i} s_{x,\nu} z_{j(x),b}`.

    Args:
        s: sensitivities of the edges, ``[E, nu]``.
        z: features of the senders, ``[num_senders, F]``.
        pattern: the edges.

    Returns:
        ``[num_receivers, nu, F]``.
    """
    message = s.unsqueeze(2) * z[pattern.j].unsqueeze(1)
    return z.new_zeros(pattern.num_receivers, s.size(1), z.size(1)).index_add(0, pattern.i, message)


def sensesum(g: Tensor, z: Tensor, pattern: Pattern) -> Tensor:
    r"""Its adjoint in s: :math:`t_{x,\nu} = \sum_b g_{i(x),\nu b} z_{j(x),b}`.

    Args:
        g: ``[num_receivers, nu, F]``.
        z: ``[num_senders, F]``.
        pattern: the edges.

    Returns:
        ``[E, nu]``.
    """
    return (g[pattern.i] * z[pattern.j].unsqueeze(1)).sum(2)


def featsum(g: Tensor, s: Tensor, pattern: Pattern) -> Tensor:
    r"""Its adjoint in z: :math:`u_{n,b} = \sum_{x: j(x) = n} \sum_\nu s_{x,\nu} g_{i(x),\nu b}`.

    Args:
        g: ``[num_receivers, nu, F]``.
        s: ``[E, nu]``.
        pattern: the edges.

    Returns:
        ``[num_senders, F]``.
    """
    message = (s.unsqueeze(2) * g[pattern.i]).sum(1)
    return g.new_zeros(pattern.num_senders, g.size(2)).index_add(0, pattern.j, message)
