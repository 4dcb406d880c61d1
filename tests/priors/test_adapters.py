"""Adapters of every layout on a tiny prior, checked against the sums they stand for and against the libraries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from treg_med.data.safe_hdf5 import sha256_of
from treg_med.errors import ConfigError, FormatError, GeometryError, ResourceError, UnsafeFileError
from treg_med.priors import LatentPrior
from treg_med.priors.adapters import apply_adapter, base_sha256
from treg_med.priors.merge import merge_adapters

WEIGHTS = "pytorch_lora_weights.safetensors"
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
CONV = "mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def base(tiny_prior_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny prior with a card, as a user's own folder has one."""
    folder = tmp_path_factory.mktemp("carded") / "brain"
    shutil.copytree(tiny_prior_folder, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}
    card = {"summary": "blobs", "words": ["axial"], "metrics": {"a": 1}, "sha256": sums}
    (folder / "prior.json").write_text(json.dumps(card))
    return folder


def factors(unet: UNet2DConditionModel, rank: int = 3) -> dict[str, Tensor]:
    """Random low-rank factors of one linear layer and one convolution."""
    generator = torch.Generator().manual_seed(1)
    out = {}
    for name in (QUERY, CONV):
        weight = unet.get_submodule(name).weight
        ones = (1, 1) if weight.ndim == 4 else ()
        shapes = {"A": (rank, *weight.shape[1:]), "B": (weight.shape[0], rank, *ones)}
        for which, shape in shapes.items():
            out[f"{name}.lora_{which}.weight"] = 0.1 * torch.randn(shape, generator=generator)
    return out


def save_factors(folder: Path, weights: dict[str, Tensor], config: dict[str, object] | None = None) -> Path:
    folder.mkdir()
    metadata = {"format": "pt"} | ({"lora_adapter_metadata": json.dumps(config)} if config else {})
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / WEIGHTS, metadata=metadata)
    return folder


def our_folder(folder: Path, weights: dict[str, Tensor], base_sum: str, **card: object) -> Path:
    """An adapter folder with a card, low-rank or full."""
    content = {"format": 1, "component": "unet", "method": "lora", "base": {"name": "brain", "sha256": base_sum}}
    content |= {"data": {"file": "ct.h5"}, "words": ["chest"], **card}
    if content["method"] == "lora":
        save_factors(folder, weights)
    else:
        (folder / str(content["component"])).mkdir(parents=True)
        save_file(weights, folder / str(content["component"]) / "diffusion_pytorch_model.safetensors")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    content["sha256"] = {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}
    (folder / "adapter.json").write_text(json.dumps(content))
    return folder


def predicted(prior: LatentPrior) -> Tensor:
    z = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return prior.predict(z, 400, prior.embed("axial FLAIR")).clean


def products(weights: dict[str, Tensor], name: str, scale: float) -> Tensor:
    first, second = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
    return scale * torch.einsum("or,r...->o...", second.flatten(1), first)


# --- what it does to the weights


@pytest.mark.parametrize("prefix", ["", "unet."])
@pytest.mark.parametrize(("config", "scale"), [(None, 1.0), ({"r": 3, "lora_alpha": 6}, 2.0)])
def test_factors_of_diffusers_are_added(
    base: Path, tmp_path: Path, prefix: str, config: dict[str, object] | None, scale: float
) -> None:
    plain = LatentPrior.from_pretrained(base)
    weights = factors(plain.unet)
    header = {f"{prefix}{n}": v for n, v in config.items()} if config else None
    if header is not None:
        header[f"{prefix}target_modules"] = [QUERY, CONV]
    folder = save_factors(tmp_path / "lora", {f"{prefix}{n}": t for n, t in weights.items()}, header)
    prior = LatentPrior.from_pretrained(base, adapter=folder)
    for name in (QUERY, CONV):
        expected = plain.unet.get_submodule(name).weight + products(weights, name, scale)
        assert torch.allclose(prior.unet.get_submodule(name).weight, expected, atol=1e-6)
    assert set(prior.unet.state_dict()) == set(plain.unet.state_dict())  # no layer of peft is left
    assert torch.equal(prior.unet.conv_in.weight, plain.unet.conv_in.weight)
    assert (predicted(prior) - predicted(plain)).abs().max() > 1e-3


def test_folder_of_peft_predicts_as_peft_does(base: Path, tmp_path: Path) -> None:
    reference = LatentPrior.from_pretrained(base)
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=["to_q", "conv1"], rank_pattern={"conv1": 2}, use_rslora=True,
        init_lora_weights="gaussian",
    )  # fmt: skip
    model = get_peft_model(reference.unet, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path / "peft")
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()
    before = predicted(LatentPrior.from_pretrained(base))
    adapted = predicted(LatentPrior.from_pretrained(base, adapter=tmp_path / "peft"))
    assert torch.allclose(adapted, predicted(reference), atol=1e-5)
    assert (adapted - before).abs().max() > 1e-3


