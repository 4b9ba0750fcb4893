"""The command line: ``faas serve``, ``faas deploy`` and the rest."""

from faas.cli.app import main

__all__ = ["main"]
