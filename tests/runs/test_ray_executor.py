"""What is Ray's own: the cluster, its authentication and its devices."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.runs import workloads
from tests.runs.driving import collect, needs_ray, run, submit
from treg_med.errors import ConfigError, ResourceError
from treg_med.runs.executors import make_executor
from treg_med.runs.ray_connection import cluster_address
from treg_med.runs.tasks import Slot


@needs_ray
def test_the_cluster_asks_for_a_token(ray_session: None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    # Not with ray.init, which tries for 20 seconds.
    code = f"from ray._raylet import GcsClient; GcsClient({address!r}); print('in')"
    stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    stranger["RAY_AUTH_MODE"], stranger["RAY_AUTH_TOKEN"] = "token", "a guess"
    done = run([sys.executable, "-c", code], stranger)
    assert "in" not in done.stdout.split()
    assert "AuthenticationError" in done.stderr


@needs_ray
def test_more_than_the_cluster_has_is_refused(ray_session: None) -> None:
    with pytest.raises(ResourceError, match="expected 64 CPUs and 0 GPUs"):
        make_executor("ray", workloads.workshop, devices=["cpu"], workers=32, threads=2)
    with pytest.raises(ResourceError, match="2 GPUs"):
        make_executor("ray", workloads.workshop, devices=["cuda:0", "cuda:1"], workers=2, threads=1)


@needs_ray
def test_a_gpu_worker_has_one_gpu_and_calls_it_the_first(ray_session: None) -> None:
    with make_executor("ray", workloads.workshop, devices=["cuda:3"], workers=1, threads=1) as executor:
        submit(executor, ("slot", 0), ("variable", "CUDA_VISIBLE_DEVICES"))
        outcomes = collect(executor)
    assert outcomes["task 0"].value == Slot(0, "cuda:0", 1)
    assert outcomes["task 1"].value == "0"


def test_ray_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from treg_med.runs import ray_connection

    def missing(name: str) -> str:
        raise ray_connection.PackageNotFoundError(name)

    monkeypatch.setattr(ray_connection, "version", missing)
    with pytest.raises(ConfigError, match=r"treg-med\[distributed\]"):
        make_executor("ray", workloads.workshop, devices=["cpu"], workers=2, threads=1)


def test_ray_without_authentication_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from treg_med.runs import ray_connection

    monkeypatch.setattr(ray_connection, "version", lambda _: "2.51.1")
    with pytest.raises(ConfigError, match=r"ray >= 2\.52"):
        make_executor("ray", workloads.workshop, devices=["cpu"], workers=2, threads=1)


@needs_ray
def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    code = "from treg_med.runs.ray_connection import connect; connect(cpus=1, gpus=0)"
    done = run([sys.executable, "-c", code], {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{_unused_port()}"})
    assert "ResourceError: expected a Ray cluster to use, got ConnectionRefusedError" in done.stderr


def test_a_recorded_cluster_that_has_ended_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert cluster_address() == "local"
    record = tmp_path / "ray" / "ray_current_cluster"
    record.parent.mkdir()
    record.write_text(f"127.0.0.1:{_unused_port()}")
    assert cluster_address() == "local"
    with socket.create_server(("127.0.0.1", 0)) as server:
        record.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert cluster_address() is None
        monkeypatch.setattr(os, "getuid", lambda: record.stat().st_uid + 1)
        assert cluster_address() == "local"


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
