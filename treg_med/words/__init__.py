"""What is said of a scan: the vocabulary, captions made of it and read back, and texts from headers.

The ground floor: it imports nothing of this package but its errors.
"""

from treg_med.words.captions import SliceAttributes, counterfactuals, read_attributes, render_caption
from treg_med.words.safe_text import check_text
from treg_med.words.scan_words import ScanWords, suggest_text, words_from_label
from treg_med.words.vocabulary import vocabulary

__all__ = [
    "ScanWords",
    "SliceAttributes",
    "check_text",
    "counterfactuals",
    "read_attributes",
    "render_caption",
    "suggest_text",
    "vocabulary",
    "words_from_label",
]
