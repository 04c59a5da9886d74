# SPDX-License-Identifier: Apache-2.0
"""The contract with a bundle: the names of its files and of the options that our commands pass to it.

:mod:`monai_llmboost.bundle.job` has a typed accessor for each other key that our code reads;
:mod:`monai_llmboost.bundle.identity` lists the keys that do not affect what a run does.
"""

from __future__ import annotations

# Folders and files of a bundle.
CONFIGS, MODELS, EVAL = "configs", "models", "eval"
METADATA, DESCRIPTIONS, LOGGING = "metadata.json", "options.json", "logging.conf"
TRAIN_CONFIG, EVALUATE_CONFIG, INFERENCE_CONFIG = "train.json", "evaluate.json", "inference.json"
ARMS = "arms"  # folder of overlays, one for each arm
OVERLAYS = "overlays"  # folder next to the bundles of this package, with overlays for any bundle
NETWORKS = "networks"  # folder of overlays, one for each other network
MULTI_GPU = "multi_gpu_{}.json"  # overlays of a job on several processes
# In the folder of a preset, and in its folder for another network: overlays for every job, and for training only.
PRESET_NETWORK, PRESET_TRAINING = "network.json", "training.json"
PLAN = "plan.json"  # in a user's copy: overlay of training and evaluation, derived from the user's labelled scans
PLAN_DESCRIPTION = "_plan_"  # its key that is no config
STUDIES = "studies.json"  # the presets of the bundle, and the options that some data sets do not use
# The default folder of checkpoints, as our bundles' configs write it.
USUAL_CKPT_DIR = f"$@bundle_root + '/{MODELS}'"
# What a training writes next to model.pt, an overlay for evaluation and inference, and its key that is no config.
MODEL_RECORD, TRAINED = "model.json", "_trained_"
# Keys of the network, of its classes, of the steps from a scan to its input, and of the cases that are evaluated.
NETWORK_DEF, CLASS_NAMES, PREPROCESS, EVALUATED_CASES = "network_def", "class_names", "preprocess", "validate#dataset"
# Key of the values of structures in label maps.
LABEL_VALUES = "label_values"
# The step of a bundle's preprocessing that replaces volumes by frozen features, in bundles that have one.
EMBED = f"{PREPROCESS}#embed"
# Keys of the columns of a list that a prediction reads too.
INPUT_COLUMNS = ("image_column", "mask_column", "case_column")
# Keys of the items in a batch, as MONAI's transforms name them.
IMAGE, LABEL = "image", "label"


class Option:
    """Names of the options that our commands pass to a bundle or read from it."""

    DATASET, TRAINED_ON, SPLIT = "dataset", "trained_on", "split"
    DATA, LEAVE_OUT_CASES = "data", "leave_out"
    DATASET_DIR, DOWNLOAD = "dataset_dir", "download"
    FOLDS, FOLD, LABEL_FRACTION = "folds", "fold", "label_fraction"
    BUNDLE_ROOT, CKPT_DIR, OUTPUT_DIR, WEIGHTS = "bundle_root", "ckpt_dir", "output_dir", "weights"
    EPOCHS, BATCH_SIZE, LEARNING_RATE, VAL_INTERVAL = "epochs", "batch_size", "learning_rate", "val_interval"
    WARMUP_EPOCHS = "warmup_epochs"
    SEED, BLOCK, BLOCK_SEED, BLOCK_DTYPE, RESUME = "seed", "block", "block_seed", "block_dtype", "resume"
    ENCODER_WEIGHTS = "encoder_weights"  # file that a training starts from
    TEACHER = "teacher"  # folder of a trained network, or several, that a student is distilled from
    ENSEMBLE = "ensemble"  # how the features of several teachers are combined
    FEATURES_FROM = "features_from"  # file or folder of frozen features
    CACHE, CACHE_DIR = "cache", "cache_dir"  # where prepared scans are kept
    DEVICE, NUM_WORKERS = "device", "num_workers"
    PRECISION, COMPUTE_DTYPE = "precision", "compute_dtype"  # what is asked for, and the dtype that follows
    AMP = "amp"  # mixed precision of other bundles, and of copies of earlier ones
    # An expression for this key, or (only for our commands) the name of an overlay in `configs/networks`.
    NETWORK = "network"
    ONLY, COLUMNS, VIEW, REPORT, SALIENCY, DICOM = "only", "columns", "view", "report", "saliency", "dicom"
    SALT, FOLLOW_LINKS, OVERWRITE = "salt", "follow_links", "overwrite"
    # The folder that a search for scans skips; an argument of `cases`, set for a dry run, which writes nothing.
    LEAVE_OUT = "cases#leave_out"


# Options that contain text even if their default is computed or null. Other options contain text if their default is
# plain text or the bundle declares it.
TEXTS = (
    Option.BUNDLE_ROOT, Option.DATA, Option.DATASET, Option.DATASET_DIR, Option.OUTPUT_DIR, Option.CKPT_DIR,
    Option.BLOCK, Option.ENCODER_WEIGHTS, Option.TEACHER, Option.FEATURES_FROM, Option.SALT, Option.VIEW, Option.ONLY,
    Option.COLUMNS, "tracking", "tracking_uri", "experiment_name", "run_name",
)  # fmt: skip
# Text options that also accept several texts, written as a Python list: "['a', 'b']".
SEVERAL_TEXTS = (Option.TEACHER, Option.DATASET_DIR, Option.VIEW, Option.ONLY, Option.COLUMNS)
