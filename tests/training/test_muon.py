"""The optimizer."""

import torch

from treg_med.training.muon import MuonAdamW, orthogonalised


def test_orthogonalised_direction_has_singular_values_near_one() -> None:
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0)) * 1e-3
    for given in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalised(given))
        assert values.min() > 0.6 and values.max() < 1.3
        assert float((orthogonalised(given) * given).sum()) > 0.7 * float(torch.linalg.svdvals(given).sum())


def test_both_rules_of_the_optimizer_reduce_a_loss() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    optimizer = MuonAdamW(module.named_parameters(), rate=1e-2, muon_rate=0.02)
    assert len(optimizer.hidden) == 2
    x = torch.randn(64, 8)
    losses = []
    for _ in range(60):
        loss = (module(x) - x[:, :4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    before = [p.clone() for p in module.parameters()]
    optimizer.schedule = 0.0
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
