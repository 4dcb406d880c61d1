"""Evaluation: metrics as named protocols, statistics by patient, and the pipeline that runs them."""
