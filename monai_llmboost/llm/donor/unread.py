# SPDX-License-Identifier: Apache-2.0
"""Forms of a model that are not read: what they are by the names of their files, and what to do about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from monai_llmboost.llm.donor.weight_sets import is_weight_file

OTHER_FORM = "choose the safetensors form of this model"
EXPORT = "load it where it was trained, then save it with save_pretrained(..., safe_serialization=True)"
# Names of files, what they are, what to do; the first that fits counts.
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
    (r".*\.(ggml|ggjt|llamafile)|ggml-.*\.bin", "a file of llama.cpp from before GGUF", OTHER_FORM),
    (r".*\.nemo", "a NeMo archive", EXPORT),
    (r".*\.distcp|.*_model_states\.pt|.*_optim_states\.pt|pytorch_model_fsdp.*|zero_to_fp32\.py",
     "a checkpoint of distributed training", EXPORT),
    (r".*\.ckpt", "a training checkpoint (.ckpt)", EXPORT),
    (r"(?!training_args|optimizer|scheduler|rng_state|scaler|consolidated\.).*\.(pt|pth|bin|safetensors)",
     "weights under another name", "if it is the whole model, let its name be model.safetensors or pytorch_model.bin"),
)  # fmt: skip
# Keys of a config.json by which a model says that its weights are quantised.
QUANTISED = ("quantization_config", "quantization")


def check_not_quantised(config: Mapping[str, Any]) -> None:
    """Raise ValueError if a configuration says that the weights are quantised, with the method where it names one."""
    for key in QUANTISED:
        if said := config.get(key):
            method = said.get("quant_method") if isinstance(said, Mapping) else None
            bits = said.get("bits") or said.get("w_bit") if isinstance(said, Mapping) else None
            if key == "quantization":
                method = "MLX"
            if isinstance(said, Mapping) and (said.get("load_in_4bit") or said.get("load_in_8bit")):
                method, bits = method or "bitsandbytes", 4 if said.get("load_in_4bit") else 8
            words = [str(method)] if method else []
            words += [f"{bits} bits"] if bits else []
            detail = f" ({', '.join(words)})" if words else ""
            raise ValueError(
                f"expected plain weights, got a quantised model{detail}: choose the float version of this donor, or a "
                "GGUF file of it"
            )


def no_weights_error(names: Iterable[str] | None, donor: str, expected: str, advice: str) -> FileNotFoundError:
    """Return what to raise where a model has no weights that are read, with what it has instead, if it has anything."""
    for pattern, what, todo in FORMS:
        for name in sorted(names or ()):
            if not is_weight_file(name) and re.fullmatch(pattern, name, re.IGNORECASE):
                return FileNotFoundError(
                    f"expected {expected} in {donor}, found {what} ({name}), which is not read: {todo}"
                )
    return FileNotFoundError(f"expected {expected} in {donor}, found neither: {advice}")
