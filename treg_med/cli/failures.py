"""What a failure looks like on the command line: one line on stderr and a documented exit code.

A ``TregMedError`` was raised on purpose, and its message states what was expected, what came and the fix.
Anything else is a defect of ours and is reported as such; the traceback appears with ``--debug`` only.
"""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from treg_med.errors import ResourceError, TregMedError

__all__ = ["EXIT_CODES", "NOT_MET", "SOME_FAILED", "FailureGroup"]

#: Of several volumes some were set aside, and the others are done.
SOME_FAILED = 3
#: The numbers of an evaluation do not meet a requirement.
NOT_MET = 8
INTERRUPTED = 130

EXIT_CODES = {
    0: "success",
    1: "unexpected error, please report it",
    2: "wrong option, name, text or setting",
    SOME_FAILED: "a file that is not what its format promises; of several, some could not be done and the rest are",
    4: "shapes, slices or geometry that do not fit together",
    5: "a file, folder, device or memory that is missing or cannot be used",
    6: "a file that could read other files or run code",
    7: "NaN, Inf or an iteration that diverged",
    NOT_MET: "a requirement of an evaluation was not met",
    INTERRUPTED: "interrupted by Ctrl-C",
}


class FailureGroup(TyperGroup):
    """The group of all commands; turns exceptions into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("Interrupted: unfinished outputs were removed; what is finished stays, and the same command goes on.")
            raise typer.Exit(INTERRUPTED) from None
        except TregMedError as error:
            if ctx.params.get("debug"):
                raise
            _say(f"{type(error).__name__}: {error}")
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if ctx.params.get("debug") or _belongs_to_typer(error):
                raise
            _say(_describe(error))
            raise typer.Exit(ResourceError.exit_code if _out_of_memory(error) else 1) from None


def _belongs_to_typer(error: Exception) -> bool:
    """Usage errors and a closed pipe are handled by the library itself."""
    closed_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
    return closed_pipe or hasattr(error, "exit_code") or isinstance(error, typer.Abort)


def _out_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError by name: this file must not import torch.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _describe(error: Exception) -> str:
    if _out_of_memory(error):
        return "ResourceError: out of memory; use fewer samples, --device cpu, or a machine with more memory"
    return (
        f"Unexpected {type(error).__name__}: {error}; this is a defect: "
        "please report it with the output of the same command after 'treg-med --debug'"
    )


def _say(message: str) -> None:
    """Print one line to stderr; a file name cannot add lines or move the cursor."""
    line = " ".join(message.split())
    typer.echo("".join(c if c.isprintable() else "?" for c in line), err=True)
