# SPDX-License-Identifier: Apache-2.0
"""A small bundle that shares no key value with those of the package: own data, three classes, two channels, no cube."""

import json

from conftest import ROOT

SHAPE = (2, 8, 12, 4)
CLASSES = ["left", "middle", "right"]
CASES = {"train": 30, "val": 12, "test": 15}
# The data set, a module of the bundle; its labels are only in its items.
RODS = f"""
import numpy as np
from monai.data import Dataset


class Rods(Dataset):
    def __init__(self, part, cases):
        random = np.random.default_rng(len(part))
        items = []
        for number in range(cases):
            label = number % 3
            image = random.normal(size={SHAPE}).astype(np.float32)
            image[:, :, 4 * label : 4 * label + 4] += 2
            of = {{"case": f"{{part}}-{{number}}", "patient": f"{{part}}-{{number // 2}}"}}
            items.append({{"image": image, "label": label, **of}})
        super().__init__(items)
"""
NETWORK = {
    "device": "cpu",
    "width": 12,
    "booster": None,
    "network_def": {
        "_target_": "monai_llmboost.networks.ViT3D", "in_channels": 2, "num_classes": 3, "class_names": CLASSES,
        "img_size": SHAPE[1:], "patch_size": [4, 4, 2], "hidden_size": "@width", "mlp_dim": 12, "num_layers": 1,
        "num_heads": 2, "booster": "@booster",
    },
    "network": "$@network_def.to(@device)",
}  # fmt: skip


def data(part):
    return {
        "dataset": {"_target_": "scripts.rods.Rods", "part": part, "cases": CASES[part]},
        "dataloader": {
            "_target_": "monai.data.DataLoader",
            "dataset": f"@{'train' if part == 'train' else 'validate'}#dataset",
            "batch_size": "@batch_size",
        },
    }


TRAIN = {
    **NETWORK,
    "bundle_root": ".", "output_dir": "$@bundle_root + '/out'", "ckpt_dir": "$@bundle_root + '/out'", "epochs": 2,
    "batch_size": 6, "learning_rate": 0.01, "resume": False, "seed": 0, "class_names": CLASSES,
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": "@learning_rate"},
    "train": {
        **data("train"),
        "trainer": {
            "_target_": "SupervisedTrainer", "max_epochs": "@epochs", "device": "$torch.device(@device)",
            "train_data_loader": "@train#dataloader", "network": "@network", "optimizer": "@optimizer",
            "loss_function": {"_target_": "torch.nn.CrossEntropyLoss"}, "train_handlers": "@train#handlers",
            "decollate": False,
        },
        "handlers": [
            {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": 1, "epoch_level": True},
            {
                "_target_": "monai_llmboost.engines.LearningCurves", "output_dir": "@output_dir",
                "evaluator": "@validate#evaluator", "optimizer": "@optimizer",
            },
            {
                "_target_": "monai_llmboost.engines.TrainingCheckpoints", "ckpt_dir": "@ckpt_dir",
                "save_dict": {"model": "@network", "optimizer": "@optimizer"}, "evaluator": "@validate#evaluator",
                "metric": "val_auc", "patience": 0, "resume": "@resume", "options": {"seed": "@seed"},
            },
        ],
    },
    "validate": {
        **data("val"),
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "$torch.device(@device)", "network": "@network",
            "val_data_loader": "@validate#dataloader", "val_handlers": "@validate#handlers", "decollate": False,
            "postprocessing": {"_target_": "Activationsd", "keys": "pred", "softmax": True, "dim": -1},
            "key_val_metric": {
                "val_auc": {
                    "_target_": "monai_llmboost.engines.MedMNISTAUC",
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
        },
        "handlers": [],
    },
    "initialize": ["$monai.utils.set_determinism(seed=@seed)"],
    "run": ["$@train#trainer.run()"],
}  # fmt: skip
EVALUATE = {
    "split": "test", "weights": "best",
    "validate#dataset": {"_target_": "scripts.rods.Rods", "part": "@split", "cases": f"${CASES}[@split]"},
    "validate#handlers": [
        {
            "_target_": "monai_llmboost.engines.TrainedCheckpointLoader", "ckpt_dir": "@ckpt_dir",
            "network": "@network", "weights": "@weights",
        },
        {
            "_target_": "monai_llmboost.engines.PredictionTable", "output_dir": "@output_dir", "network": "@network",
            "class_names": "@class_names",
        },
    ],
    "run": ["$@validate#evaluator.run()"],
}  # fmt: skip
ARMS = {
    "plain": {},
    "boosted": {
        "booster": {
            "_target_": "monai_llmboost.boosters.ResidualBooster", "channels": "@width",
            "block": {"_target_": "monai_llmboost.llm.random_block", "like": "random", "seed": "@seed"},
        }
    },
}  # fmt: skip


def write_other_bundle(folder):
    """Write the bundle into a folder that is not there yet."""
    package = ROOT / "bundles" / "medmnist3d_rllm_classification" / "configs" / "metadata.json"
    metadata = json.loads(package.read_text())
    metadata |= {"name": "Rods", "intended_use": "For tests of rods"}
    image = metadata["network_data_format"]["inputs"]["image"]
    image |= {"num_channels": SHAPE[0], "spatial_shape": SHAPE[1:]}
    configs = folder / "configs"
    (configs / "arms").mkdir(parents=True)
    (configs / "fast").mkdir()
    (folder / "scripts").mkdir()
    files = {
        "metadata": metadata, "train": TRAIN, "evaluate": EVALUATE, "fast/training": {"epochs": 1},
        "studies": {"presets": {"fast": {"weights": "last"}}},
        **{f"arms/{name}": overlay for name, overlay in ARMS.items()},
    }  # fmt: skip
    for name, content in files.items():
        (configs / f"{name}.json").write_text(json.dumps(content))
    (folder / "scripts" / "rods.py").write_text(RODS)
    (folder / "scripts" / "__init__.py").write_text("")
    return folder
