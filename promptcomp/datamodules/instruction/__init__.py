"""Instruction data: sections, templates, encoding, the datamodule."""
