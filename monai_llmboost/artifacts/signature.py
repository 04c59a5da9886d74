# SPDX-License-Identifier: Apache-2.0
"""Short texts stored as tensors in a checkpoint, so that every loader keeps them, ``weights_only`` too."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import torch
from torch import Tensor, nn

DIGEST_BYTES, CRC_BYTES = 32, 4
# One size for every text, because loaders that skip tensors of another shape (MONAI's `copy_model_state`) would skip
# the comparison too.
CODE_BYTES = 512
TEXT_BYTES = CODE_BYTES - DIGEST_BYTES


def encode(text: str, compared: str | None = None, size: int = CODE_BYTES) -> Tensor:
    """Return a text with its checksum as float32 (size,), each number a byte: 0 to 255.

    The first 32 bytes are the sha256 digest of ``compared`` (by default ``text``), the others the first bytes of the
    text. Where the digest is not the digest of these bytes, the last four are their CRC-32. Numbers of this size
    survive a mean in float32 and a cast to float16 or bfloat16; earlier versions kept uint8, which no average does.
    """
    digest = hashlib.sha256((text if compared is None else compared).encode()).digest()
    room = size - DIGEST_BYTES
    kept = text.encode()[:room]
    if hashlib.sha256(kept).digest() != digest:
        kept = kept[: room - CRC_BYTES].ljust(room - CRC_BYTES, b"\0")
        kept += zlib.crc32(kept).to_bytes(CRC_BYTES, "big")
    return torch.tensor(list(digest + kept.ljust(room, b"\0")), dtype=torch.float32, device="cpu")


def decode(code: Tensor) -> str | None:
    """Return the text that :func:`encode` was given, or ``None`` if its checksum does not fit."""
    read = _bytes_of(code)
    if read is None:
        return None
    digest, kept = read[:DIGEST_BYTES], read[DIGEST_BYTES:]
    text = kept.rstrip(b"\0")
    if hashlib.sha256(text).digest() == digest:
        return text.decode(errors="replace")
    body, crc = kept[:-CRC_BYTES], kept[-CRC_BYTES:]
    return body.rstrip(b"\0").decode(errors="replace") if zlib.crc32(body).to_bytes(CRC_BYTES, "big") == crc else None


def _bytes_of(code: Tensor) -> bytes | None:
    """Return the bytes nearest to the numbers of a code, or ``None`` if they are not bytes."""
    numbers = torch.as_tensor(code).detach().cpu().double().round()
    fits = numbers.dim() == 1 and numbers.numel() > DIGEST_BYTES and bool(((numbers >= 0) & (numbers <= 255)).all())
    return bytes(numbers.to(torch.uint8).tolist()) if fits else None


class KeptText(nn.Module):
    """A text that a state dict holds as the tensor ``code``.

    It is not a buffer: averages over parameters and buffers (EMA, SWA) do not change it, nor do ``half()`` and
    ``to()``. Averages over state dicts of networks with the same text round to that text, see :func:`encode`.

    Args:
        text: the text; loading a checkpoint may replace it.
        compared: content of the digest; ``None`` for the text.
    """

    __jit_unused_properties__ = ["code"]  # noqa: RUF012  (torch's own)
    size = CODE_BYTES
    optional = False  # whether a checkpoint may lack it

    def __init__(self, text: str = "", compared: str | None = None) -> None:
        super().__init__()
        self.text = text
        self.compared = compared
        self.register_buffer("code_device", torch.empty(0), persistent=False)  # the device of the network around it

    @property
    def code(self) -> Tensor:
        """The text as a checkpoint holds it, float32 (size,)."""
        return encode(self.text, self.compared, self.size).to(self.get_buffer("code_device").device)

    @code.setter
    def code(self, code: Tensor) -> None:
        if not code.is_meta and (reason := self.read(code)):
            raise ValueError(reason)

    def frozen_names(self) -> list[str]:
        """Return the names of the buffers that are equal in all processes, because they are empty."""
        return ["code_device"]

    def read(self, code: Tensor) -> str:
        """Read the text of a checkpoint; return why it is refused, or an empty string."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "code"] = self.code

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
        if self.get_buffer("code_device").is_meta and key in state_dict:  # as the weights do with assign=True
            self.code_device = torch.empty(0, device=state_dict[key].device)
        if key not in state_dict:
            missing_keys += [] if self.optional else [key]
        elif reason := self.read(state_dict[key]):
            error_msgs.append(reason)


class Signature(KeptText):
    """The identity of a module in its checkpoint; a checkpoint with another identity is refused.

    Args:
        what: kind of the module for messages, such as "block".
        text: identity for messages.
        remedy: what to do when the identities differ, for messages.
        compared: content that must be equal; ``None`` for the text.
    """

    def __init__(self, what: str, text: str, remedy: str, compared: str | None = None) -> None:
        super().__init__(text, compared)
        self.what = what
        self.remedy = remedy
        self.digest = list(hashlib.sha256((text if compared is None else compared).encode()).digest())

    def read(self, code: Tensor) -> str:
        """Compare the identity in a checkpoint with that of the module."""
        if list((_bytes_of(code) or b"")[:DIGEST_BYTES]) == self.digest:
            return ""
        return (
            f"the checkpoint was made with the {self.what} '{_shown(code)}', "
            f"but this network has the {self.what} '{self.text}': {self.remedy}"
        )


def _shown(code: Tensor) -> str:
    """Return the text for a message, or a placeholder if its checksum does not fit."""
    text = decode(code)
    if text is None and torch.as_tensor(code).dtype == torch.uint8:  # of an earlier version, some without a checksum
        text = (_bytes_of(code) or b"")[DIGEST_BYTES:].rstrip(b"\0").decode(errors="replace")
    return text or "(unreadable: damaged, or an average over networks that differ in it)"
