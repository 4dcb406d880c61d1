"""Reaching a Ray cluster, with authentication, or starting one for this user; needs the extra ``[distributed]``."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType

from treg_med.errors import ConfigError, ResourceError

__all__ = ["cluster_address", "connect", "import_ray", "shortly"]

_OLDEST = (2, 52)
_OBJECT_STORE_BYTES = 128 * 2**20
_LISTENING_SECONDS = 10.0


def connect(*, cpus: int, gpus: int) -> bool:
    """Connect this process to a Ray cluster with enough resources, and return whether that was needed.

    A session of this process is used as it is, then the cluster of ``RAY_ADDRESS`` or of ``ray start`` on this
    machine; else one is started for this user alone, with a token and without dashboard. ``ray.shutdown`` ends
    the connection, and the cluster if it was started here.

    Raises
    ------
    ConfigError
        If Ray is missing, too old, or was imported with its authentication off.
    ResourceError
        If the cluster cannot be reached or has too few CPUs or GPUs.
    """
    ray = import_ray()
    connected_here = not ray.is_initialized()
    if connected_here:
        try:
            _initialise(ray, cpus, gpus)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ResourceError(
                f"expected a Ray cluster to use, got {type(error).__name__}: {shortly(error)}; check RAY_ADDRESS and "
                "that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH holds the cluster's token, or use the local executor"
            ) from error
    there = ray.cluster_resources()
    if there.get("CPU", 0) < cpus or there.get("GPU", 0) < gpus:
        if connected_here:
            ray.shutdown()
        raise ResourceError(
            f"expected {cpus} CPUs and {gpus} GPUs for all workers, got a Ray cluster with {there.get('CPU', 0):g} and "
            f"{there.get('GPU', 0):g}; ask for fewer workers or threads, or start the other nodes first"
        )
    return connected_here


def _initialise(ray: ModuleType, cpus: int, gpus: int) -> None:
    quiet = {"address": cluster_address(), "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(
            num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet
        )
    except ValueError as error:
        # Only Ray knows whether it found a cluster here; it refuses resources for one that exists.
        if "existing cluster" not in str(error):
            raise
        ray.init(**quiet)


def cluster_address() -> str | None:
    """Return ``"local"`` past a recorded cluster that has ended or is another user's, else leave the choice to Ray.

    Ray tries for many minutes where nothing listens, and takes the word of anybody who can write to its folder.
    """
    if given := os.environ.get("RAY_ADDRESS"):
        _check_listening(given)
        return None
    record = Path(os.environ.get("RAY_TMPDIR") or gettempdir()) / "ray" / "ray_current_cluster"
    try:
        if hasattr(os, "getuid") and record.lstat().st_uid != os.getuid():
            return "local"
        _check_listening(record.read_text().strip())
    except OSError:
        return "local"
    return None


def _check_listening(address: str) -> None:
    """Raise OSError where nothing listens."""
    found = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)
    if found:
        socket.create_connection((found.group(1), int(found.group(2))), timeout=_LISTENING_SECONDS).close()


def import_ray() -> ModuleType:
    """Import Ray with its authentication on: it reads the mode once, at its import."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise ConfigError(
            "expected Ray for the executor 'ray', got an environment without it; "
            "pip install 'treg-med[distributed]', or use the local executor"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < _OLDEST:
        raise ConfigError(
            f"expected ray >= {_OLDEST[0]}.{_OLDEST[1]}, the first with authentication, got {found}; "
            "pip install 'treg-med[distributed]'"
        )
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ and not sys.modules["ray"].is_initialized():
        raise ConfigError(
            "expected Ray's authentication to be on, got a Ray that was imported without it; set RAY_AUTH_MODE=token "
            "before importing ray, or make the executor before it"
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A CPU worker keeps seeing what the driver sees: the default of coming versions, which warns until then.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    has_token = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not has_token and not (Path.home() / ".ray" / "auth_token").exists():
        # In the environment of this user's processes, and not in a file: Ray would write one that others can read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    return ray


def shortly(error: Exception) -> str:
    """Return the one sentence that matters of messages that fill a page."""
    text = " ".join(str(error).split())
    detail = re.search(r"Worker exit detail: ([^.]+)", text)
    return detail.group(1) if detail else text[:200]
