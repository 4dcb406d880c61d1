"""The sentence that stands in every help text and beside every output."""

__all__ = ["RESEARCH_ONLY"]

RESEARCH_ONLY = "For research use only. Not a medical device; not for diagnosis or treatment."
