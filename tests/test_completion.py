# SPDX-License-Identifier: Apache-2.0
"""Completion of verbs and options in a shell, also of words that are no complete command yet."""

import os
import subprocess
import sys

import pytest

COMMAND = "import sys; sys.argv[0] = 'monai-llmboost'; from monai_llmboost.__main__ import main; main()"


def run(*words, **environment):
    command = [sys.executable, "-c", COMMAND, *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pre", "predict"),
        ("predict --in", "--input"),
        ("predict --input scans --hidden_size 64 --dr", "--dry-run"),
        ("predict --input --sali", "--saliency"),
        ("study --preset strong --ou", "--output"),
    ],
)
def test_completion(words, offered):
    asked = {"COMP_WORDS": f"monai-llmboost {words}", "COMP_CWORD": str(len(words.split()))}
    assert run(**asked, _MONAI_LLMBOOST_COMPLETE="complete_bash").split() == [offered]


def test_the_help_says_how_to_install_it():
    assert "--install-completion" in run("--help")