def test_folder_written_by_diffusers_predicts_as_diffusers_does(base: Path, tmp_path: Path) -> None:
    reference = LatentPrior.from_pretrained(base)
    reference.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_v", "conv2"], init_lora_weights=False))
    reference.unet.save_lora_adapter(tmp_path / "lora")
    adapted = predicted(LatentPrior.from_pretrained(base, adapter=tmp_path / "lora"))
    assert torch.allclose(adapted, predicted(reference), atol=1e-5)
    assert (adapted - predicted(LatentPrior.from_pretrained(base))).abs().max() > 1e-3


def test_full_component_replaces_the_base(base: Path, tmp_path: Path) -> None:
    plain = LatentPrior.from_pretrained(base)
    weights = {name: tensor + 0.1 for name, tensor in plain.unet.state_dict().items()}
    folder = our_folder(tmp_path / "full", weights, plain.sha256, method="full")
    prior = LatentPrior.from_pretrained(base, adapter=folder)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in prior.unet.state_dict().items())


# --- what it says


def test_card_source_and_checksum_tell_of_the_adapter(base: Path, tmp_path: Path) -> None:
    plain = LatentPrior.from_pretrained(base)
    one = our_folder(tmp_path / "ct", factors(plain.unet), plain.sha256)
    two = our_folder(tmp_path / "more", factors(plain.unet, 2), plain.sha256)
    prior = LatentPrior.from_pretrained(base, adapter=one)
    both = LatentPrior.from_pretrained(base, adapter=[one, two])
    assert prior.source.endswith("brain + ct") and both.source.endswith("brain + ct + more")
    assert "brain + ct" in repr(prior) and "adapted (lora) to ct.h5" in prior.card["summary"]
    assert len({plain.sha256, prior.sha256, both.sha256}) == 3
    entry = prior.card["adapters"][0]
    assert entry["base_sha256"] == plain.sha256 == base_sha256(both) and len(entry["sha256"]) == 64
    assert entry["component"] == "unet" and entry["method"] == "lora" and "warnings" not in entry
    assert prior.card["words"] == ["axial", "chest"]
    assert "adapters" not in plain.card


def test_other_weights_have_another_checksum(base: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(base)
    sums = set()
    for rank in (2, 3):
        folder = save_factors(tmp_path / f"lora{rank}", factors(prior.unet, rank))
        sums.add(LatentPrior.from_pretrained(base, adapter=folder).card["adapters"][0]["sha256"])
    assert len(sums) == 2


def test_adapter_of_another_prior_warns_or_is_refused(base: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(base)
    folder = our_folder(tmp_path / "lora", factors(prior.unet), "f" * 64)
    with pytest.warns(UserWarning, match="not for this prior"):
        adapted = LatentPrior.from_pretrained(base, adapter=folder)
    assert "not for this prior" in adapted.card["adapters"][0]["warnings"][0]
    full = our_folder(tmp_path / "full", dict(prior.unet.state_dict()), "f" * 64, method="full")
    with pytest.raises(ConfigError, match="adapt this prior"):
        apply_adapter(prior, full)


def test_parts_for_other_components_are_named(base: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(base)
    weights = {f"unet.{n}": t for n, t in factors(prior.unet).items()} | {"text_encoder.a.lora_A.weight": torch.ones(1)}
    with pytest.warns(UserWarning, match="text_encoder"):
        apply_adapter(prior, save_factors(tmp_path / "lora", weights))


# --- what it refuses


def _wrong_rank(weights: dict[str, Tensor]) -> None:
    weights[f"{CONV}.lora_B.weight"] = weights[f"{CONV}.lora_B.weight"][:, :2]


def _wrong_shape(weights: dict[str, Tensor]) -> None:
    weights[f"{QUERY}.lora_A.weight"] = weights[f"{QUERY}.lora_A.weight"][:, :5]


def _unknown_layer(weights: dict[str, Tensor]) -> None:
    weights["down_blocks.9.conv1.lora_A.weight"] = torch.ones(3, 4)


def _missing_half(weights: dict[str, Tensor]) -> None:
    del weights[f"{CONV}.lora_B.weight"]


def _other_key(weights: dict[str, Tensor]) -> None:
    weights[f"{CONV}.alpha"] = torch.tensor(4.0)


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (_wrong_rank, FormatError, "one rank"),
        (_wrong_shape, GeometryError, "another prior"),
        (_unknown_layer, FormatError, "another kind of network"),
        (_missing_half, FormatError, "one rank"),
        (_other_key, FormatError, "convert it"),
        (dict.clear, FormatError, "got none"),
    ],
)
def test_factors_that_do_not_fit_are_refused_before_anything_changes(
    base: Path,
    tmp_path: Path,
    damage: Callable[[dict[str, Tensor]], None],
    error: type[Exception],
    match: str,
) -> None:
    prior = LatentPrior.from_pretrained(base)
    before = predicted(prior)
    weights = factors(prior.unet)
    damage(weights)
    with pytest.raises(error, match=match):
        apply_adapter(prior, save_factors(tmp_path / "lora", weights))
    assert torch.equal(predicted(prior), before) and "adapters" not in prior.card


def test_full_weights_of_another_shape_are_refused(base: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(base)
    weights = dict(prior.unet.state_dict())
    weights["conv_in.bias"] = torch.ones(3)
    with pytest.raises(GeometryError, match="conv_in.bias"):
        apply_adapter(prior, our_folder(tmp_path / "a", weights, prior.sha256, method="full"))
    del weights["conv_in.bias"]
    with pytest.raises(FormatError, match="no conv_in.bias"):
        apply_adapter(prior, our_folder(tmp_path / "b", weights, prior.sha256, method="full"))


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "adapter_model.bin"])
def test_pickled_weights_are_refused(base: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    if name.startswith("adapter"):
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UnsafeFileError, match="unpickled"):
        LatentPrior.from_pretrained(base, adapter=tmp_path)


