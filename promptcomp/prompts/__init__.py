"""Compressed prompts as files: made of a run and a text, checked, and put in front of queries."""

from promptcomp.prompts.artifact import PromptInfo, StoredPrompt, read_prompt, write_prompt
from promptcomp.prompts.compressing import Compression, Compressor, compress, open_compressor
from promptcomp.prompts.prompt import CompressedPrompt, load_prompt
from promptcomp.prompts.prompt_files import Answer, AnswerSettings, Reader
from promptcomp.prompts.sources import PromptSource, Query, read_queries, read_source, text_queries

__all__ = [
    "Answer",
    "AnswerSettings",
    "CompressedPrompt",
    "Compression",
    "Compressor",
    "PromptInfo",
    "PromptSource",
    "Query",
    "Reader",
    "StoredPrompt",
    "compress",
    "load_prompt",
    "open_compressor",
    "read_prompt",
    "read_queries",
    "read_source",
    "text_queries",
    "write_prompt",
]
