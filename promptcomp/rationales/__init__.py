"""Having a teacher explain examples: few-shot chain-of-thought prompts, completions on record, rows for training."""
