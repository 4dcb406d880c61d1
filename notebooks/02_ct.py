# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Computed tomography with treg_med
#
# A measured scan with few views, a scan on a limited arc, a simulated low-dose scan in Hounsfield units, the operators
# by hand, and the text-conditioned prior on CT.
#
# **For research use only. Not a medical device; not for diagnosis or treatment.**

# %%
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import torch

import treg_med as tm
from treg_med.operators import (
    FanBeamCT,
    ParallelBeamCT,
    attenuation,
    filtered_backprojection,
    find_rotation_centre,
    hounsfield,
)

# %% [markdown]
# ## A measured scan
#
# The package ships one fan-beam scan of an acrylic disc with four holes from the Helsinki Tomography Challenge 2022,
# with 60 of its views. What was measured, and what was not, is said with the data.

# %%
disc_file = tm.sample_path("htc2022_disc")
with tm.open_scan(disc_file) as scan:
    disc = scan[0]
disc

# %%
print(disc.operator)
print("not measured:", disc.provenance["missing"])
print("\n".join(disc.warnings))

# %% [markdown]
# ## Filtered backprojection, total variation, and total variation with statistical weights
#
# All methods have the same call. No medical prior applies to acrylic, and the tool says so: here the best choice is a
# method without one. The last picture is the challenge's own reconstruction of the complete scan, twelve times as many
# views; it has noise of its own and is no ground truth.
#
# The residual is the misfit in units of the noise, which was estimated from the projections. With all views it does not
# come down to 1: what the model leaves out (beam hardening, the bright rim, for one) is larger than the noise.

# %%
fbp = tm.reconstruct(disc, solver="fbp")
tv = tm.reconstruct(disc, solver="tv")
pwls = tm.reconstruct(disc, solver="pwls-tv")
fbp.compare([tv, pwls], difference=False)
# %% [markdown]
# ## A limited arc
#
# Options of the reader leave views out: `arc` and `start` in degrees, `views` as a number. Edges whose normals lie in
# the missing wedge are not in the data: the outline fades at two sides, and what a method draws there is a guess.

# %%
with tm.open_scan(disc_file, arc=120) as scan:
    limited = scan[0]
print(limited.operator.views, "views; not measured:", limited.provenance["missing"])
limited_fbp = tm.reconstruct(limited, solver="fbp")
limited_pwls = tm.reconstruct(limited, solver="pwls-tv")
limited_fbp.compare([limited_pwls], difference=False)
# %% [markdown]
# ## A phantom of our own in Hounsfield units
#
# An image in Hounsfield units is no measurement. From a volume with such values a scan is simulated, on finer rays
# than those of the reconstruction, with photon and readout noise; every result says that it was. Here: water with fat
# around it, two dense hips, a spine, a bladder, a contrasted vessel and some air.

# %%
side, pixel, fine = 128, 2.0, 4
axis = (np.arange(side * fine) - (side * fine - 1) / 2) * pixel / fine  # mm, four points to a pixel


def ellipse(x: float, y: float, a: float, b: float) -> np.ndarray:
    """Return where the ellipse at (x, y) mm, y down, is."""
    return ((axis[None] - x) / a) ** 2 + ((axis[:, None] - y) / b) ** 2 <= 1


drawn = np.full((side * fine, side * fine), -1000.0)
for x, y, a, b, value in (
    (0, 0, 117, 77, -90),
    (0, 0, 107, 67, 40),
    (-70, 7, 21, 21, 900),
    (-70, 7, 16, 16, 300),
    (70, 7, 21, 21, 900),
    (70, 7, 16, 16, 300),
    (0, 40, 19, 15, 700),
    (0, 40, 11, 8, 200),
    (0, -20, 30, 20, 5),
    (-13, 10, 6, 6, 90),
    (12, 12, 8, 5, -800),
):
    drawn[ellipse(x, y, a, b)] = value
phantom = drawn.reshape(side, fine, side, fine).mean((1, 3))

# %% [markdown]
# The volume is written as NIfTI and scanned with 120 views of 3000 photons per ray, as `treg-med simulate` does. The
# text is made of the file's name, out of a short list of words.

# %%
with tempfile.TemporaryDirectory() as folder:
    volume = Path(folder) / "pelvis.nii"
    affine = np.diag([-pixel, -pixel, 5.0, 1.0])  # columns run to the patient's left, rows to the back
    nib.save(nib.Nifti1Image(phantom.T[:, :, None].astype(np.int16), affine), volume)
    written = tm.data.simulate_ct_scan(volume, Path(folder) / "scan.h5", views=120, photons=3000, electronic_std=3)
    with tm.open_scan(written) as scan:
        low_dose, text = scan[0], scan.header.text
print(text)
low_dose

# %% [markdown]
# ## Statistical weights
#
# Behind both hips a ray counts a thousandth of the photons of a ray through air. Its logarithm is that much less
# certain, and the weights of a measurement say by how much: the variance of sample i is `noise_std ** 2 / weights[i]`.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for ax, values, title in (
    (axes[0], low_dose.y, "line integrals"),
    (axes[1], low_dose.weights.clamp_min(1e-4).log10(), "log10 of the weights"),
):
    shown = ax.imshow(values.numpy(), cmap="gray", aspect="auto")
    ax.set(title=title, xlabel="bin", ylabel="view")
    figure.colorbar(shown, ax=ax)
