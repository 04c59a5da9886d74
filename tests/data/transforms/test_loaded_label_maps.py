# SPDX-License-Identifier: Apache-2.0
"""Label maps: reading, their grid, their values, resampling, cropping and augmentation together with the image."""

import re

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import OBLIQUE, write_series
from monai.data import MetaTensor
from monai.transforms import Compose, RandCropByLabelClassesd

from monai_llmboost.data import (
    CropPatchd,
    CropScand,
    LabelledScanDataset,
    LoadLabelMapd,
    LoadScansd,
    RandAffineBatchd,
    RefusedScan,
    ResampleLabelsd,
    ResampleScand,
    ScanLoader,
    ScanReader,
)
from monai_llmboost.data.labelled.label_maps import label_values, read_label_map, read_on_grid
from monai_llmboost.data.labels import check_labels

SHAPE = (12, 14, 10)


def make_labels():
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 3:9, 2:8], labels[7:10, 4:8, 4:6] = 1, 4
    return labels


def write(path, array, affine=OBLIQUE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


def load(folder, label, values=(1, 4)):
    image = write(folder / "image.nii.gz", np.random.default_rng(0).random(SHAPE, np.float32))
    steps = [LoadScansd("image", ScanReader()), LoadLabelMapd("label", ScanReader(), values)]
    return Compose(steps)({"image": image, "label": label})


def refusal(folder, label, values=(1, 4)):
    with pytest.raises(RuntimeError) as caught:
        load(folder, label, values)
    cause = caught.value
    while not isinstance(cause, RefusedScan):
        cause = cause.__cause__
    assert cause.kind
    return str(cause)


def test_values_become_class_numbers_and_back(tmp_path):
    item = load(tmp_path, write(tmp_path / "label.nii.gz", make_labels()))
    assert item["label"].dtype == torch.uint8 and item["label"].unique().tolist() == [0, 1, 2]
    assert torch.equal(item["label"].affine, item["image"].affine)
    assert (label_values(item["label"][0].numpy(), [1, 4]) == make_labels()).all()
    assert label_values(np.array([2]), [1, 300]).dtype == np.uint16


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64])
def test_any_type_of_numbers_is_read_alike(tmp_path, dtype):
    item = load(tmp_path, write(tmp_path / "label.nii.gz", make_labels().astype(dtype)))
    assert (label_values(item["label"][0].numpy(), [1, 4]) == make_labels()).all()


def test_scaled_numbers_are_rounded(tmp_path):
    scaled = nibabel.Nifti1Image(make_labels().astype(np.float32) * (1 + 1e-5), OBLIQUE)
    nibabel.save(scaled, tmp_path / "label.nii.gz")
    assert load(tmp_path, str(tmp_path / "label.nii.gz"))["label"].unique().tolist() == [0, 1, 2]


def test_a_label_map_may_be_a_dicom_series(tmp_path):
    write_series(tmp_path / "label", make_labels().astype(np.int16), OBLIQUE, series="l", Modality="MR")
    labels, _ = read_label_map(str(tmp_path / "label"), ScanReader())
    assert sorted(np.unique(labels).tolist()) == [0, 1, 4]


def shifted(mm):
    affine = OBLIQUE.copy()
    affine[0, 3] += mm
    return affine


def mirrored():
    return OBLIQUE @ np.diag([-1, 1, 1, 1])


