# SPDX-License-Identifier: Apache-2.0
"""Weights of another network that has the same encoder: of a segmentation, or of a self-supervised training."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from monai_llmboost.artifacts.signature import KeptText
from monai_llmboost.artifacts.weights import load_weights
from monai_llmboost.networks.insertion import COUNTER, booster_names
from monai_llmboost.networks.wrappers import unwrap

logger = logging.getLogger("monai_llmboost")
# Names under which training scripts save the weights next to other things.
NESTS = ("state_dict", "model_state_dict", "model", "network", "net")
# A file that gives a smaller part of a network's tensors is not that of its encoder.
LEAST_PART = 0.5
# Parts of a name that wrappers and training scripts add before those of the encoder, such as `module.model.swinViT.`.
DEEPEST_PREFIX = 3
# Names of the same weights in earlier versions of MONAI's Swin transformer, in self-supervised checkpoints.
EARLIER_NAMES = ((re.compile(r"\.mlp\.fc([12])\."), r".mlp.linear\1."), (re.compile(r"(layers\d\.0)\.0\."), r"\1."))


def load_encoder_weights(network: nn.Module, file: str | Path) -> nn.Module:
    """Load the weights that a file shares with a network, in place, and return the network.

    The file may be of the whole segmentation network or of a self-supervised training: what it has besides the encoder
    is not used, and what it lacks, such as the head, keeps its random start. The log reports both. Prefixes, such as
    ``module.``, ``swinViT.`` or ``encoder.``, and nesting, such as ``{"state_dict": ...}``, are found. The first
    convolution of a network with several input channels takes the weights of one with a single channel, divided by the
    number of channels.

    Args:
        network: the network, with a booster or without.
        file: ``.safetensors``, or a file of ``torch.save`` with tensors, numbers and text only.

    Raises:
        ValueError: the file cannot be read, holds no weights, gives less than half of the network's tensors, or holds
            two sets of weights that fit.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> from monai.networks.nets import BasicUNet
        >>> plain, network = (BasicUNet(features=(8, 8, 8, 8, 16, 8), out_channels=n) for n in (2, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": plain.state_dict()}, f"{folder}/model.pt")
        ...     network = load_encoder_weights(network, f"{folder}/model.pt")
        >>> torch.equal(network.down_4.convs.conv_0.conv.weight, plain.down_4.convs.conv_0.conv.weight)
        True
    """
    network = unwrap(network)
    state = network.state_dict()
    texts = {f"{name}.code" for name, module in network.named_modules() if isinstance(module, KeptText)}
    left_out = texts | booster_names(network, state)
    own = {name: value for name, value in state.items() if name not in left_out and not name.endswith(COUNTER)}
    given = _tensors(_read(Path(file)), file)
    theirs, prefix = _matches(own, given, file)
    if len(theirs) < LEAST_PART * len(own):
        raise ValueError(_too_few(network, own, given, file, len(theirs)))
    found = {name: given[other] for name, other in theirs.items()}
    repeated = [name for name, value in found.items() if value.shape != own[name].shape]
    for name in repeated:
        count = own[name].shape[1]
        found[name] = found[name].repeat_interleave(count, dim=1) / count
    network.load_state_dict({**state, **found}, strict=True)
    kept = [name for name in own if name not in found]
    used = set(theirs.values())
    unused = [name for name in given if name not in used and not name.endswith(COUNTER)]
    logger.info(
        f"{file} gives {len(found)} of {len(own)} weights of {type(network).__name__}"
        + (f", from its {prefix}*" if prefix else "")
        + (f"; divided among {own[repeated[0]].shape[1]} input channels: {_some(repeated)}" if repeated else "")
        + (f"; random as before: {_some(kept)}" if kept else "")
        + (f"; not used: {_some(unused)}" if unused else "")
    )
    return network


def _read(file: Path) -> Any:
    if file.suffix != ".safetensors":
        return load_weights(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"cannot read {file}: {error}. Copy it again") from error


def _tensors(content: Any, file: str | Path) -> dict[str, Tensor]:
    """Return the tensors by name in a checkpoint, which may hold them next to an optimizer or an epoch."""
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        nested = [content[name] for name in NESTS if isinstance(content.get(name), Mapping)]
        if not nested:
            break
        content = nested[0]
    else:
        tensors = {}
    if not tensors:
        holds = _some(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{file} holds no weights by their names, but {holds}: give a state dict of a network")
    return tensors


def _matches(own: Mapping[str, Tensor], given: Mapping[str, Tensor], file: str | Path) -> tuple[dict[str, str], str]:
    """Return the names of a network's tensors in a file, by their names in the network, and their prefix in the file.

    Of all prefixes, those count with which most tensors have the same name and a fitting shape.
    """
    usual = {_usual_name(name): name for name in own}
    best: dict[str, str] = {}
    prefix, rivals = "", [""]
    inside = _prefixes(own, 1)
    for outer in _prefixes(given, DEEPEST_PREFIX):
        plain = {_usual_name(name.removeprefix(outer)): name for name in given if name.startswith(outer)}
        for inner in inside:
            found = {usual[inner + name]: theirs for name, theirs in plain.items() if inner + name in usual}
            found = {name: theirs for name, theirs in found.items() if _fits(own[name], given[theirs])}
            if len(found) > len(best):
                best, prefix, rivals = found, outer, [outer]
            elif found and len(found) == len(best) and set(found.values()).isdisjoint(best.values()):
                rivals.append(outer)
    if len(rivals) > 1 and len(best) >= LEAST_PART * len(own):
        raise ValueError(
            f"{file} holds {len(rivals)} sets of weights that fit, {_some(f'{one}*' for one in rivals)}: save the "
            "one to load in a file of its own"
        )
    return best, prefix


def _prefixes(names: Iterable[str], depth: int) -> list[str]:
    """Return the beginnings of names of up to ``depth`` parts, the shortest first: "", "module.", "module.encoder."."""
    parts = [name.split(".") for name in names]
    found = {".".join(part[:count]) + "." for part in parts for count in range(1, min(depth + 1, len(part)))}
    return sorted({"", *found}, key=lambda prefix: (len(prefix), prefix))


def _usual_name(name: str) -> str:
    for pattern, replacement in EARLIER_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _fits(own: Tensor, given: Tensor) -> bool:
    """Return whether shapes agree, or a convolution of one input channel can be divided among several."""
    if own.shape == given.shape:
        return True
    divides = own.dim() == given.dim() > 2 and given.shape[1] == 1 and own.shape[0] == given.shape[0]
    return divides and own.shape[2:] == given.shape[2:]


def _too_few(
    network: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], file: str | Path, count: int
) -> str:
    ends = {_usual_name(name): tensor for name, tensor in given.items()}
    other = next(_of_other_sizes(own, ends), "")
    return (
        f"{file} gives {count} of the {len(own)} weights of this {type(network).__name__}, which is too few: the file "
        f"has {_some(given)}, the network {_some(own)}{other}; give weights of such a network, or give "
        "the network the sizes of the file's"
    )


def _of_other_sizes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a text for each weight that has one's name but not its size; prefixes of either name do not count."""
    for name, value in own.items():
        plain = _usual_name(name)
        for theirs, tensor in given.items():
            same = f".{theirs}".endswith(f".{plain}") or f".{plain}".endswith(f".{theirs}")
            if same and not _fits(value, tensor):
                yield f"; of another size is {name}, {list(tensor.shape)} in the file and {list(value.shape)} here"


def _some(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
