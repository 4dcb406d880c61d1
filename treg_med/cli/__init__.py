"""The command line, ``treg-med``; importing it does not import torch."""

from treg_med.cli.app import app, main

__all__ = ["app", "main"]
