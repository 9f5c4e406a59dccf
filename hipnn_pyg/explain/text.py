"""The same report for a terminal."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from hipnn_pyg.explain.page import Report

BREAK = "\N{BLACK UP-POINTING TRIANGLE}"


def summary(report: Report) -> list[str]:
    """Name, what the model learned, energy, error bar, flag, R.

    Args:
        report: what to say.
    """
    parts, trust, standing = report.parts, report.trust, report.standing
    heading = f"{report.name}: {parts.formula}, {len(parts.z)} atoms, model {report.model}"
    if "target" in report.facts:
        heading += f" of {report.facts['target']}"
    energy = f"E = {parts.energy:.{report.decimals}f}"
    if trust.q90 is not None:
        energy += f" ± {trust.q90:.{report.decimals}f} {parts.unit} (90 %, {trust.geometry})"
    else:
        energy += f" {parts.unit} ({trust.geometry}; error bar: {trust.missing})"
    lines = [heading, energy]
    if trust.holds_for:
        lines.append(f"the error bar is for {trust.holds_for}")
    if trust.unlike:
        reasons = "; ".join(trust.unlike)
        lines.append(f"warning: unlike the training data ({reasons}): the error bar is no promise")
    if not parts.hierarchical:
        return [*lines, "the model has no hierarchy: R says nothing"]
    r = f"R = {parts.r:.4f}"
    if standing is not None:
        r += f", {standing.words}"
    if trust.grows is not None:
        r += f"; errors of this model {'grow' if trust.grows else 'do not grow'} with R"
    broken = [f"{parts.symbols[i]}{i}" for i in np.flatnonzero(parts.breaks.any(axis=1))]
    where = ", ".join(broken) if broken else "nowhere"
    return [*lines, r, f"hierarchy breaks at: {where}"]


def tables(report: Report) -> list[Table]:
    """The page's two tables: orders and atoms.

    Args:
        report: what to say.
    """
    return [order_table(report), atom_table(report)]


def order_table(report: Report) -> Table:
    """One row per order; R^n where there is a hierarchy."""
    parts, decimals = report.parts, report.decimals
    table = Table(title=f"orders of the energy ({parts.unit})")
    for heading in ("n", "E^n", "sum to n", *["R^n"] * parts.hierarchical):
        table.add_column(heading, justify="right")
    total = 0.0
    for n, energy in enumerate(parts.orders):
        total += float(energy)
        cells = [str(n), f"{energy:.{decimals}f}", f"{total:.{decimals}f}"]
        if parts.hierarchical:
            cells.append(f"{parts.r_orders[n]:.4f}" if n else "-")
        table.add_row(*cells)
    return table


def atom_table(report: Report) -> Table:
    """One row per atom; R and a mark where the hierarchy breaks, if there is one."""
    parts, decimals = report.parts, report.decimals
    table = Table(title=f"atoms ({parts.unit})")
    headings = ["atom", *(f"E^{n}" for n in range(parts.terms.shape[1])), "E"]
    if parts.hierarchical:
        table.caption = f"{BREAK}: larger than the order below"
        headings += ["R", "breaks"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for i, symbol in enumerate(parts.symbols):
        values = [*parts.terms[i], parts.atoms[i]]
        breaks = " ".join(f"{BREAK} E^{n}" for n in parts.broken_orders(i))
        cells = [f"{symbol}{i}", *(f"{value:.{decimals}f}" for value in values)]
        if parts.hierarchical:
            cells += [f"{parts.r_atoms[i]:.4f}", breaks]
        table.add_row(*cells, style="bold" if breaks else None)
    table.add_section()
    cells = ["sum", *(f"{value:.{decimals}f}" for value in (*parts.orders, parts.energy))]
    table.add_row(*cells, *[f"{parts.r:.4f}"] * parts.hierarchical)
    return table
