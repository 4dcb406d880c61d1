"""The one exception tree of the toolkit.

Every message states what was expected, what came (shape, unit, value) and the fix. The command line turns each
class into one line and the exit code in ``exit_code``; no traceback reaches a user.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "FormatError",
    "GeometryError",
    "NumericsError",
    "ResourceError",
    "TregMedError",
    "UnsafeFileError",
]


class TregMedError(Exception):
    """Base of every error raised on purpose."""

    exit_code: int = 1


class ConfigError(TregMedError, ValueError):
    """A setting, name or text that cannot be used (unknown solver, negative step count, over-long text)."""

    exit_code = 2


class FormatError(TregMedError, ValueError):
    """A file or array whose content is not what its format promises."""

    exit_code = 3


class GeometryError(TregMedError, ValueError):
    """Shapes, spacings or affines that do not fit together."""

    exit_code = 4


class ResourceError(TregMedError, OSError):
    """A file, folder, device or amount of memory that is missing or cannot be used."""

    exit_code = 5


class UnsafeFileError(TregMedError, ValueError):
    """A file that could read other files, execute code or exhaust memory."""

    exit_code = 6


class NumericsError(TregMedError, ArithmeticError):
    """A non-finite value or an iteration that diverged."""

    exit_code = 7
