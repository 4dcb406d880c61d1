"""The command line as ``python -m treg_med``, as launchers of several processes want it."""

from treg_med.cli import main

main()
