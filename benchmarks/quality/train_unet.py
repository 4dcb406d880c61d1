"""Train the supervised networks of the benchmark on the training split of the slice files.

    python -m benchmarks.quality.train_unet mri --slices brain_mr_slices_2d.h5 --native FOLDER --out FOLDER
    python -m benchmarks.quality.train_unet mri-tv --slices brain_mr_slices_2d.h5 --pairs FOLDER --out FOLDER
    python -m benchmarks.quality.train_unet ct --slices ct_slices_2d.h5 --pairs FOLDER --out FOLDER

The learning rate falls to zero over ``--minutes`` of processor time on one thread. The state is written every few
minutes: the same command goes on where it was stopped. Some training subjects are kept out and choose between networks:
their PSNR is in the log, that of the network's input under the event "start".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.ct_samples import CTSamples
from benchmarks.quality.mr_samples import MRSamples
from benchmarks.quality.mr_tv_samples import TVSamples
from benchmarks.quality.unet import KINDS, UNet, UNetConfig, save_unet
from treg_med.training.checkpoint import Ema, load_state, save_state

_WARM_UP = 200
_AVERAGE = 0.999


class Training:
    """State of a training: network, its running average, optimiser, and how far it is."""

    def __init__(self, unet: UNet, rate: float) -> None:
        self.unet = unet.to(memory_format=torch.channels_last)
        self._ema = Ema(unet, _AVERAGE)
        self._average = UNet(unet.config).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(unet.parameters(), lr=rate, weight_decay=1e-4)
        self.rate = rate
        self.step = 0
        self.seconds = 0.0

    def learn(self, start: Tensor, target: Tensor, progress: float) -> float:
        """Take one step and return the loss."""
        rate = self.rate * min(1.0, (self.step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            prediction = self.unet(start)
        loss = (prediction.float() - target).abs().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self._ema.update(self.unet)
        return float(loss.detach())

    @property
    def average(self) -> UNet:
        """The network of averaged weights."""
        self._ema.copy_to(self._average)
        return self._average

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        numbers = {"step": self.step, "seconds": self.seconds}
        save_state(path, self.unet, self._ema, self.optimiser, numbers)

    def resume(self, path: Path) -> None:
        """Go on from a state that `save` wrote."""
        numbers = load_state(path, self.unet, self._ema, self.optimiser)
        self.step, self.seconds = numbers["step"], numbers["seconds"]


def score(improve: Callable[[Tensor], Tensor], pairs: Sequence[tuple[str, Tensor, Tensor, float]]) -> dict[str, float]:
    """PSNR in dB for an image of maximum one (CT: for 2000 HU), mean by acquisition."""
    found: dict[str, list[float]] = defaultdict(list)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for name, start, target, scale in pairs:
            error = scale * (improve(start[None])[0].float() - target)
            found[name].append(-10 * math.log10(float(error.square().mean())))
    means = {name: round(sum(values) / len(values), 3) for name, values in found.items()}
    return {"mean": round(sum(means.values()) / len(means), 3), **means}


def _samples(arguments: argparse.Namespace) -> MRSamples | TVSamples | CTSamples:
    if arguments.kind == "mri-tv":
        return TVSamples(arguments.slices, arguments.pairs, arguments.batch, arguments.seed)
    if arguments.kind == "ct":
        return CTSamples(arguments.slices, arguments.pairs, arguments.batch, arguments.seed)
    volumes = sorted(path for folder in arguments.native for path in folder.glob("*.nii.gz"))
    native = [path for path in volumes if path.name.startswith(tuple(arguments.native_subjects))]
    return MRSamples(arguments.slices, native, arguments.batch, arguments.seed)


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state, log = arguments.out / f"{arguments.kind}.ckpt", arguments.out / f"{arguments.kind}.jsonl"
    samples = _samples(arguments)
    held_out = list(samples.validation())
    training = Training(UNet(UNetConfig(arguments.kind, arguments.width, arguments.depth)), arguments.rate)
    if state.is_file():
        training.resume(state)
    budget = arguments.minutes * 60

    def write(**entry: Any) -> None:
        with log.open("a", encoding="utf-8") as stream:
            done = {"step": training.step, "cpu_minutes": round(training.seconds / 60, 2)}
            stream.write(json.dumps(done | entry) + "\n")

    def checkpoint(losses: list[float]) -> None:
        training.save(state)
        facts = {"steps": str(training.step), "minutes": f"{training.seconds / 60:.0f}"}
        save_unet(training.average, arguments.out / f"{arguments.kind}.safetensors", facts)
        write(loss=round(sum(losses) / max(1, len(losses)), 5), psnr=score(training.average, held_out))

    write(
        event="start",
        pid=os.getpid(),
        parameters=sum(p.numel() for p in training.unet.parameters()),
        psnr=score(lambda start: start[:, -1:], held_out),
    )
    losses: list[float] = []
    saved = training.seconds
    while training.seconds < budget and training.step < arguments.steps:
        begin = time.process_time()
        losses.append(training.learn(*samples.draw(training.step), training.seconds / budget))
        training.seconds += time.process_time() - begin
        if training.step in (100, 500) or training.seconds - saved > 60 * arguments.every:
            checkpoint(losses)
            losses, saved = [], training.seconds
    checkpoint(losses)
    write(event="end", images_per_second=round(training.step * arguments.batch / training.seconds, 2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--slices", type=Path, required=True, help="slice file with captions")
    parser.add_argument("--native", type=Path, nargs="*", default=[], help="folders of NIfTI volumes")
    parser.add_argument("--native-subjects", nargs="*", default=["ms_long_p01"], help="starts of their names")
    parser.add_argument("--pairs", type=Path, help="folder of the pairs (mri-tv, ct)")
    parser.add_argument("--out", type=Path, required=True, help="folder of state, log and weights")
    parser.add_argument("--minutes", type=float, default=40, help="processor time")
    parser.add_argument("--steps", type=int, default=10**9, help="end after so many steps")
    parser.add_argument("--every", type=float, default=4, help="minutes between two states")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())
