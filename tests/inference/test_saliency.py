# SPDX-License-Identifier: Apache-2.0
"""Maps lie where the voxels lie, and a case's files appear whole, below their folder and nowhere else."""

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    Resized,
    Spacingd,
)
from PIL import Image
from scipy import ndimage
from torch import nn

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.inference import SaliencyMaps, on_input_grid, relevance_maps
from monai_llmboost.inference.case import Case
from monai_llmboost.inference.case_folder import case_folder
from monai_llmboost.inference.maps.saliency import STEP
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D

SIZE, PATCH, GRID = (8, 12, 16), (4, 4, 8), (2, 3, 2)
NAMES = ["network", "before_booster", "after_booster"]


def build(boosted=True):
    torch.manual_seed(0)
    booster = ResidualBooster(12, random_block("random"), start="published") if boosted else None
    return ViT3D(2, 3, SIZE, PATCH, hidden_size=12, mlp_dim=20, num_layers=2, num_heads=3, booster=booster).eval()


@pytest.fixture
def image():
    return torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(1))


def oblique(spacing=(1.5, 2.0, 4.0), origin=(-30.0, 12.0, 5.0)):
    """Axes turned by 20 degrees about x and 10 about z, the first pointing left."""
    a, b = np.radians((20, 10))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-1, 1, 1]) * spacing
    affine[:3, 3] = origin
    return affine


SHEAR = np.array([[0.9, 0, 0, 3], [0, 1.1, 0.4, -7], [0, 0, 2.5, 11], [0, 0, 0, 1.0]])
AFFINES = {
    "straight": np.diag([2.0, 2, 2, 1]),
    "oblique": oblique(),
    "other order": oblique()[:, [2, 0, 1, 3]],
    "sheared": SHEAR,
}
LOAD = [LoadImaged("image", reader="NibabelReader"), EnsureChannelFirstd("image")]
CHAINS = {
    "resized": [Orientationd("image", axcodes="RAS", labels=None), Resized("image", SIZE, mode="trilinear")],
    "spaced": [
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=(2.0, 1.7, 3.0)),
        Resized("image", SIZE, mode="trilinear"),
    ],
    "cropped": [
        Orientationd("image", axcodes="RAS", labels=None),
        CenterSpatialCropd("image", (12, 9, 7)),
        Resized("image", SIZE, mode="trilinear"),
    ],
}


@pytest.fixture(params=list(itertools.product(AFFINES, CHAINS)), ids=" ".join)
def chain(request, tmp_path):
    """A volume of 21 x 18 x 12 voxels, read and brought to the network's size, and the chain that did it."""
    which, name = request.param
    path = tmp_path / "x.nii"
    volume = np.random.default_rng(0).random((21, 18, 12), dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, AFFINES[which]), path)
    transform = Compose([*LOAD, *CHAINS[name]])
    return transform({"image": path})["image"], transform


def here(relevance, image):
    meta = image.meta
    return on_input_grid(relevance, SIZE, image.affine, meta["original_affine"], meta["spatial_shape"])


def back_by_monai(values, image, transform):
    """A map over the network's voxels through the inverse of each transform."""
    invert = Invertd("image", transform, nearest_interp=False, to_tensor=True)
    carried = MetaTensor(torch.as_tensor(values)[None], meta=image.meta, applied_operations=image.applied_operations)
    return invert({"image": carried})["image"][0].numpy()


def test_a_smooth_map_over_voxels_comes_back_as_by_the_inverse_of_monai(chain):
    """MONAI interpolates once for each transform, so only what is linear inside comes back by both ways alike."""
    image, transform = chain
    i, j, k = np.mgrid[: SIZE[0], : SIZE[1], : SIZE[2]].astype(np.float32)
    values = 1 + i / 7 + j / 22 + k / 15
    ours, theirs = here(values, image), back_by_monai(values, image, transform)
    assert ours.shape == theirs.shape == (21, 18, 12)
    assert ours.dtype == np.float32
    inside = ours > 0
    to_grid = np.linalg.inv(image.affine.numpy()) @ image.meta["original_affine"]
    place = np.einsum("ab,b...->a...", to_grid[:3, :3], np.mgrid[:21, :18, :12]) + to_grid[:3, 3, None, None, None]
    last = np.reshape(SIZE, (3, 1, 1, 1)) - 1
    np.testing.assert_array_equal(inside, ((place > -0.501) & (place < last + 0.501)).all(axis=0))
    deep = ((place > 1) & (place < last - 1)).all(axis=0)  # MONAI extends edges again at each step
    assert deep.sum() > 200
    np.testing.assert_allclose(ours[deep], theirs[deep], atol=0.01)
    exact = 1 + place[0] / 7 + place[1] / 22 + place[2] / 15
    np.testing.assert_allclose(ours[deep], exact[deep], atol=1e-4)