def test_missing_empty_and_broken_folders(base: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(base)
    with pytest.raises(ResourceError, match="not one"):
        apply_adapter(prior, tmp_path / "none")
    with pytest.raises(ResourceError, match="adapter.json"):
        apply_adapter(prior, tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"nothing of the kind")
    with pytest.raises(FormatError, match="safetensors"):
        apply_adapter(prior, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    with pytest.raises(FormatError, match="LOHA"):
        apply_adapter(prior, tmp_path)
    (tmp_path / "adapter.json").write_text("[]")
    with pytest.raises(FormatError, match="object"):
        apply_adapter(prior, tmp_path)
    (tmp_path / "adapter.json").write_text('{"format": 2, "component": "unet", "method": "lora"}')
    with pytest.raises(FormatError, match="newer"):
        apply_adapter(prior, tmp_path)


def test_card_is_checked_against_the_files(base: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(base)
    folder = our_folder(tmp_path / "lora", factors(prior.unet), prior.sha256)
    card = json.loads((folder / "adapter.json").read_text())
    for sums, error, match in (
        ({WEIGHTS: "0" * 64}, FormatError, "checksum"),
        ({"../x": "0" * 64}, UnsafeFileError, "inside"),
        ({"gone.safetensors": "0" * 64}, ResourceError, "gone"),
        ({}, FormatError, "checksums"),
    ):
        (folder / "adapter.json").write_text(json.dumps(card | {"sha256": sums}))
        with pytest.raises(error, match=match):
            apply_adapter(prior, folder)


def test_start_that_changes_the_base_is_refused(base: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(base)
    folder = save_factors(tmp_path / "lora", factors(prior.unet), {"r": 3, "init_lora_weights": "pissa"})
    with pytest.raises(FormatError, match="pissa"):
        apply_adapter(prior, folder)


def test_missing_peft_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = LatentPrior.from_pretrained(base)
    folder = save_factors(tmp_path / "lora", factors(prior.unet))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"treg-med\[train\]"):
        apply_adapter(prior, folder)


# --- merging


def test_merged_prior_predicts_as_base_and_unfused_adapter(base: Path, tmp_path: Path) -> None:
    plain = LatentPrior.from_pretrained(base)
    folder = our_folder(tmp_path / "ct", factors(plain.unet), plain.sha256, after={"rms": 0.1})
    (base / "unet" / "old.bin").write_bytes(b"pickled")
    try:
        card = merge_adapters(base, [folder], tmp_path / "merged")
    finally:
        (base / "unet" / "old.bin").unlink()
    merged = LatentPrior.from_pretrained(tmp_path / "merged")
    reference = LatentPrior.from_pretrained(base)
    reference.unet.load_lora_adapter(folder, weight_name=WEIGHTS, use_safetensors=True, prefix=None)
    assert (predicted(merged) - predicted(reference)).abs().max() < 1e-4
    assert (predicted(merged) - predicted(plain)).abs().max() > 1e-3
    assert not [*(tmp_path / "merged").rglob("*.bin")]
    assert merged.card == card and set(card["sha256"]) == set(plain.card["sha256"])
    assert card["merged_from"]["base"] == {
        "name": "brain", "sha256": plain.sha256, "summary": "blobs", "metrics": {"a": 1}
    }  # fmt: skip
    origin = card["merged_from"]["adapters"][0]
    assert origin["after"] == {"rms": 0.1} and origin["base_sha256"] == plain.sha256 and origin["name"] == "ct"
    assert "metrics" not in card and "adapters" not in card and card["words"] == ["axial", "chest"]
    untouched = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "merged" / untouched).read_bytes() == (base / untouched).read_bytes()
    assert load_file(tmp_path / "merged" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.bias"].dtype == (
        torch.float32
    )


def test_merge_keeps_what_is_in_its_way(base: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(base)
    folder = save_factors(tmp_path / "lora", factors(prior.unet))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("a year of work")
    with pytest.raises(ResourceError, match="something else"):
        merge_adapters(base, [folder], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "a year of work"
    with pytest.raises(ResourceError, match="base prior"):
        merge_adapters(base, [folder], base)
    with pytest.raises(ConfigError, match="at least one"):
        merge_adapters(base, [], tmp_path / "new")
    merge_adapters(base, [folder], tmp_path / "new")
    merge_adapters(base, [folder], tmp_path / "new")  # an earlier prior is replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lora", "mine", "new"]
