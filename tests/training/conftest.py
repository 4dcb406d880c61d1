"""Slices to train on."""

from pathlib import Path

import h5py
import numpy as np
import pytest


@pytest.fixture(scope="session")
def slice_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve slices of blobs in the layout of the training file."""
    path = tmp_path_factory.mktemp("slices") / "slices.h5"
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    images = np.stack(
        [200 * np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 200) for r, c in rng.uniform(20, 44, (12, 2))]
    )
    with h5py.File(path, "w") as file:
        file["images"] = images.astype(np.uint8)
        file["lesion_masks"] = (images > 190).astype(np.uint8)
        text = {
            "captions": ["Axial T1-weighted brain MRI; 2 white-matter lesions."] * 12,
            "contrast": ["T1w", "FLAIR"] * 6,
            "plane": ["axial"] * 12,
            "finding": ["ms_lesion"] * 12,
            "subject": ["ms_a"] * 8 + ["other"] * 4,
            "split": ["train"] * 10 + ["val"] * 2,
        }
        for name, values in text.items():
            file.create_dataset(name, data=values, dtype=h5py.string_dtype())
    return path
