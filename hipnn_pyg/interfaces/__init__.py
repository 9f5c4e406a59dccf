"""Other programs' structures and models, in and out."""

from hipnn_pyg.interfaces.hippynn import from_hippynn

__all__ = ["from_hippynn"]
