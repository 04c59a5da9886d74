# SPDX-License-Identifier: Apache-2.0
"""Files <-> tensors: MedMNIST3D, phantoms, NIfTI; batches of them on the device."""

from monai_llmboost.data.augment import RandAffineBatchd
from monai_llmboost.data.batches import BatchedVolumes
from monai_llmboost.data.labelled import LabelledVolumes, class_names
from monai_llmboost.data.medmnist3d import medmnist3d_file, medmnist3d_names
from monai_llmboost.data.nifti import CheckVolumed, NiftiVolumes, find_nifti
from monai_llmboost.data.phantoms import PHANTOM_CLASSES, phantom_arrays

__all__ = [
    "PHANTOM_CLASSES",
    "BatchedVolumes",
    "CheckVolumed",
    "LabelledVolumes",
    "NiftiVolumes",
    "RandAffineBatchd",
    "class_names",
    "find_nifti",
    "medmnist3d_file",
    "medmnist3d_names",
    "phantom_arrays",
]