plt.show()
plt.close(figure)

# %% [markdown]
# Without weights (`tv`) the darkest rays count as much as the brightest, and their noise draws streaks between the
# hips. With weights (`pwls-tv`) they count for what they know: no streaks there. Images are in Hounsfield units
# (`rec.hounsfield`), and so are the files that `treg-med reconstruct` writes.

# %%
truth = hounsfield(low_dose.target)
soft = (truth > -20) & (truth < 120)


def errors(result: tm.Reconstruction) -> str:
    """Return the root mean square errors in HU, of all pixels and of soft tissue."""
    squared = (result.hounsfield - truth).square()
    return f"{float(squared.mean().sqrt()):4.0f} HU, soft tissue {float(squared[soft].mean().sqrt()):4.0f} HU"


results = {
    "fbp": tm.reconstruct(low_dose, solver="fbp", filter="hann"),
    "tv": tm.reconstruct(low_dose, solver="tv"),
    "pwls-tv": tm.reconstruct(low_dose, solver="pwls-tv"),
}
for name, result in results.items():
    print(f"{name:8s} error {errors(result)}, residual {result.residual:.2f} noise units")

# %%
results["pwls-tv"].compare([results["tv"], results["fbp"]], window=(-160, 240))
# %% [markdown]
# ## The operators by hand
#
# A projector maps an image in 1/mm to line integrals. Its adjoint is exact, and is what automatic differentiation
# uses, so a projector may stand in any loss.

# %%
angles = torch.arange(180) * math.pi / 180
parallel = ParallelBeamCT((side, side), angles, 185, pixel_size=pixel, bin_size=pixel)
print(parallel)
image = attenuation(torch.from_numpy(phantom).float()).clamp_min(0)
sinogram = parallel(image)

other = torch.rand(parallel.range_shape, generator=torch.Generator().manual_seed(0))
left, right = float((sinogram * other).sum()), float((image * parallel.adjoint(other)).sum())
print(f"<A x, y> = {left:.4f}, <x, A^T y> = {right:.4f}")

guess = torch.zeros_like(image).requires_grad_()
loss = (parallel(guess) - sinogram).square().sum() / 2
loss.backward()
expected = parallel.adjoint(parallel(torch.zeros_like(image)) - sinogram)
print("the gradient is the adjoint of the misfit:", bool(torch.allclose(guess.grad, expected, rtol=1e-5)))

# %% [markdown]
# Filtered backprojection is a function of its own, for parallel, fan and cone beams; a fan needs its two distances.

# %%
distances = {"source_origin": 595.0, "origin_detector": 490.6}
fan = FanBeamCT(
    (side, side), torch.arange(360) * math.pi / 180, 221, pixel_size=pixel, bin_size=2 * pixel, **distances
)
for operator in (parallel, fan):
    back = hounsfield(filtered_backprojection(operator, operator(image), "hann"))
    inside = torch.from_numpy(ellipse(0, 0, 100, 60)[2::4, 2::4])
    print(f"{type(operator).__name__}: median inside {float(back[inside].median()):.0f} HU, drawn as 40 HU")

# %% [markdown]
# ## Centre of rotation
#
# The rotation axis rarely meets the middle of the detector. A wrong `centre` doubles every edge; the projections
# themselves tell where it is.

# %%
shifted = ParallelBeamCT((side, side), angles, 185, pixel_size=pixel, bin_size=pixel, centre=95.4)
off_axis = shifted(image)
found = find_rotation_centre(off_axis, angles)
print(f"the axis is at bin 95.40, found at {found:.2f}; the middle of the detector is {parallel.centre:.2f}")
figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
for ax, operator, title in ((axes[0], parallel, "centre left at the middle"), (axes[1], shifted, "centre as found")):
    back = hounsfield(filtered_backprojection(operator, off_axis))
    ax.imshow(back.numpy(), cmap="gray", vmin=-160, vmax=240)
    ax.set(title=title, xticks=[], yticks=[])
plt.show()
plt.close(figure)

# %% [markdown]
# ## The prior and a sentence on CT
#
# The same scan with TReg. Eight steps are few, ellipses are no anatomy, and the prior has never seen them: this shows
# how the call looks and where its control belongs, and says nothing about the quality on patients. The control is the
# same pipeline with the classical image in place of the prior's estimate; only what differs between the two came from
# the prior. The codec shows the prior the window from -1000 to 1000 HU.

# %%
prior = tm.LatentPrior.from_pretrained()
treg = tm.reconstruct(low_dose, text=text, solver="treg", preset="ct", prior=prior, seed=0, steps=8)
control = tm.reconstruct(low_dose, solver="treg", preset="ct", prior=prior, seed=0, steps=8, use_prior=False)
for name, result in (("treg", treg), ("control", control)):
    print(f"{name:8s} error {errors(result)}, {result.nfe} evaluations of the network")
treg.compare([replace(control, solver="control")], window=(-160, 240))