def test_any_map_over_voxels_comes_back_as_by_the_inverse_of_monai_where_it_interpolates_once(tmp_path):
    for affine in (AFFINES["oblique"], AFFINES["other order"]):
        nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((21, 18, 12)), affine), tmp_path / "x.nii")
        transform = Compose([*LOAD, *CHAINS["resized"]])
        image = transform({"image": tmp_path / "x.nii"})["image"]
        values = np.random.default_rng(1).random(SIZE, dtype=np.float32)
        np.testing.assert_allclose(here(values, image), back_by_monai(values, image, transform), atol=2e-5)


def test_one_token_lands_at_its_place(chain):
    """Its centre of mass in mm is the token's own centre, to less than half a token, and its peak is inside of it."""
    image, _ = chain
    for token in ((1, 1, 1), (0, 2, 0)):
        relevance = torch.zeros(GRID)
        relevance[token] = 1
        values = here(relevance, image)
        centre = np.array(token) * PATCH + (np.array(PATCH) - 1) / 2
        found = np.linalg.inv(image.affine.numpy()) @ image.meta["original_affine"]
        peak = found @ (*np.unravel_index(values.argmax(), values.shape), 1)
        assert (np.abs(peak[:3] - centre) <= np.array(PATCH) / 2).all()
        weights = values.astype(np.float64)
        mass = [(weights * axis).sum() / weights.sum() for axis in np.mgrid[:21, :18, :12]]
        assert (np.abs((found @ (*mass, 1))[:3] - centre) < np.array(PATCH) / 2).all()


@pytest.mark.parametrize("angle", [0, 7])
def test_values_at_centres_are_exact_edges_are_kept_and_beyond_them_is_nothing(angle):
    """Tokens of 3 voxels: centres at 1, 4, 7 ... of a grid that is seen from another one, shifted and turned."""
    relevance = np.random.default_rng(0).random((3, 2, 2)).astype(np.float32) + 0.1
    a = np.radians(angle)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, :3] = [[2 * np.cos(a), -2 * np.sin(a), 0], [2 * np.sin(a), 2 * np.cos(a), 0], [0, 0, 2]]
    shift = np.eye(4)
    shift[:3, 3] = -2  # the volume begins two voxels before what the network saw
    values = on_input_grid(relevance, (9, 6, 6), affine, affine @ shift, (13, 10, 10))
    np.testing.assert_allclose(values[3:12:3, 3:9:3, 3:9:3], relevance, rtol=1e-5)
    assert values[2, 2, 2] == pytest.approx(relevance[0, 0, 0], rel=1e-5)
    assert values[10, 7, 7] == pytest.approx(relevance[2, 1, 1], rel=1e-5)
    assert not values[:2].any() and not values[11:].any() and not values[:, 8:].any() and not values[..., :2].any()
    between = on_input_grid(relevance, (9, 6, 6), affine, affine @ shift @ np.diag([1, 1, 0.5, 1]), (13, 10, 20))
    np.testing.assert_allclose(between[3, 3, 9], (relevance[0, 0, 0] + relevance[0, 0, 1]) / 2, rtol=1e-5)


