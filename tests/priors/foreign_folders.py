"""Small folders of random weights in other people's formats, made by the classes that define the formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-=,."
NAMES = ("Gender", "Age", "Ventricular volume", "Brain volume")


def stable_diffusion(folder: Path, **weights: Any) -> Path:
    """Stable Diffusion 1.x in small: 3-channel f4 autoencoder, epsilon, CLIP text of 77 tokens, PNDM."""
    from diffusers import PNDMScheduler

    tiny_vae().save_pretrained(folder / "vae", **weights)
    tiny_unet().save_pretrained(folder / "unet", **weights)
    schedule: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    PNDMScheduler(skip_prk_steps=True, **schedule).save_pretrained(folder / "scheduler")
    text_parts(folder)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_vae(**changed: Any) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    arguments: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 4}
    blocks = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return AutoencoderKL(**{**arguments, **blocks, **changed})


def tiny_unet(**changed: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(2)
    arguments: dict[str, Any] = {
        "sample_size": 16,  # 64 px
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**arguments, **changed})


def text_parts(folder: Path, width: int = 24) -> None:
    """``text_encoder/`` and a ``tokenizer/`` of vocab.json and merges.txt, as Stable Diffusion has it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "ax", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    (tokenizer / "merges.txt").write_text("#version: 0.2\na x\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    ends = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    special = {"bos_token": "<|startoftext|>", **ends}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | special))
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=start,
        eos_token_id=end,
    )
    torch.manual_seed(3)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


AUTOENCODER: dict[str, Any] = {
    "_target_": "monai.networks.nets.AutoencoderKL",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": "@latent_channels",
    "channels": [8, 8, 8],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "attention_levels": [False, False, False],
    "with_encoder_nonlocal_attn": True,
    "with_decoder_nonlocal_attn": True,
}
DENOISER: dict[str, Any] = {
    "_target_": "monai.networks.nets.DiffusionModelUNet",
    "spatial_dims": 2,
    "in_channels": 3,
    "out_channels": "@latent_channels",
    "channels": [8, 16],
    "attention_levels": [False, True],
    "num_head_channels": [0, 8],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "resblock_updown": True,
}
SCHEDULER: dict[str, Any] = {
    "_target_": "monai.networks.schedulers.DDIMScheduler",
    "_requires_": ["@load_diffusion", "@load_autoencoder"],
    "beta_start": 0.0015,
    "beta_end": 0.0205,
    "num_train_timesteps": 1000,
    "schedule": "scaled_linear_beta",
    "clip_sample": False,
}
VECTOR: dict[str, Any] = {"in_channels": 7, "with_conditioning": True, "cross_attention_dim": 4}


def inference_config(canary: Path, **changed: Any) -> dict[str, Any]:
    """``inference.json`` as the model zoo writes it; running any of its expressions makes the file `canary`."""
    touch = f"$__import__('pathlib').Path({str(canary)!r}).touch()"
    return {
        "imports": ["$import torch", touch],
        "bundle_root": ".",
        "model_dir": "$@bundle_root + '/models'",
        "device": touch,
        "conditioning": f"{touch} or @age",
        "latent_channels": 3,
        "scale_factor": 0.4,
        "autoencoder_def": AUTOENCODER,
        "network_def": "@autoencoder_def",
        "load_autoencoder": touch,
        "diffusion_def": DENOISER,
        "load_diffusion": touch,
        "scheduler": SCHEDULER,
        "sampler": {"_target_": "scripts.sampler.Sampler", "_requires_": touch},
        "saver": {"_target_": "builtins.open", "file": str(canary), "mode": "w"},
        "run": touch,
        **changed,
    }


def metadata(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    conditioning = {
        "type": "tabular",
        "value_range": [0, 1],
        "channel_def": {str(index): name for index, name in enumerate(names)},
    }
    image = {"type": "image", "value_range": [0, 1], "num_channels": 1, "channel_def": {"0": "T1w"}}
    return {"version": "1.0.0", "network_data_format": {"inputs": {"c": conditioning}, "outputs": {"pred": image}}}


def networks(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The two MONAI networks of a configuration; layers that start at zero would hide what goes through them."""
    from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

    def arguments(entry: Mapping[str, Any]) -> dict[str, Any]:
        used = {key: value for key, value in entry.items() if not key.startswith("_")}
        return {key: config["latent_channels"] if value == "@latent_channels" else value for key, value in used.items()}

    torch.manual_seed(4)
    vae = AutoencoderKL(**arguments(config["autoencoder_def"])).eval()
    unet = DiffusionModelUNet(**arguments(config["diffusion_def"])).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return vae, unet


def monai_bundle(folder: Path, canary: Path, about: Mapping[str, Any] | None = None, **changed: Any) -> tuple[Any, Any]:
    """Write a bundle; return its networks."""
    from safetensors.torch import save_file

    config = inference_config(canary, **changed)
    vae, unet = networks(config)
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata() if about is None else about))
    save_file(vae.state_dict(), folder / "models" / "autoencoder.safetensors")
    save_file(unet.state_dict(), folder / "models" / "model.safetensors")
    return vae, unet


def edit_json(path: Path, **changed: Any) -> None:
    """Set entries of a JSON file; None takes one away."""
    content = json.loads(path.read_text())
    content |= changed
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