WRONG = {
    "values": (make_labels().clip(0, 3), OBLIQUE, r"value 3 \(24 voxels\), and the structures are 1, 4: correct it"),
    "fractions": (make_labels() * np.float32(0.5), OBLIQUE, "holds fractions such as 0.5, so it was interpolated"),
    "negative": (make_labels().astype(np.int16) - 1, OBLIQUE, "its values are from -1 to 3, and labels from 0"),
    "an image": (make_labels() * np.float32(70000), OBLIQUE, "labels from 0 to 65535: is it the label"),
    "another shape": (make_labels()[:-1], OBLIQUE, "has 11 x 14 x 10 voxels, and its image 12 x 14 x 10: is it the"),
    "another place": (make_labels(), shifted(1.0), "its header puts it up to 1 mm away from its image"),
    "mirrored": (make_labels(), mirrored(), r"away from its image \(axes .*, and the image's .*\): copy the image's"),
    "another spacing": (make_labels(), OBLIQUE @ np.diag([2, 2, 2, 1]), "away from its image: copy the image's affine"),
    "4-D": (make_labels()[..., None].repeat(2, 3), OBLIQUE, "expected one volume, got 2"),
    "not finite": (np.where(make_labels() > 0, np.nan, 0).astype(np.float32), OBLIQUE, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_label_map_is_refused(tmp_path, kind):
    array, affine, message = WRONG[kind]
    text = refusal(tmp_path, write(tmp_path / "label.nii.gz", array, affine))
    assert text.startswith("label map: ")
    assert re.search(message, text), text


@pytest.mark.parametrize(("order", "flips"), [((0, 1, 2), (1, -1, 1)), ((2, 0, 1), (-1, 1, -1))])
def test_axes_in_another_order_or_direction_are_turned(tmp_path, order, flips):
    """As the NIfTI label map of a DICOM series has them."""
    image = nibabel.Nifti1Image(make_labels(), OBLIQUE)
    turned = image.as_reoriented(np.array([*zip(np.argsort(order), flips)], dtype=float))
    assert turned.shape != SHAPE or not np.allclose(turned.affine, OBLIQUE)
    nibabel.save(turned, tmp_path / "label.nii.gz")
    item = load(tmp_path, str(tmp_path / "label.nii.gz"))
    assert (label_values(item["label"][0].numpy(), [1, 4]) == make_labels()).all()
    assert torch.equal(item["label"].affine, item["image"].affine)


def test_a_rounded_affine_is_the_same_grid(tmp_path):
    load(tmp_path, write(tmp_path / "label.nii.gz", make_labels(), np.round(OBLIQUE, 4)))


def test_a_file_that_is_missing_or_damaged_is_refused(tmp_path):
    assert refusal(tmp_path, str(tmp_path / "nowhere.nii.gz")).startswith("label map: ")
    path = tmp_path / "label.nii.gz"
    write(path, make_labels())
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(tmp_path, str(path)).startswith("label map: ")


def test_labels_stay_with_their_image_when_resampled():
    labels = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    labels[:, 4:12, 4:12, 4:12] = 1
    labels[:, 6:10, 6:10, 6:10] = 2
    affine = torch.tensor(OBLIQUE)
    for spacing in ([2.5, 2.5, 2.5], [0.5, 0.5, 0.5], [0.7, 1.4, 3.0]):
        images = [MetaTensor((labels == number).float(), affine=affine) for number in (1, 2)]
        item = {"image": torch.cat(images), "label": MetaTensor(labels, affine=affine)}
        image = ResampleScand("image", spacing)(item)["image"]
        found = ResampleLabelsd("label", spacing)(item)["label"]
        assert found.dtype == torch.uint8 and torch.allclose(found.affine, image.affine)
        shares = torch.cat([1 - image.sum(0, keepdim=True), image]).as_tensor()
        chosen = shares.gather(0, found.long().as_tensor())
        assert (chosen >= shares.max(0, keepdim=True).values - 1e-6).all()


def test_a_label_map_is_cropped_like_its_image():
    image = torch.zeros(1, 10, 10, 10)
    image[:, 3:6, 4:6, 2:4] = 1
    labels = torch.arange(1000).reshape(1, 10, 10, 10)
    item = CropScand(["image", "label"], "foreground", above=0.5)(
        {"image": MetaTensor(image), "label": MetaTensor(labels)}
    )
    assert torch.equal(item["label"].as_tensor(), labels[:, 3:6, 4:6, 2:4])
    assert torch.equal(item["label"].affine, item["image"].affine)


def test_a_label_map_moves_with_its_image_and_keeps_whole_numbers():
    labels = torch.zeros(4, 1, 16, 16, 16, dtype=torch.uint8)
    labels[:, :, 5:11, 4:12, 6:10] = 2
    augment = RandAffineBatchd(
        ["image", "label"], prob=1.0, rotate_range=[0.4] * 3, scale_range=[0.1] * 3, nearest="label"
    )
    augment.set_random_state(0)
    batch = augment({"image": labels.float(), "label": labels})
    assert batch["label"].dtype == torch.uint8 and batch["label"].unique().tolist() == [0, 2]
    inside = batch["image"] > 1
    overlap = 2 * (inside & (batch["label"] == 2)).sum() / (inside.sum() + (batch["label"] == 2).sum())
    assert overlap > 0.95
    with pytest.raises(ValueError, match="nearest has the key 'mask', which is none of the keys"):
        RandAffineBatchd("image", nearest="mask")


def make_items():
    items = []
    for number, sides in enumerate([(12, 9, 10), (8, 8, 8), (10, 14, 8)]):
        labels = torch.zeros(1, *sides, dtype=torch.uint8)
        labels[:, 2:4, 2:4, 2:4], labels[:, -3:, -3:, -3:] = 1, 2
        image = MetaTensor(labels.float(), affine=torch.eye(4) * (number + 1))
        items.append({"image": image, "label": MetaTensor(labels), "case": str(number)})
    return LabelledScanDataset(items, dict)


def test_patches_of_all_sizes_become_batches_and_repeat_by_seed():
    crop = RandCropByLabelClassesd(
        ["image", "label"], "label", [6, 6, 6], ratios=[0, 1, 0], num_classes=3, num_samples=1, warn=False
    )
    loader = ScanLoader(make_items(), 2, "cpu", crop=crop)
    runs = []
    for seed in (3, 3, 4):
        crop.set_random_state(seed)
        runs.append(list(loader))
    assert [tuple(batch["image"].shape) for batch in runs[0]] == [(2, 1, 6, 6, 6), (1, 1, 6, 6, 6)]
    for one, same in zip(runs[0], runs[1]):
        assert torch.equal(one["label"], same["label"]) and torch.equal(one["image"], one["label"].float())
        assert all((label == 1).any() for label in one["label"])
    (batch, *_) = ScanLoader(make_items(), 1, "cpu", keep_affine=True)
    assert torch.equal(batch["affine"], torch.eye(4, dtype=torch.float64)[None])


def test_label_maps_are_no_class_numbers():
    check_labels(ScanLoader(make_items(), 1, "cpu"), ["background", "a", "b"], "training")


@pytest.mark.parametrize("present", [(1,), (1, 3), (1, 2, 3), ()])
def test_the_share_of_patches_in_structures_holds_for_every_case(present):
    labels = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    for structure in present:
        labels[:, structure * 3 : structure * 3 + 2, 5, 5] = structure  # two voxels of 1728
    crop = CropPatchd("label", "label", [1, 1, 1], num_classes=4, foreground_share=0.6)
    crop.set_random_state(0)
    drawn = np.bincount([int(crop({"label": labels})[0]["label"]) for _ in range(600)], minlength=4) / 600
    for structure in (1, 2, 3):
        share = 0.6 / len(present) if structure in present else 0
        assert drawn[structure] == pytest.approx(share, abs=0.07 if share else 0)
    full = CropPatchd("label", "label", [1, 1, 1], num_classes=2, foreground_share=0.0)
    assert full({"label": torch.ones(1, 3, 3, 3)})[0]["label"].item() == 1, "a label map without background"


def test_the_volume_of_an_image_is_none_of_its_label_map(tmp_path):
    path = write(tmp_path / "label.nii.gz", make_labels())
    labels, _ = read_label_map(path, ScanReader(volume=1))
    assert np.array_equal(labels, read_label_map(path, ScanReader())[0])


def test_a_label_map_on_the_grid_of_its_image_is_read_whatever_its_axes_are_called(tmp_path):
    """At 45 degrees, rounding decides which axis is called the first one."""
    image, label = np.eye(4), np.eye(4)
    for affine, angle in ((image, np.pi / 4 - 5e-4), (label, np.pi / 4 + 5e-4)):
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    codes = [nibabel.aff2axcodes(affine) for affine in (image, label)]
    assert codes[0] != codes[1]
    path = write(tmp_path / "label.nii.gz", make_labels(), label)
    assert np.array_equal(
        read_on_grid(path, ScanReader(), make_labels().shape, image), read_label_map(path, ScanReader())[0]
    )
