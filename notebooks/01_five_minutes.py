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
# # Five minutes with treg_med
#
# A measured brain scan, the classical reconstructions, and one with a text-conditioned prior.
#
# **For research use only. Not a medical device; not for diagnosis or treatment.**

# %%
import treg_med as tm

# %% [markdown]
# ## Open a scan and look
#
# The scan that comes with the package was measured with 8 coils, one k-space sample in eight. A scan is a
# lazy list of measurements; each knows its operator, its noise level and where it lies in the patient.

# %%
scan = tm.open_scan(tm.sample_path("brain_8ch_poisson"))
scan

# %%
measurement = scan[0]
measurement

# %% [markdown]
# ## Reconstruct without a prior
#
# A residual of 1 means that the image fits the data to their noise level. Zero filling is far above it; total
# variation, in two stages along the phase, is the classical bar.

# %%
zero_filled = tm.reconstruct(measurement, solver="zero-filled")
tv = tm.reconstruct(measurement, solver="tv")
tv.show()
# %% [markdown]
# ## Reconstruct with the prior and a sentence

# %%
prior = tm.LatentPrior.from_pretrained()
prior

# %%
rec = tm.reconstruct(measurement, text="axial T1-weighted brain MRI", solver="treg", prior=prior, seed=0)
rec

# %% [markdown]
# ## Compare
#
# Beside the result stands its control, the same pipeline with the classical image in place of the prior's estimate:
# what the two share did not come from the prior.

# %%
control = tm.reconstruct(measurement, solver="treg", prior=prior, seed=0, use_prior=False)
rec.compare([control, tv, zero_filled])
# %% [markdown]
# ## Change a word
#
# Same data, same seed, another contrast word. The data say a lot here, so the images stay close; how far they
# part is a measure of what the word alone decided.

# %%
other = tm.reconstruct(measurement, text="axial T2-weighted brain MRI", solver="treg", prior=prior, seed=0)
change = (rec.image - other.image).abs().square().mean().sqrt() / rec.image.abs().square().mean().sqrt()
print(f"changing one word changed the image by {100 * float(change):.2f} % (root mean square)")
print(f"residuals: {rec.residual:.3f} and {other.residual:.3f} noise units")