def test_grids_at_any_angle():
    """A volume turned by 17 degrees about the middle of what the network saw, and larger than it."""
    relevance = np.random.default_rng(0).random((3, 2, 2)).astype(np.float32) + 0.1
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    turned[:3, 3] = (4, 2.5, 2.5) - turned[:3, :3] @ (8, 8, 8)
    values = on_input_grid(relevance, (9, 6, 6), np.eye(4), turned, (17, 17, 17))
    place = np.einsum("ab,b...->a...", turned[:3, :3], np.mgrid[:17, :17, :17]) + turned[:3, 3, None, None, None]
    last = np.reshape((8, 5, 5), (3, 1, 1, 1))
    np.testing.assert_array_equal(values > 0, ((place > -0.501) & (place < last + 0.501)).all(axis=0))
    assert values[8, 8, 8] == pytest.approx(relevance[1].mean(), rel=1e-5), "in the middle between four tokens"
    outside = on_input_grid(relevance, (9, 6, 6), np.eye(4), turned @ np.diag([1, 1, 0.5, 1]), (17, 17, 34))
    np.testing.assert_allclose(outside[:, :, ::2], values, atol=1e-6)
    # A turn too small to matter goes the other way to the same values.
    for angle, tolerance in ((1e-7, 1e-5), (1e-3, 2e-2)):
        turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turned[:3, 3] = 0
        found = on_input_grid(relevance, (9, 6, 6), np.eye(4), turned, (9, 6, 6))
        np.testing.assert_allclose(
            found, on_input_grid(relevance, (9, 6, 6), np.eye(4), np.eye(4), (9, 6, 6)), atol=tolerance
        )


def test_an_affine_that_is_missing_or_flat_is_refused():
    nan, flat = np.full((4, 4), np.nan), np.diag([1.0, 1, 0, 1])
    for affine, input_affine in ((nan, np.eye(4)), (np.eye(4), nan), (flat, np.eye(4)), (np.eye(4), flat)):
        with pytest.raises(ValueError, match=r"an affine cannot be inverted: .*keep the geometry of the volume"):
            on_input_grid(np.ones(GRID), SIZE, affine, input_affine, (4, 4, 4))


@pytest.fixture
def write(tmp_path, image):
    """Writes one case's files below tmp_path / "run" and gives their paths and its volume."""
    volume = np.random.default_rng(0).random((21, 18, 12), dtype=np.float32)

    def written(name="a/x.nii.gz", affine=AFFINES["oblique"], shown=volume, **changes):
        grid = affine @ np.diag([21 / 8, 18 / 12, 12 / 16, 1])
        maps = SaliencyMaps(build(**changes), tmp_path / "run", SIZE)
        geometry = {"affine": torch.as_tensor(grid), "input_affine": torch.as_tensor(affine)}
        case = Case(image[0], 0, input_shape=torch.tensor((21, 18, 12)), **geometry)
        return maps(name, case, 1, lambda: shown, "case x").files

    return written


@pytest.mark.parametrize("which", AFFINES)
def test_the_files_of_a_case(write, tmp_path, image, which):
    affine = AFFINES[which]
    files = write(affine=affine)
    assert files == {
        "network": "saliency/a/x.nii.gz/network.nii.gz",
        "before_booster": "saliency/a/x.nii.gz/before_booster.nii.gz",
        "after_booster": "saliency/a/x.nii.gz/after_booster.nii.gz",
        "preview": "saliency/a/x.nii.gz/preview.webp",
    }
    run = tmp_path / "run"
    assert {path.relative_to(run).as_posix() for path in run.rglob("*.*") if path.is_file()} == set(files.values())
    relevance = relevance_maps(build(), image, 1)
    for name in NAMES:
        loaded = nibabel.load(run / files[name])
        assert loaded.shape == (21, 18, 12)
        assert loaded.get_data_dtype() == np.float32
        np.testing.assert_allclose(loaded.affine, affine, atol=1e-5)
        assert loaded.header["sform_code"] == 2
        assert loaded.header["qform_code"] == (0 if which == "sheared" else 2)
        np.testing.assert_allclose(loaded.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-5)
        if which != "sheared":
            np.testing.assert_allclose(loaded.get_qform(), affine, atol=1e-4)
        assert loaded.header["descrip"].item().decode().endswith("class 1")
        grid = affine @ np.diag([21 / 8, 18 / 12, 12 / 16, 1])
        expected = on_input_grid(relevance[name], SIZE, grid, affine, (21, 18, 12))
        np.testing.assert_allclose(loaded.get_fdata(), expected, atol=STEP / 2 + 1e-6)
    with Image.open(run / files["preview"]) as picture:
        picture.load()
        assert picture.size[1] > 1000, "a row for the volume and one for each map"


