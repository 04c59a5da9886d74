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


def encode(text: str, compared: str | None = None) -> Tensor:
    """The sha256 digest of what is compared (``text`` itself by default) and the text's first bytes, uint8 (512,)."""
    digest = hashlib.sha256((text if compared is None else compared).encode()).digest()
    return torch.frombuffer(bytearray(digest + text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")), dtype=torch.uint8)


def decode(code: Tensor) -> str:
    """The readable part of what :func:`encode` made."""
    return bytes(code.cpu().tolist())[DIGEST_BYTES:].rstrip(b"\0").decode(errors="replace")


class Signature(nn.Module):
    """What a module is, in its checkpoint; a checkpoint that says something else is refused.

    Args:
        what: what the text names, for the message, such as "block".
        text: what it is, for the message.
        remedy: what to do when it does not agree, for the message.
        compared: what must agree; ``None`` is the text.
    """

    code: Tensor

    def __init__(self, what: str, text: str, remedy: str, compared: str | None = None) -> None:
        super().__init__()
        self.what = what
        self.text = text
        self.remedy = remedy
        self.digest = encode(text, compared)[:DIGEST_BYTES].tolist()
        self.register_buffer("code", encode(text, compared))

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
        elif state_dict[key][:DIGEST_BYTES].tolist() != self.digest:
            error_msgs.append(
                f"the checkpoint was made with the {self.what} '{decode(state_dict[key])}', "
                f"but this network has the {self.what} '{self.text}': {self.remedy}"
            )
