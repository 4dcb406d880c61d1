"""Physics: operators, sampling masks, receive coils, blur kernels and noise. Torch only: no files, no diffusion."""

from treg_med.operators.base import (
    AdjointOperator,
    Composition,
    Identity,
    LinearOperator,
    PerCoil,
    Scaled,
    Sum,
)
from treg_med.operators.blur import Blur
from treg_med.operators.blur_kernels import gaussian_kernel, motion_kernel
from treg_med.operators.cartesian_mri import CartesianGram, CartesianMRI
from treg_med.operators.checks import OperatorCheck, OperatorReport, check_operator
from treg_med.operators.coil_maps import CoilMaps
from treg_med.operators.coils import (
    birdcage_maps,
    calibration_region,
    compress_coils,
    estimate_sensitivity_maps,
)
from treg_med.operators.cone_beam import ConeBeamCT
from treg_med.operators.conjugate_gradient import CGResult, conjugate_gradient
from treg_med.operators.contract import Operator
from treg_med.operators.counts import LogData, flat_field, log_transform, simulate_counts
from treg_med.operators.ct_operator import CTOperator
from treg_med.operators.ct_scenarios import Scenario, limited_angle, low_dose, sparse_view
from treg_med.operators.diagonalised import DiagonalisedOperator
from treg_med.operators.fan_beam import FanBeamCT
from treg_med.operators.filtered_backprojection import filtered_backprojection
from treg_med.operators.fourier import centered_fft2, centered_ifft2
from treg_med.operators.hounsfield_units import MU_WATER, attenuation, clean_hounsfield, hounsfield
from treg_med.operators.inpainting import Inpainting, box_mask, random_pixel_mask
from treg_med.operators.masks import (
    SamplingMask,
    equispaced_mask,
    gaussian_mask_1d,
    gaussian_mask_2d,
    poisson_disc_mask,
    radial_mask,
    random_mask,
)
from treg_med.operators.noise import (
    complex_gaussian_noise,
    estimate_noise_std,
    estimate_real_noise_std,
    gaussian_noise,
)
from treg_med.operators.nonlinear import FourierMagnitude, NonlinearOperator, Saturation
from treg_med.operators.nufft import NonuniformFFT
from treg_med.operators.parallel_beam import ParallelBeamCT
from treg_med.operators.registry import available_operators, operator_class
from treg_med.operators.rotation_centre import find_rotation_centre
from treg_med.operators.sampling import FourierTransform, Sampling
from treg_med.operators.separable import Separable
from treg_med.operators.super_resolution import SuperResolution
from treg_med.operators.weighted import Weighted

__all__ = [
    "MU_WATER",
    "AdjointOperator",
    "Blur",
    "CGResult",
    "CTOperator",
    "CoilMaps",
    "CartesianGram",
    "CartesianMRI",
    "Composition",
    "ConeBeamCT",
    "DiagonalisedOperator",
    "FanBeamCT",
    "FourierMagnitude",
    "FourierTransform",
    "Identity",
    "Inpainting",
    "LinearOperator",
    "LogData",
    "NonlinearOperator",
    "NonuniformFFT",
    "Operator",
    "OperatorCheck",
    "OperatorReport",
    "ParallelBeamCT",
    "PerCoil",
    "Sampling",
    "SamplingMask",
    "Saturation",
    "Scaled",
    "Scenario",
    "Separable",
    "Sum",
    "SuperResolution",
    "Weighted",
    "attenuation",
    "available_operators",
    "birdcage_maps",
    "box_mask",
    "calibration_region",
    "centered_fft2",
    "centered_ifft2",
    "check_operator",
    "clean_hounsfield",
    "complex_gaussian_noise",
    "compress_coils",
    "conjugate_gradient",
    "equispaced_mask",
    "estimate_noise_std",
    "estimate_real_noise_std",
    "estimate_sensitivity_maps",
    "filtered_backprojection",
    "find_rotation_centre",
    "flat_field",
    "gaussian_kernel",
    "gaussian_mask_1d",
    "gaussian_mask_2d",
    "gaussian_noise",
    "hounsfield",
    "limited_angle",
    "log_transform",
    "low_dose",
    "motion_kernel",
    "operator_class",
    "poisson_disc_mask",
    "radial_mask",
    "random_mask",
    "random_pixel_mask",
    "simulate_counts",
    "sparse_view",
]