def test_other_software_reads_the_same_geometry(write, tmp_path):
    path = tmp_path / "run" / write()["network"]
    theirs, ours = sitk.ReadImage(path), nibabel.load(path)
    np.testing.assert_allclose(sitk.GetArrayFromImage(theirs).T, ours.get_fdata(), atol=1e-6)
    for index in ((0, 0, 0), (20, 17, 11)):
        point = np.array(theirs.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)  # LPS to RAS
        np.testing.assert_allclose(point, (AFFINES["oblique"] @ (*index, 1))[:3], atol=1e-4)


def test_a_case_without_a_booster_has_one_map(write):
    assert list(write(boosted=False)) == ["network", "preview"]


def test_a_second_run_takes_the_place_of_the_first_and_gives_the_same_bytes(write, tmp_path):
    first = {name: (tmp_path / "run" / path).read_bytes() for name, path in write().items()}
    second = {name: (tmp_path / "run" / path).read_bytes() for name, path in write().items()}
    assert first == second


def test_a_case_that_fails_leaves_no_part_of_a_file(write, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"the volume has the shape \(3, 3, 3\), not \(21, 18, 12\): give the one"):
        write(shown=np.zeros((3, 3, 3)))

    def fail(image, path):
        path.write_bytes(b"part")
        raise OSError("no space left")

    monkeypatch.setattr(nibabel, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        write()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_no_name_leads_out_of_the_folder_and_no_two_names_to_one():
    names = [
        "a/b.nii", "../x", "..", ".", "", "/etc/x", "a//b", "a/./b", "a/../b", "a/b", "a\\..\\b", "C:\\x", "a:b", "a*b",
        "a?b", "x\udc80y", "x\x00y", "x\ny", "x" * 300, "x" * 299 + "y", "a/network.nii.gz", "a/preview.png", "a.",
        "a ", "Schädel 1/T1 (2).nii.gz", "翻.nii", "%2e%2e/x", "a_b", "~/x", "part#2", "a/.../b", " ", "-",
    ]  # fmt: skip
    folders = [case_folder(name) for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert not folder.is_absolute()
        assert not {"..", ".", ""} & set(folder.parts)
        assert folder.parts
        assert all(0 < len(part.encode()) < 200 for part in folder.parts)
        assert all(part.isprintable() and not set(part) & set('\\:*?"<>|#%') for part in folder.parts)
    kept = ["a/b.nii", "Schädel 1/T1 (2).nii.gz", "翻.nii", "a_b"]
    assert [case_folder(name).as_posix() for name in kept] == kept
    assert "network.nii.gz" not in case_folder("a/network.nii.gz").parts


def test_odd_names_are_written_below_the_folder(write, tmp_path):
    for name in ("../../out", "x" * 400 + "\udc80.nii"):
        for path in write(name, boosted=False).values():
            assert (tmp_path / "run" / path).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_real_volume_shows_the_map_where_it_lies(real_data, tmp_path):
    """A spine stored as P, S, R: a map made of the image itself, its brightest token, comes back on bright voxels."""
    path = real_data / "volumes" / "nifti" / "sct_spine_mr" / "t2" / "t2.nii.gz"
    transform = Compose([*LOAD, Orientationd("image", axcodes="RAS", labels=None), Resized("image", (24, 24, 24))])
    image = transform({"image": path})["image"]
    tokens = nn.functional.avg_pool3d(image.as_tensor()[None], 4)[0, 0]
    values = on_input_grid(
        tokens, (24, 24, 24), image.affine, image.meta["original_affine"], image.meta["spatial_shape"]
    )
    volume = nibabel.load(path).get_fdata()
    assert values.shape == volume.shape
    blurred = ndimage.gaussian_filter(volume, np.array(volume.shape) / 12)

    def likeness(found):
        return np.corrcoef(found.ravel(), blurred.ravel())[0, 1]

    assert likeness(values) > 0.95
    for axis in range(3):
        assert likeness(np.flip(values, axis)) < likeness(values) - 0.02, "the other way round"
