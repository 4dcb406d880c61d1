"""A checkpoint continues a run bit for bit and is never half-written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from treg_med.data.atomic import writing
from treg_med.errors import ResourceError
from treg_med.training.checkpoint import Ema, load_state, save_state
from treg_med.training.muon import MuonAdamW


@pytest.mark.parametrize("rule", ["AdamW", "Muon"])
def test_state_round_trip_continues_bit_for_bit(rule: str, tmp_path: Path) -> None:
    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> None:
        optimizer.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        ema.update(module)

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer, Ema]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        optimizer = (
            torch.optim.AdamW(module.parameters(), 0.1)
            if rule == "AdamW"
            else MuonAdamW(module.named_parameters(), 0.1, 0.1)
        )
        return module, optimizer, Ema(module)

    module, optimizer, ema = fresh()
    step(module, optimizer, ema)
    save_state(tmp_path / "s", module, ema, optimizer, {"samples": 7})
    step(module, optimizer, ema)
    other, other_optimizer, other_ema = fresh()
    assert load_state(tmp_path / "s", other, other_ema, other_optimizer)["samples"] == 7
    step(other, other_optimizer, other_ema)
    assert torch.equal(module.weight, other.weight) and torch.equal(module.bias, other.bias)
    assert torch.equal(ema.shadow["weight"], other_ema.shadow["weight"])


def test_half_written_checkpoint_never_replaces_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(2, 2)
    optimizer, ema = torch.optim.AdamW(module.parameters()), Ema(module)
    save_state(tmp_path / "s", module, ema, optimizer, {"samples": 1})

    def torn(tensors: object, path: Path, **_: object) -> None:
        save_file({"x": torch.zeros(1)}, path)
        raise OSError("disk full")

    monkeypatch.setattr("treg_med.training.checkpoint.save_file", torn)
    with pytest.raises(ResourceError, match=r"writing 's' failed: disk full; free some space"):
        save_state(tmp_path / "s", module, ema, optimizer, {"samples": 2})
    assert load_state(tmp_path / "s", module, ema, optimizer)["samples"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_the_library_of_weights_says_of_a_disk_that_takes_no_more_is_typed(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limit of the size of files on this system")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="writing weights failed: .*too large"), writing("writing weights"):
            save_file({"x": torch.zeros(10**6)}, tmp_path / "weights")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
