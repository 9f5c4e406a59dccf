"""Fetch or build data sets: QM9 (official, or from the qm9pack wheel) and MD17."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from hipnn_pyg.data.sets import MD17Set, QM9RDKitSet, QM9Set


def add_options(parser: ArgumentParser) -> None:
    """Options of ``hipnn data``."""
    sets = parser.add_subcommands(title="data sets", metavar="WHAT", dest="what")

    qm9 = ArgumentParser(description="Fetch QM9, or build it from the qm9pack wheel.")
    qm9.add_class_arguments(QM9Set, skip={"target", "num_train", "num_validation"})
    sets.add_subcommand("qm9", qm9, help="fetch QM9, or build it from the qm9pack wheel")

    raw = ArgumentParser(
        description="Write gdb9.sdf, gdb9.sdf.csv and uncharacterized.txt from the qm9pack wheel, "
        "so that torch_geometric.datasets.QM9(ROOT) loads QM9 with its bonds and no download."
    )
    raw.add_argument("root", type=str, help="folder of the data set; files go to ROOT/raw")
    raw.add_argument(
        "--overwrite", action="store_true", help="replace raw files, and what PyG made of them"
    )
    sets.add_subcommand("qm9-raw", raw, help="write PyG's raw QM9 files from the wheel")

    rdkit = ArgumentParser(
        description="Embed the SMILES of QM9 by RDKit (ETKDG, MMFF94): 10 to 20 minutes on two "
        "cores, kept in ROOT/rdkit/VERSION."
    )
    rdkit.add_class_arguments(QM9RDKitSet, skip={"target", "num_train", "num_validation"})
    sets.add_subcommand("qm9-rdkit", rdkit, help="QM9 on geometries that RDKit makes of its SMILES")

    md17 = ArgumentParser(description="Fetch one trajectory of MD17 or revised MD17.")
    md17.add_class_arguments(MD17Set, skip={"num_train", "num_validation", "forces"})
    sets.add_subcommand("md17", md17, help="fetch one MD17 trajectory")


def run(arguments: Namespace) -> None:
    """Fetch or build, check, and say what is there."""
    options = arguments[arguments.what]
    if arguments.what == "qm9-raw":
        from hipnn_pyg.data.qm9_raw import write_qm9_raw  # needs RDKit, which training does not

        written = write_qm9_raw(options.root, overwrite=options.overwrite, progress=True)
        print(
            f"wrote {written.molecules:,} molecules and {written.placeholders:,} placeholders to "
            f"{written.folder} ({len(written.unmatched)} without bonds, listed there); load them "
            f"with torch_geometric.datasets.QM9({options.root!r})"
        )
    elif arguments.what in ("qm9", "qm9-rdkit"):
        kind = QM9Set if arguments.what == "qm9" else QM9RDKitSet
        packed, kept = kind(root=options.root, source=options.source).load()
        print(f"QM9 in {options.root}: {len(packed):,} molecules, {len(kept):,} after exclusions")
    else:
        packed, _ = MD17Set(root=options.root, molecule=options.molecule).load()
        print(f"MD17 {options.molecule} in {options.root}: {len(packed):,} frames, kcal/mol")
