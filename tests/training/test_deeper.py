"""A deepened denoiser starts out equal to the one it was made from."""

from __future__ import annotations

import pytest
import torch

from treg_med.errors import ConfigError
from treg_med.training.deeper import deepened
from treg_med.training.denoiser import build_denoiser


def test_a_deeper_network_gives_the_same_at_first() -> None:
    torch.manual_seed(0)
    shallow = build_denoiser(6, (16, 32)).eval()
    deep = deepened(shallow, 3).eval()
    assert sum(p.numel() for p in deep.parameters()) > sum(p.numel() for p in shallow.parameters())
    x, text = torch.randn(2, 6, 16, 16), torch.randn(2, 8, 256)
    with torch.no_grad():
        expected, found = (net(x, torch.tensor([5, 900]), text).sample for net in (shallow, deep))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert deepened(shallow, 1) is shallow


def test_a_network_is_not_made_shallower() -> None:
    with pytest.raises(ConfigError, match="at most 1 residual blocks a level"):
        deepened(build_denoiser(6, (16, 32), 2), 1)
