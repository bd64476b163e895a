"""promptcomp: train prompt compressors, measure what they keep beside their bounds, ship the file."""

__version__ = "0.1.0"
