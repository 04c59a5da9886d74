# SPDX-License-Identifier: Apache-2.0
"""Short texts that travel in a checkpoint as tensors, so that every loader carries them, ``weights_only`` too."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

DIGEST_BYTES = 32
# One size for every text, because loaders that skip tensors of another shape (MONAI's `copy_model_state`) would skip
# the comparison too.
TEXT_BYTES = 480


def encode(text: str) -> Tensor:
    """``text`` as its sha256 digest and its first bytes, uint8 (512,)."""
    raw = text.encode()
    return torch.frombuffer(
        bytearray(hashlib.sha256(raw).digest() + raw[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")), dtype=torch.uint8
    )


def decode(code: Tensor) -> str:
    """The readable part of what :func:`encode` made."""
    return bytes(code.cpu().tolist())[DIGEST_BYTES:].rstrip(b"\0").decode(errors="replace")


class Signature(nn.Module):
    """What a module is, in its checkpoint; a checkpoint that says something else is refused.

    Args:
        what: what the text names, for the message, such as "block".
        text: the text to agree on.
        remedy: what to do when it does not agree, for the message.
    """

    code: Tensor

    def __init__(self, what: str, text: str, remedy: str) -> None:
        super().__init__()
        self.what = what
        self.text = text
        self.remedy = remedy
        self.register_buffer("code", encode(text))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "code"
        if key not in state_dict:
            missing_keys.append(key)
        elif not torch.equal(state_dict[key].cpu(), encode(self.text)):
            error_msgs.append(
                f"the checkpoint was made with the {self.what} '{decode(state_dict[key])}', "
                f"but this network has the {self.what} '{self.text}': {self.remedy}"
            )
