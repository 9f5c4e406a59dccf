"""The ``hipnn`` command: ``data | train | predict | explain`` and the others in COMMANDS."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from hipnn_pyg import __version__
from hipnn_pyg.checks import StructureError
from hipnn_pyg.cli import (
    calibrate,
    data,
    evaluate,
    explain,
    md,
    plot,
    predict,
    relax,
    reproduce,
    ship,
    train,
)
from hipnn_pyg.data.unavailable import DatasetUnavailableError
from hipnn_pyg.interfaces.simulation import SimulationStopped
from hipnn_pyg.models.files import ModelFileError
from hipnn_pyg.models.self_check import SelfCheckError
from hipnn_pyg.train.trainer import TrainingStopped

COMMANDS = {
    "data": data,
    "train": train,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "predict": predict,
    "explain": explain,
    "relax": relax,
    "md": md,
    "plot": plot,
    "reproduce": reproduce,
    "ship": ship,
}
DESCRIPTION = """HIP-NN on PyTorch Geometric: molecular energies, and how far to trust them.

Start with:
  hipnn train qm9 --epochs 2
  hipnn evaluate runs/qm9
  hipnn predict --model runs/qm9 CCO "c1ccccc1"
"""
EXPECTED_ERRORS = (
    DatasetUnavailableError,
    ImportError,
    ModelFileError,
    OSError,
    SelfCheckError,
    SimulationStopped,
    StructureError,
    TrainingStopped,
    ValueError,
)


class HelpFormatter(DefaultHelpFormatter):
    """Keep the line breaks of descriptions, which hold examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.strip().splitlines())


def parser() -> ArgumentParser:
    """The parser of ``hipnn`` with all its commands."""
    top = ArgumentParser(
        prog="hipnn",
        formatter_class=HelpFormatter,
        description=DESCRIPTION,
        version=f"{__version__}, torch {torch.__version__}",
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subcommands(title="commands", metavar="COMMAND", dest="command")
    for name, module in COMMANDS.items():
        about = module.__doc__ or name  # python -OO keeps none
        first_line, *_ = about.split("\n")
        command = ArgumentParser(description=about, formatter_class=HelpFormatter)
        commands.add_subcommand(name, command, help=first_line)
        module.add_options(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; expected errors end in one line on stderr and exit status 1."""
    torch.set_flush_denormal(True)  # before any worker thread exists: they inherit it
    try:
        arguments = parser().parse_args(argv)
    except KeyboardInterrupt:
        return _stopped("hipnn")
    command = arguments.command
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            COMMANDS[command].run(arguments[command])
    except EXPECTED_ERRORS as error:
        if arguments.debug:
            raise
        print(f"hipnn {command}: {error}", file=sys.stderr)
        return 130 if getattr(error, "interrupted", False) else 1
    except KeyboardInterrupt:  # before or after the training loop, which saves first
        return _stopped(f"hipnn {command}")
    return 0


def _stopped(what: str) -> int:
    print(f"{what}: stopped", file=sys.stderr)
    return 130


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line on stderr instead of Python's two."""
    print(f"warning: {message}", file=sys.stderr)
