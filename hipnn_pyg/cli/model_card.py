"""``card.md`` of a model that comes with the package: a page for people, from what is on record."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ase.data import chemical_symbols

from hipnn_pyg.cli.calibration_report import sections
from hipnn_pyg.cli.run_folder import RESUME_MAY_CHANGE
from hipnn_pyg.cli.train import DEFAULTS, FLAGS, FORCES
from hipnn_pyg.data.sets import SETS
from hipnn_pyg.train.config import Network, Training

NOT_FOR = (
    "forces, geometry optimisation, vibrations or molecular dynamics where the target includes "
    "the zero-point energy and was learned at minima only (U0, U, H, G of QM9)",
    "elements other than those above, ions, radicals, excited states, several molecules or a "
    "solvent",
    "molecules unlike the training data (larger ones, stretched bonds, other chemistry), flagged "
    "or not, as the flag misses some: their error bars promise nothing",
    'geometries made in other ways than the two above: "as given" are the data set\'s own (QM9: '
    'B3LYP/6-31G(2df,p)), "RDKit" those that the package makes of a SMILES; on a force field\'s, '
    "xtb's or another functional's the error bars promise nothing, and the flag finds few",
)


def model_card(
    name: str,
    cards: Sequence[dict[str, Any]],
    settings: Sequence[dict[str, Any]],
    report: dict[str, Any],
) -> str:
    """The text of ``card.md``.

    Args:
        name: of the model.
        cards: the contents of each member's ``model.json``.
        settings: of each member's training.
        report: the contents of ``calibration.json``.
    """
    first = cards[0]
    species = " ".join(chemical_symbols[number] for number in first["hyperparameters"]["species"])
    sizes = first["hyperparameters"]
    parts = [
        f"# {name}",
        f"HIP-NN{'' if len(cards) == 1 else f', an ensemble of {len(cards)}'}: "
        f"{first.get('target', 'energy')} of {first.get('dataset', 'a data set')} in "
        f"{first['energy_unit']}, positions in Å, elements {species}.",
        "## Made by",
        _list(
            *map(_training, cards, settings),
            f"network: {sizes['hidden_channels']} features, {sizes['num_interactions']} "
            f"interactions, {sizes['num_onsite']} on-site layers, "
            f"{first['num_parameters']:,} parameters",
            f"hipnn_pyg {first['hipnn_pyg_version']}",
        ),
        "## Split",
        _list(
            f"training {first.get('num_train'):,}, validation {first.get('num_validation'):,}, "
            f"seed {first.get('split_seed', first.get('seed'))}, SHA-256 "
            f"{first.get('split_sha256')}",
            f"of the other molecules {report['num_calibration']:,} calibrated the error bars "
            f"(seed {report['calibration_seed']}, SHA-256 {report['calibration_split_sha256']}); "
            f"the {report['num_test']:,} others are the test set, one bit for each molecule in "
            "`predictions.npz` (`test_set`, numpy.packbits)",
        ),
        *(section.markdown().rstrip() for section in sections(report)),
        "![Half-widths, coverage and what R adds](error_bars.png)",
        "## Not for",
        _list(*NOT_FOR),
    ]
    return "\n\n".join(parts) + "\n"


def command(settings: dict[str, Any]) -> str:
    """The ``hipnn train`` command with these settings, its defaults left out.

    Args:
        settings: the contents of ``config.yaml``.
    """
    kind = SETS[settings["dataset"]]
    defaults = {f.name: f.default for group in (kind, Network, Training) for f in fields(group)}
    defaults |= DEFAULTS[kind] | (FORCES if settings.get("forces") else {})
    defaults |= dict.fromkeys(FLAGS, False)
    changed = {
        key: value
        for key, value in settings.items()
        if key != "dataset" and key not in RESUME_MAY_CHANGE and value != defaults.get(key)
    }
    words = ["hipnn", "train", settings["dataset"]]
    for key, value in changed.items():
        words += [f"--{key}"] + ([] if key in FLAGS else ["null" if value is None else str(value)])
    return shlex.join(words)


def _training(card: dict[str, Any], settings: dict[str, Any]) -> str:
    """How one model was trained: command, recipe, best epoch, its time (a share, of models trained
    at once), hardware, version, date."""
    seconds, unknown = card.get("training_seconds"), "not on record"
    time = unknown if seconds is None else f"{seconds / 60:.0f} minutes"
    trained = card.get("trained_on", {})
    return (
        f"`{command(settings)}`: recipe {card.get('recipe')}, best epoch {card.get('epoch')}; "
        f"time to there: {time}; hardware: {trained.get('machine', unknown)}; torch "
        f"{trained.get('torch', unknown)}; date: {trained.get('date', unknown)}"
    )


def _list(*items: str) -> str:
    return "\n".join(f"- {item}" for item in items)
