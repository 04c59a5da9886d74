# SPDX-License-Identifier: Apache-2.0
"""Unsupported model formats: recognize them by their file names, and say what to use instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from monai_llmboost.llm.donor.weight_sets import is_weight_file

OTHER_FORM = "choose the safetensors form of this model"
EXPORT = "load it where it was trained, then save it with save_pretrained(..., safe_serialization=True)"
# Pattern of a file name, its format, advice; the first match counts.
FORMS: tuple[tuple[str, str, str], ...] = (
    (r"adapter_(model|config)\.(safetensors|bin|json)", "only an adapter (LoRA), not a model",
     "merge it into its base model (peft: merge_and_unload, then save_pretrained), or give the base model"),
    (r"(.*[_-])?(weights|model)(\.\d+)?\.npz", "MLX or NumPy weights", OTHER_FORM),
    (r"tf_model.*\.h5|.*\.(h5|keras)|saved_model\.pb|.*\.ckpt(\.(index|meta|data-.*))|.*\.tflite", "TensorFlow weights",
     OTHER_FORM),
    (r"flax_model.*\.msgpack|.*\.msgpack", "Flax weights", OTHER_FORM),
    (r".*\.onnx(_data.*|\.data)?", "an ONNX model", OTHER_FORM),
    (r"rust_model\.ot", "weights for Rust", OTHER_FORM),
    (r"openvino_.*\.(bin|xml)", "an OpenVINO model", OTHER_FORM),
    (r".*\.(mlmodel|mlpackage|mlmodelc)", "a Core ML model", OTHER_FORM),
    (r".*\.(engine|plan|trt)", "a TensorRT engine", OTHER_FORM),
    (r".*\.pdparams", "Paddle weights", OTHER_FORM),
    (r".*\.(ggml|ggjt|llamafile)|ggml-.*\.bin", "a llama.cpp file in a format before GGUF", OTHER_FORM),
    (r".*\.nemo", "a NeMo archive", EXPORT),
    (r".*\.distcp|.*_model_states\.pt|.*_optim_states\.pt|pytorch_model_fsdp.*|zero_to_fp32\.py",
     "a checkpoint of distributed training", EXPORT),
    (r".*\.ckpt", "a training checkpoint (.ckpt)", EXPORT),
    (r"(?!training_args|optimizer|scheduler|rng_state|scaler|consolidated\.).*\.(pt|pth|bin|safetensors)",
     "weights under another name", "if it is the whole model, rename it to model.safetensors or pytorch_model.bin"),
)  # fmt: skip
# Keys of a config.json with quantised weights.
QUANTISED = ("quantization_config", "quantization")


def check_not_quantised(config: Mapping[str, Any]) -> None:
    """Check that a configuration has no quantised weights; the ValueError names the method if known."""
    for key in QUANTISED:
        if value := config.get(key):
            settings = value if isinstance(value, Mapping) else {}
            method = "MLX" if key == "quantization" else settings.get("quant_method")
            bits = settings.get("bits") or settings.get("w_bit")
            if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
                method, bits = method or "bitsandbytes", 4 if settings.get("load_in_4bit") else 8
            known = ", ".join(([str(method)] if method else []) + ([f"{bits} bits"] if bits else []))
            raise ValueError(
                f"the model is quantised{known and f' ({known})'}: choose the float version of this donor, "
                "or a GGUF file of it"
            )


def no_weights_error(names: Iterable[str] | None, donor: str, expected: str, advice: str) -> FileNotFoundError:
    """Return the error for a model without supported weights; it names the unsupported format, if one is found."""
    for pattern, kind, remedy in FORMS:
        for name in sorted(names or ()):
            if not is_weight_file(name) and re.fullmatch(pattern, name, re.IGNORECASE):
                return FileNotFoundError(
                    f"{donor} has no {expected}, but {kind} ({name}), which is not supported: {remedy}"
                )
    return FileNotFoundError(f"{donor} has no {expected}: {advice}")
