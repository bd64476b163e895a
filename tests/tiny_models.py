"""Tiny random language models of every supported kind, made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from promptcomp.language_model import LanguageModel

VOCABULARY = 64
SLIDING_WINDOW = 7
MODELS = ("llama", "gpt2", "opt", "t5_query_in_decoder", "t5_query_in_encoder")


def tiny_hf(kind: str, seed: int = 0, width: int = 32) -> PreTrainedModel:
    """A random model: "llama", "mistral" (sliding window), "qwen3" (every other layer slides), "gpt2", "opt", "t5"
    (v1.0) or "t5v11"."""
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "llama":
            sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
            return LlamaForCausalLM(
                LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **sizes, **heads, **none)
            ).eval()
        if kind in ("mistral", "qwen3"):
            sizes = {
                "hidden_size": width,
                "intermediate_size": 2 * width,
                "num_hidden_layers": 2,
                "head_dim": width // 4,
            }
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
            shape = {"vocab_size": VOCABULARY, "max_position_embeddings": 128, **sizes, **heads, **none}
            if kind == "mistral":
                return MistralForCausalLM(MistralConfig(sliding_window=SLIDING_WINDOW, **shape)).eval()
            layers = ["sliding_attention", "full_attention"]
            slides = {"use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "layer_types": layers}
            return Qwen3ForCausalLM(Qwen3Config(**shape, **slides)).eval()
        if kind == "gpt2":
            config = GPT2Config(
                vocab_size=VOCABULARY, n_positions=128, n_embd=width, n_layer=2, n_head=4, initializer_range=0.1, **none
            )
            return GPT2LMHeadModel(config).eval()
        if kind == "opt":
            sizes = {"hidden_size": width, "ffn_dim": 2 * width, "num_hidden_layers": 2, "word_embed_proj_dim": width}
            return OPTForCausalLM(
                OPTConfig(
                    vocab_size=VOCABULARY, num_attention_heads=4, max_position_embeddings=128, init_std=0.1, **sizes
                )
            ).eval()
        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            decoder_start_token_id=0,
            feed_forward_proj="gated-gelu" if kind == "t5v11" else "relu",
        )
        return T5ForConditionalGeneration(config).eval()


def tiny_lm(name: str, seed: int = 0, width: int = 32) -> LanguageModel:
    """One of MODELS."""
    kind, _, layout = name.partition("_")
    chosen: Literal["query_in_decoder", "query_in_encoder"] = (
        "query_in_encoder" if layout == "query_in_encoder" else "query_in_decoder"
    )
    return LanguageModel.from_parts(tiny_hf(kind, seed, width), layout=chosen)


def naive_score(lm: LanguageModel, context: tuple[int, ...], query: tuple[int, ...], target: tuple[int, ...]) -> float:
    """log p(target) by one plain forward of the Hugging Face model, without batch, padding or cache."""
    log_probs = naive_log_probs(lm, context, query, target)
    return sum(float(log_probs[i, token]) for i, token in enumerate(target))


def naive_log_probs(
    lm: LanguageModel, context: tuple[int, ...], query: tuple[int, ...], target: tuple[int, ...]
) -> torch.Tensor:
    """The distributions [T, V] that predict the target, likewise."""
    with torch.no_grad():
        if lm.family == "decoder":
            sequence = context + query + target
            logits = lm.hf(torch.tensor([sequence])).logits[0]
        else:
            encoder = (context + query if lm.query_in_encoder else context) or (1,)
            sequence = (0, *target) if lm.query_in_encoder else (0, *query, *target)
            logits = lm.hf(input_ids=torch.tensor([encoder]), decoder_input_ids=torch.tensor([sequence])).logits[0]
    first = len(sequence) - len(target)
    return logits.log_softmax(-1)[first - 1 : -1]


def save_tokenizer(folder: Path, *, bos: bool = False, words: int = VOCABULARY) -> None:
    """A word-level tokenizer whose words are numbers."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", bos_token="w1" if bos else None
    ).save_pretrained(folder)


def save_word_classifier(folder: Path, texts: list[str]) -> None:
    """A BERT with random weights that tells for each token whether it is kept (label 1); it reads 14 tokens at once."""
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=100, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=pieces._tokenizer, model_max_length=1000)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    BertForTokenClassification(config).save_pretrained(folder)
