# SPDX-License-Identifier: Apache-2.0
"""Trained networks on the Hugging Face hub: upload and download of ``model.pt`` and its ``model.json``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.contract import CONFIGS, METADATA, MODEL_RECORD, MODELS
from monai_llmboost.bundle.find import bundle_of_record
from monai_llmboost.bundle.published import check_only_data, public_record
from monai_llmboost.bundle.trained import TrainedFolder, write_record
from monai_llmboost.engines.checkpoint_files import BEST
from monai_llmboost.inference.trained_network import TrainedNetwork, load_network

# What is uploaded of the bundle, next to the weights: its path there, and in the repository.
LICENCE, CARD = ("LICENSE", "LICENSE"), ("docs/README.md", "README.md")


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True, token: str | None = None) -> str:
    """Upload a trained network to the Hugging Face hub, and return the address of the commit.

    Uploaded are ``models/model.pt`` (no frozen weights of a language model), ``models/model.json`` without paths and
    the folder of the data, ``configs/metadata.json``, ``LICENSE`` and ``README.md``, the bundle's model card.

    Args:
        folder: a bundle's folder in which a network was trained.
        repo_id: the repository, such as ``"lab/adrenal"``; it is created if it does not exist.
        private: whether a new repository is private.
        token: a token of the hub; ``None`` uses that of ``hf auth login``.

    Raises:
        FileNotFoundError: the folder has no trained network, or no ``model.json``.
        ValueError: ``model.json`` has a path of this machine in a place that is not known.

    Example:
        >>> push_to_hub("mine", "lab/adrenal")  # doctest: +SKIP
        'https://huggingface.co/lab/adrenal/commit/...'
    """
    from huggingface_hub import HfApi  # an upload needs it, nothing else here

    folder = Path(folder)
    trained = TrainedFolder.read(folder / MODELS)
    weights = folder / MODELS / BEST
    if trained is None or not weights.is_file():
        raise FileNotFoundError(
            f"{folder} has no trained network with its {MODEL_RECORD}: give the folder of a bundle, and train in it"
        )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / MODELS).mkdir()
        (place / CONFIGS).mkdir()
        shutil.copy(weights, place / MODELS / BEST)
        write_record(place / MODELS / MODEL_RECORD, *public_record(trained))
        for own, there in ((f"{CONFIGS}/{METADATA}",) * 2, LICENCE, CARD):
            if (folder / own).is_file():
                shutil.copy(folder / own, place / there)
        hub = HfApi(token=token)
        hub.create_repo(repo_id, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=repo_id, folder_path=place, commit_message="Upload a trained network")
    return str(commit.commit_url)


def load_from_hub(repo_id: str, revision: str | None = None, **options: Any) -> TrainedNetwork:
    """Download a trained network that :func:`push_to_hub` uploaded, and load it.

    No code of the repository is run: the bundle of this package with the same name creates the network, and
    ``model.json`` only chooses its overlays and sets plain values.

    Args:
        repo_id: the repository, such as ``"lab/adrenal"``.
        revision: branch, tag or commit.
        options: as for :func:`load_network`, such as ``device`` or the ``block`` file of the training.

    Raises:
        ValueError: the network needs code that the bundle of this package does not have.
        FileNotFoundError: the repository has no trained network, its bundle is not in this package, or its block file
            is not given.

    Example:
        >>> load_from_hub("lab/adrenal").class_names  # doctest: +SKIP
        ['normal', 'hyperplasia']
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        file = Path(hf_hub_download(repo_id, f"{MODELS}/{MODEL_RECORD}", revision=revision))
        trained = TrainedFolder.of(file)
        check_only_data(trained, bundle_of_record(trained.about.get("bundle"), file.parent))
        commit = file.parents[1].name  # the hub's cache has a folder for each commit
        hf_hub_download(repo_id, f"{MODELS}/{BEST}", revision=commit)
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} has no trained network that push_to_hub uploaded: it lacks {MODELS}/{MODEL_RECORD} or "
            f"{MODELS}/{BEST}"
        ) from error
    return load_network(file.parent, **options)
