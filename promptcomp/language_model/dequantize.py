"""GGUF files made into Hugging Face folders: float32 weights, tokenizer, chat template."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from promptcomp.config import ConfigError
from promptcomp.errors import NoSpace, first_line, is_full
from promptcomp.files import flush, follow_umask, locked, write_atomic
from promptcomp.language_model.pretrained import ABOUT, check_reader, is_made


def make_folder(folder: Path, name: str, source: str, get: Callable[[Path], Path]) -> None:
    """Make the folder of a model if it is not there; a kill at any moment leaves nothing that is taken for one.

    Args:
        folder: in the cache.
        name: of the model, for its note.
        source: where the weights come from.
        get: gives the GGUF file, for which it may use the empty folder that it is given.

    Raises:
        ConfigError: the file is not what it should be, or its kind is not known.
        NoSpace: the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".{folder.name}.lock", lambda: None):
        if is_made(folder):
            return
        work = folder.parent / f".{folder.name}.tmp"  # of ours alone under the lock: what a kill has left goes
        shutil.rmtree(work, ignore_errors=True)
        try:
            (work / "new").mkdir(parents=True)
            (work / "got").mkdir()
            _dequantize(get(work / "got"), work / "new", name, source)
            shutil.rmtree(folder, ignore_errors=True)  # it is not whole
            (work / "new").rename(folder)
            flush(folder.parent)
        except Exception as error:
            if is_full(error) or "No space left" in str(error):
                raise NoSpace(f"{folder}: the disk is full, and {name} was not made; free space") from None
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _dequantize(file: Path, folder: Path, name: str, source: str) -> None:
    check_reader()
    from gguf import GGUFReader

    try:
        header = GGUFReader(file)
        sizes = Counter[str]()
        for tensor in header.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        place: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        tokenizer, config = AutoTokenizer.from_pretrained(**place), AutoConfig.from_pretrained(**place)
        if (field := header.get_field("tokenizer.ggml.pre")) is not None and field.contents() == "smollm":
            # every digit is a word of its own, which transformers does not read from the file
            words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(words))
        if hasattr(transformers, "GgufConfig"):  # newer releases keep some families as they are in the file
            place["quantization_config"] = transformers.GgufConfig(dequantize=True)
        factory: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        hf, found = factory.from_pretrained(**place, dtype=torch.float32, output_loading_info=True)
        if missing := sorted(found["missing_keys"]):
            raise ConfigError(f"{file}: lacks {len(missing)} tensors of the model ({', '.join(missing[:3])})")
    except Exception as error:
        if isinstance(error, ConfigError) or is_full(error):
            raise
        raise ConfigError(f"{file}: cannot be read as a GGUF file of a language model ({first_line(error)})") from None
    hf.hf_quantizer = None  # as an ordinary model; otherwise it is not saved
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kind = sizes.most_common(1)[0][0]
    bits = re.search(r"\d+", kind)
    note = f"the weights of {name} are {bits[0] if bits else 8}-bit GGUF values ({kind}) dequantised to float32"
    follow_umask(folder)
    for each in folder.iterdir():
        flush(each)
    about = {"name": name, "source": source, "note": note, "parameters": hf.num_parameters()}
    about["files"] = {each.name: each.stat().st_size for each in sorted(folder.iterdir())}
    write_atomic(folder / ABOUT, json.dumps(about, indent=2) + "\n")
