"""Checkpoints as users handle them: looking inside, joining parts, exporting to Hugging Face and peft folders."""
