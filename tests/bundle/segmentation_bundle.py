# SPDX-License-Identifier: Apache-2.0
"""A small bundle with the keys of MONAI's bundles of segmentation, which knows nothing of this package."""

import json

import nibabel as nib
import numpy as np

UNET = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16],
    "strides": [2, 2], "num_res_units": 1, "norm": "batch",
}  # fmt: skip
PLACES = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "/workspace/data",
    "device": "$torch.device('cpu')",
    "network_def": UNET,
    "network": "$@network_def.to(@device)",
}
OUTPUT = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2},
]


def reading(keys):
    return [{"_target_": name, "keys": keys} for name in ("LoadImaged", "EnsureChannelFirstd", "EnsureTyped")]


def data(part):
    return {
        "preprocessing": {"_target_": "Compose", "transforms": reading(["image", "label"])},
        "dataset": {"_target_": "Dataset", "data": "@cases", "transform": f"@{part}#preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": f"@{part}#dataset", "batch_size": 2},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": OUTPUT},
    }


TRAIN = {
    **PLACES,
    "ckpt_dir": "$@bundle_root + '/models'",
    "images": "$list(sorted(glob.glob(@dataset_dir + '/images/*.nii.gz')))",
    "labels": "$list(sorted(glob.glob(@dataset_dir + '/labels/*.nii.gz')))",
    "cases": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
    "epochs": 1,
    "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
    "optimizer": {"_target_": "Novograd", "params": "$@network.parameters()", "lr": 0.01},
    "train": {
        **data("train"),
        "handlers": [
            {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "epoch_level": True, "interval": 1}
        ],
        "trainer": {
            "_target_": "SupervisedTrainer", "max_epochs": "@epochs", "device": "@device",
            "train_data_loader": "@train#dataloader", "network": "@network", "loss_function": "@loss",
            "optimizer": "@optimizer", "inferer": "@train#inferer", "train_handlers": "@train#handlers",
        },
    },
    "validate": {
        **data("validate"),
        "handlers": [
            {
                "_target_": "CheckpointSaver", "save_dir": "@ckpt_dir", "save_dict": {"model": "@network"},
                "save_key_metric": True, "key_metric_filename": "model.pt",
            }
        ],
        "key_metric": {
            "val_mean_dice": {
                "_target_": "MeanDice", "include_background": False,
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            }
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@validate#dataloader",
            "network": "@network", "inferer": "@validate#inferer", "postprocessing": "@validate#postprocessing",
            "key_val_metric": "@validate#key_metric", "val_handlers": "@validate#handlers",
        },
    },
    "initialize": ["$monai.utils.set_determinism(seed=123)"],
    "run": ["$@train#trainer.run()"],
}  # fmt: skip
EVALUATE = {
    "validate#handlers": [
        {"_target_": "CheckpointLoader", "load_path": "$@ckpt_dir + '/model.pt'", "load_dict": {"model": "@network"}},
        {"_target_": "MetricsSaver", "save_dir": "@output_dir", "metrics": "*"},
    ],
    "run": ["$@validate#evaluator.run()"],
}
INFERENCE = {
    **PLACES,
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/images/*.nii.gz')))",
    "preprocessing": {"_target_": "Compose", "transforms": reading("image")},
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "separate_folder": False},
        ],
    },
    "evaluator": {
        "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
        "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
    },
    "checkpointloader": {
        "_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    },
    "initialize": ["$@checkpointloader(@evaluator)"],
    "run": ["$@evaluator.run()"],
}  # fmt: skip
METADATA = {
    "version": "0.1.0",
    "network_data_format": {"inputs": {"image": {"num_channels": 1, "spatial_shape": [16, 16, 16]}}},
}


def write_segmentation_bundle(folder):
    """Write the bundle, and its volumes next to it."""
    (folder / "bundle" / "configs").mkdir(parents=True)
    for name, content in {
        "train": TRAIN, "evaluate": EVALUATE, "inference": INFERENCE, "metadata": METADATA
    }.items():  # fmt: skip
        (folder / "bundle" / "configs" / f"{name}.json").write_text(json.dumps(content))
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / "data" / kind).mkdir(parents=True)
    for number in range(4):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:12, 4:12, number : number + 8] = 1
        volumes = {"images": random.normal(size=label.shape).astype(np.float32) + label, "labels": label}
        for kind, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "data" / kind / f"{number}.nii.gz")
    return folder / "bundle"
