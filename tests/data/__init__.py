"""Tests of readers, records, writer, phantoms and prompts."""
