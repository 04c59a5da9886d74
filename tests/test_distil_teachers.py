# SPDX-License-Identifier: Apache-2.0
"""Teachers that the command distil refuses: one in the student's folder, without its block, with options of several."""

import shutil

import pytest
from conftest import BUNDLE
from test_distil import STUDENT, TEACHER, command, few_cases, teacher  # noqa: F401  (fixtures)
from test_distil import pytestmark as marks

from monai_llmboost.bundle import copy_bundle, run_bundle
from monai_llmboost.engines.distillation import load_teacher
from monai_llmboost.llm.paths import EMBEDDED

pytestmark = marks


def test_the_folder_of_the_student(teacher, tmp_path):  # noqa: F811
    """Its weights would take the place of the teacher's."""
    mine = tmp_path / "mine"
    shutil.copytree(teacher, mine)
    weights = (mine / "models" / "model.pt").read_bytes()
    for folder in (mine, mine / "models"):
        with pytest.raises(
            ValueError, match=r"the teacher .* is in the folder of its student, .*: give --bundle another"
        ):
            command("distil", "--bundle", mine, *STUDENT, "--teacher", folder)
    copy_bundle(BUNDLE, tmp_path / "new")
    with pytest.raises(ValueError, match="is in the folder of its student"):
        command(
            "distil", "--bundle", tmp_path / "new", *STUDENT, "--teacher", teacher, "--ckpt_dir", teacher / "models"
        )
    assert (mine / "models" / "model.pt").read_bytes() == weights
    words = ("--teacher", mine, "--ckpt_dir", tmp_path / "elsewhere", "--epochs", 1)
    code, output = command("distil", "--bundle", mine, *STUDENT, *words)
    assert code == 0, output


def test_a_block_that_is_gone(tmp_path):
    """--block is that of a student: the advice is another one than for a network's own block."""
    block, folder = shutil.copy(EMBEDDED, tmp_path / "block.safetensors"), tmp_path / "taught"
    copy_bundle(BUNDLE, folder)
    run_bundle(str(folder), "train", "pretrained", False, epochs=1, batch_size=12, block=str(block), **TEACHER)
    block.unlink()
    copy_bundle(BUNDLE, tmp_path / "mine")
    message = (
        r"the block file of the teacher in .*taught is no longer at .*block\.safetensors: put it back there, or link"
    )
    with pytest.raises(FileNotFoundError, match=message):
        command("distil", "--bundle", tmp_path / "mine", *STUDENT, "--teacher", folder)
    with pytest.raises(FileNotFoundError, match=message):
        command("cost", "--network", *STUDENT[1:], "--teacher", folder, "--rounds", 1)


def test_a_cache_that_is_a_file(teacher, tmp_path):  # noqa: F811
    copy_bundle(BUNDLE, tmp_path / "mine")
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "folder"):
        words = ("--teacher", teacher, "--teacher_cache", place)
        with pytest.raises(
            ValueError, match=rf"teacher_cache {place} cannot be a folder, {file} is a file: give another"
        ):
            command("distil", "--bundle", tmp_path / "mine", *STUDENT, *words)


def test_options_of_several_teachers(teacher):  # noqa: F811
    """In bundles too, whose option the command does not see."""
    one = (["control", "lesion"], [1, 10, 10, 10])
    for folders in (teacher, [teacher]):
        with pytest.raises(ValueError, match="ensemble 'mean' is for several teachers: leave it out, or give more"):
            load_teacher(folders, *one, combine="mean")
    with pytest.raises(ValueError, match="unknown ensemble 'sum'; choose from concatenate, mean"):
        load_teacher([teacher] * 2, *one, combine="sum")
