"""A trained run as files for others: a Hugging Face model, adapters and prompts for peft, tensors by name."""
