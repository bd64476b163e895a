"""Data with a teacher's rationales: sections, selection of rows, writing, the datamodule."""
