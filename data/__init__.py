"""Files in, files out: readers, records, writer, phantoms and prompts."""

from __future__ import annotations

from treg_med.data.records import RESEARCH_ONLY, Geometry, Measurement, Reconstruction
from treg_med.data.sample_scans import SAMPLES, sample_path
from treg_med.data.sampling import MASK_KINDS
from treg_med.data.scan_formats import FileContent, open_scan, register_reader
from treg_med.data.simulate import simulate_scan
from treg_med.data.simulate_ct import is_hounsfield_volume, simulate_ct_scan
from treg_med.data.source import ScanHeader, ScanReader, SliceSource, validate_source
from treg_med.data.writer import VolumeWriter, is_complete, software_versions
from treg_med.words.safe_text import check_text
from treg_med.words.scan_words import ScanWords, suggest_text

__all__ = [
    "MASK_KINDS",
    "RESEARCH_ONLY",
    "SAMPLES",
    "FileContent",
    "Geometry",
    "Measurement",
    "Reconstruction",
    "ScanHeader",
    "ScanReader",
    "ScanWords",
    "SliceSource",
    "VolumeWriter",
    "check_text",
    "is_complete",
    "is_hounsfield_volume",
    "open_scan",
    "register_reader",
    "sample_path",
    "simulate_ct_scan",
    "simulate_scan",
    "software_versions",
    "suggest_text",
    "validate_source",
]
