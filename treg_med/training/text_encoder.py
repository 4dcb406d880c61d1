"""A small CLIP text encoder with its own WordPiece tokenizer, pre-trained to read the attributes of a caption."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from treg_med.words.captions import ATTRIBUTES, SliceAttributes, render_caption, vocabulary
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["build_tokenizer", "train_text_encoder"]

MAX_TOKENS = 48


def build_tokenizer(
    attributes: Sequence[SliceAttributes], captions: Sequence[str] = (), seed: int = 0, vocabulary_size: int = 2048
) -> PreTrainedTokenizerFast:
    """Lower-case WordPiece tokenizer over the grammar and given captions, with every character as a fallback."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    rng = random.Random(seed)  # noqa: S311 - sentences, not secrets
    sentences = [render_caption(_mixed(attributes, rng), rng)[0] for _ in range(20000)]
    sentences += [*captions] + [" ".join(vocabulary())] * 50
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = [chr(c) for c in range(33, 127)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["[PAD]", "[UNK]", "[BOS]", "[EOS]"],
        initial_alphabet=characters,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]",
        special_tokens=[("[BOS]", tokenizer.token_to_id("[BOS]")), ("[EOS]", tokenizer.token_to_id("[EOS]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
        bos_token="[BOS]",  # noqa: S106
        eos_token="[EOS]",  # noqa: S106
        model_max_length=MAX_TOKENS,
    )


def _text_model(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=1024,
            projection_dim=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train_text_encoder(
    attributes: Sequence[SliceAttributes],
    captions: Sequence[str] = (),
    *,
    steps: int = 1500,
    batch: int = 32,
    rate: float = 5e-4,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> tuple[PreTrainedTokenizerFast, CLIPTextModel, dict[str, float]]:
    """Pre-train by one cross-entropy head per attribute; returns tokenizer, model and held-out accuracy.

    A purely joint training with the denoiser collapses on the attribute that dominates its loss; reading every
    attribute first keeps their words apart.

    Parameters
    ----------
    attributes : sequence of SliceAttributes
        Combinations that occur; half of the sentences mix the attributes freely.
    captions : sequence of str
        Sentences beyond the grammar, for the tokenizer's vocabulary.
    steps, batch, rate, seed
        Of the training.
    log : callable
        Receives a line now and then.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)  # noqa: S311
    tokenizer = build_tokenizer(attributes, captions, seed)
    model = _text_model(tokenizer)
    heads = nn.ModuleDict({name: nn.Linear(256, len(options)) for name, options in ATTRIBUTES.items()})
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], rate, weight_decay=1e-2)
    known = sorted(set(attributes), key=repr)
    for step in range(steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50, (steps - step + 1) / (0.3 * steps))
        losses, _ = _head_losses(
            model, heads, tokenizer, [render_caption(_mixed(known, rng), rng) for _ in range(batch)]
        )
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        if step % 100 == 0:
            log(f"text encoder step {step}: " + " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
    held_out = random.Random(seed + 1)  # noqa: S311
    with torch.no_grad():
        _, accuracy = _head_losses(
            model.eval(),
            heads,
            tokenizer,
            [render_caption(held_out.choice(attributes), held_out) for _ in range(256)],
        )
    return tokenizer, model.eval(), accuracy


def _mixed(known: Sequence[SliceAttributes], rng: random.Random) -> SliceAttributes:
    """Attributes drawn independently of each other half of the time, so that no word stands in for another."""
    if rng.random() < 0.5:
        return rng.choice(known)
    drawn = {name: rng.choice(options) for name, options in ATTRIBUTES.items()}
    # A sentence that says everything at once would not fit into the tokens.
    for name in rng.sample(sorted(set(ATTRIBUTES) - {"modality"}), rng.randint(2, 8)):
        drawn[name] = UNKNOWN
    return SliceAttributes(**drawn, age=rng.choice((0, 0, rng.randint(1, 95))))


def _head_losses(
    model: CLIPTextModel,
    heads: nn.ModuleDict,
    tokenizer: PreTrainedTokenizerFast,
    rendered: list[tuple[str, SliceAttributes]],
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    tokens = tokenizer(
        [text for text, _ in rendered],
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    states = model(tokens.input_ids).last_hidden_state
    weight = tokens.attention_mask[..., None].float()
    pooled = (states * weight).sum(1) / weight.sum(1)
    classes = torch.tensor([said.classes() for _, said in rendered])
    losses, accuracy = {}, {}
    for column, name in enumerate(ATTRIBUTES):
        logits = heads[name](pooled)
        losses[name] = functional.cross_entropy(logits, classes[:, column])
        accuracy[name] = float((logits.argmax(1) == classes[:, column]).float().mean())
    return losses, accuracy
