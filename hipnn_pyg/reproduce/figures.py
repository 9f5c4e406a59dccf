"""Figs. 2 and 3 of the paper, the decay of the orders and the sensitivities, from our own runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hipnn_pyg.nn import Sensitivity, cosine_cutoff
from hipnn_pyg.nn.sensitivity import sensitivities as gaussians
from hipnn_pyg.paper import FIG_3_BIN_WIDTH, FIG_3_RISES_FROM
from hipnn_pyg.plots import (
    error_quantiles,
    order_energies,
    plot_error_quantiles,
    sensitivities,
    sensitivities_by_layer,
)
from hipnn_pyg.reproduce.correlation import RankCorrelation, rank_correlation
from hipnn_pyg.reproduce.groups import Group, groups_of
from hipnn_pyg.reproduce.report import Report, Table
from hipnn_pyg.reproduce.rows import Row
from hipnn_pyg.reproduce.tables import Found, number, provenance
from hipnn_pyg.train.config import Network
from hipnn_pyg.units import Bohr

PROBABILITIES = (0.5, 0.75, 0.9, 0.95, 0.99)


def fig_2(network: Network) -> Report:
    """The initial sensitivities and the cutoff function, in Bohr as in the paper.

    Args:
        network: whose.
    """
    layer = _initial(network)
    r = torch.linspace(0.4, 1.05 * network.cutoff, 800)
    with torch.no_grad():
        figure = sensitivities(
            (r / Bohr).numpy(),
            layer(r).numpy(),
            cosine_cutoff(r, network.cutoff).numpy(),
            length_unit="Bohr",
            r_cut=network.cutoff / Bohr,
        )
    title = f"Fig. 2: the {network.num_sensitivities} initial sensitivities and the cutoff function"
    low, high, width = (
        network.r_low / Bohr,
        network.r_high / Bohr,
        float(layer.sigma.detach()[0]) / Bohr,
    )
    text = (
        f"1/mu evenly spaced from 1/{low:.3g} to 1/{high:.3g} 1/Bohr, sigma = {width:.3g} Bohr, "
        f"cutoff {network.cutoff / Bohr:.3g} Bohr (Sec. II.F); no training enters."
    )
    mu = [round(value / Bohr, 4) for value in layer.mu.tolist()]
    return Report("fig2", title, text=(text,), data={"mu_bohr": mu}, figure=figure)


def fig_3(row: Row, found: Found) -> Report:
    """Quantiles of the error against R, and whether larger R means larger error.

    Args:
        row: the experiment; its best runs are drawn.
        found: all runs.
    """
    title = f"Fig. 3: quantiles of the error against R, {row.label} features"
    group = best(groups_of(row, found.records))
    if group is None:
        return _not_run("fig3", title)
    samples = []
    for record in group.records:
        arrays = record.arrays()
        if "nonhierarchicality" not in arrays:
            return Report("fig3", title, text=("Without hierarchy there is no R.",))
        samples.append((arrays["nonhierarchicality"], np.abs(arrays["error"])))
    R, error = (np.concatenate(values) for values in zip(*samples, strict=True))
    try:
        quantiles = error_quantiles(R, error, PROBABILITIES, FIG_3_BIN_WIDTH)
        all_of_them = rank_correlation(samples)
    except ValueError as too_few:
        return Report("fig3", title, text=(f"Runs: {provenance(group)}.", str(too_few)))
    inside = [(r[r >= FIG_3_RISES_FROM], e[r >= FIG_3_RISES_FROM]) for r, e in samples]
    share = sum(len(r) for r, _ in inside) / len(R)
    data = {"spearman": all_of_them._asdict(), "share_above_0.03": share, "runs": provenance(group)}
    text = [
        f"Runs: {provenance(group)}.",
        f"Spearman's rank correlation of R and abs(error) over {len(R):,} test molecules: "
        f"{all_of_them} (95 % bootstrap interval). {verdict(all_of_them)}",
    ]
    where = f"{100 * share:.1f} % of the molecules have R >= {FIG_3_RISES_FROM:g}, from which on"
    if 0.5 < share < 1:
        rising = rank_correlation(inside)
        data["spearman_above_0.03"] = rising._asdict()
        text.append(f"{where} the paper sees all quantiles rise; among these: {rising}.")
    else:
        text.append(f"{where} the paper sees all quantiles rise.")
    table, data["quarters"] = _quarters(R, error)
    return Report("fig3", title, table, text, data, plot_error_quantiles(quantiles))


def verdict(correlation: RankCorrelation) -> str:
    """What the interval says, in words."""
    if correlation.low > 0:
        return "Larger R means larger error, as in the paper."
    if correlation.high < 0:
        return "Larger R means smaller error, unlike in the paper."
    return "The interval holds 0: R says nothing about the error here, unlike in the paper."


def orders(row: Row, found: Found) -> Report:
    """Mean of abs(E^n) per order and the MAE of the energy truncated after order k.

    Args:
        row: the experiment; its best runs are taken.
        found: all runs.
    """
    title = f"Orders of the energy, {row.label} features"
    group = best(groups_of(row, found.records))
    if group is None:
        return _not_run("orders", title)
    energies, maes = group.means("mean_abs_order"), group.means("truncated_mae")
    if not maes:
        return Report("orders", title, text=("Without hierarchy there is one order only.",))
    cells = [
        [str(n), number(energy, 3), number(mae, 3)]
        for n, (energy, mae) in enumerate(zip(energies, maes, strict=True))
    ]
    table = Table(["n, k", "mean abs(E^n) (kcal/mol)", "MAE of the sum up to k (kcal/mol)"], cells)
    falls = [a.value / b.value for a, b in pairwise(maes)]
    text = (
        f"Runs: {provenance(group)}.",
        f"From one k to the next the MAE falls by {', '.join(f'{fall:.3g}' for fall in falls)} "
        "times; the paper says that it decays exponentially, which is equal factors.",
    )
    values = [m.value for m in energies], [m.value for m in maes]
    data = {"mean_abs_order": values[0], "truncated_mae": values[1], "runs": provenance(group)}
    return Report("orders", title, table, text, data, order_energies(*values))


def trained_sensitivities(row: Row, found: Found) -> Report:
    """The sensitivities of every interaction layer before and after training.

    Args:
        row: the experiment; the first seed of its best runs are drawn.
        found: all runs.
    """
    title = f"Sensitivities before and after training, {row.label} features"
    group = best(groups_of(row, found.records))
    if group is None:
        return _not_run("sensitivities", title)
    record, network = group.records[0], row.network
    r = torch.linspace(0.5, network.cutoff, 800)
    before = _initial(network)
    layers = [(torch.tensor(layer["mu"]), torch.tensor(layer["sigma"]))
              for layer in record.sensitivities]  # fmt: skip
    with torch.no_grad():
        figure = sensitivities_by_layer(
            r.numpy(),
            [gaussians(r, mu, sigma, network.cutoff).numpy() for mu, sigma in layers],
            cosine_cutoff(r, network.cutoff).numpy(),
            before(r).numpy(),
        )
    cells = [
        [f"interaction {n}", _moved(mu, before.mu.detach()), _moved(sigma, before.sigma.detach())]
        for n, (mu, sigma) in enumerate(layers, start=1)
    ]
    table = Table(["layer", "mu moved by, median (%)", "sigma moved by, median (%)"], cells)
    text = f"Seed {record.seed} of: {provenance(group)}."
    return Report("sensitivities", title, table, (text,), record.sensitivities, figure)


def best(groups: Sequence[Group]) -> Group | None:
    """The group with the lowest mean MAE, which comes first."""
    return groups[0] if groups else None


def _not_run(name: str, title: str) -> Report:
    return Report(name, title, text=("not run",))


def _initial(network: Network) -> Sensitivity:
    n = network
    return Sensitivity(n.num_sensitivities, n.r_low, n.r_high, n.cutoff)


def _moved(after: Tensor, before: Tensor) -> str:
    return f"{100 * float(((after - before) / before).abs().median()):.1f}"


def _quarters(R: np.ndarray, error: np.ndarray) -> tuple[Table, list[dict[str, float]]]:
    """Quantiles of the error in each quarter of the molecules, sorted by R."""
    order = np.argsort(R, kind="stable")
    cells, data = [], []
    for number_, index in enumerate(np.array_split(order, 4), start=1):
        low, high = R[index].min(), R[index].max()
        quantiles = np.quantile(error[index], PROBABILITIES)
        cells.append([f"{number_}: R = {low:.3g} to {high:.3g}", *(f"{q:.3f}" for q in quantiles)])
        row = {f"{p:g}": float(q) for p, q in zip(PROBABILITIES, quantiles, strict=True)}
        data.append({"R_from": float(low), "R_to": float(high), **row})
    headings = ["quarter of the molecules", *(f"p = {p:g} (kcal/mol)" for p in PROBABILITIES)]
    return Table(headings, cells), data
