"""Tokenizer and text encoder."""

import random

import torch

from treg_med.training.phantoms import draw_attributes
from treg_med.training.text_encoder import build_tokenizer, train_text_encoder
from treg_med.words.captions import ATTRIBUTES, SliceAttributes, render_caption

KNOWN = [SliceAttributes(contrast=c, plane="axial", disease="glioma", lesions="many") for c in ATTRIBUTES["contrast"]]


def test_tokenizer_covers_the_grammar_without_unknowns() -> None:
    rng = random.Random(1)  # noqa: S311
    tokenizer = build_tokenizer([*KNOWN, *(draw_attributes(rng) for _ in range(50))], vocabulary_size=900)
    for _ in range(100):
        tokens = tokenizer(render_caption(draw_attributes(rng), rng)[0]).input_ids
        assert tokenizer.unk_token_id not in tokens and len(tokens) <= 48
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_encoder_learns_to_read_attributes() -> None:
    lines: list[str] = []
    _, model, accuracy = train_text_encoder(KNOWN, steps=25, batch=16, log=lines.append)
    assert accuracy["modality"] > 0.9 and len(accuracy) == len(ATTRIBUTES)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert "step 0" in lines[0]
