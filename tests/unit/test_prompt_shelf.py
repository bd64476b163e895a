"""The registry beside a vLLM server, and the gate in front of it, without vLLM: angles, hashes, checks, requests."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from promptcomp.config import ConfigError
from promptcomp.exports.export import export
from promptcomp.language_model.cache import growing, passing, stored
from promptcomp.memory import KVCache, load_memory, save_memory
from promptcomp.prompts.artifact import weights_hash
from promptcomp.prompts.compressing import Compressor
from promptcomp.vllm_connector.gate import PromptGate
from promptcomp.vllm_connector.shelf import PromptShelf, Refused, frequencies, lm_hash, turned
from tests.prompt_runs import save_lm, save_run

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
    "partial": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "by_layer": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
    },
}
CASES = [
    *(("llama", rope) for rope in ("default", "linear", "llama3", "yarn")),
    *((kind, "default") for kind in ("qwen3", "qwen2", "mistral", "gemma", "gemma2", "olmo2")),
    ("gemma3_text", "by_layer"),
    ("phi3", "partial"),
]
SHIFT = 11


def tiny(kind: str, rope: str) -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
    sizes |= {"max_position_embeddings": 128}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    kinds = {"layer_types": ["sliding_attention", "full_attention"]} if rope == "by_layer" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **sizes, **ids, **kinds, rope_parameters=ROPES[rope])
        return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


@torch.no_grad()
def read(model: PreTrainedModel, ids: torch.Tensor, first: int, held: Any = ()) -> tuple[torch.Tensor, list[Any]]:
    """Logits of `ids` at positions from `first` on, behind held keys and values; and all that is held then."""
    cache = growing((keys.clone(), values.clone()) for keys, values in held)
    positions = torch.arange(first, first + ids.shape[1])[None]
    logits = model(ids, position_ids=positions, **passing(model, cache)).logits
    return logits, list(stored(cache))


@pytest.mark.parametrize(("kind", "rope"), CASES)
def test_turned_keys_are_those_of_other_positions(kind: str, rope: str) -> None:
    model = tiny(kind, rope)
    text, query = torch.tensor([[5, 9, 23, 7]]), torch.tensor([[11, 3, 40]])
    _, late = read(model, text, SHIFT)
    _, early = read(model, text, 0)
    angles = [frequencies(model.config, layer) for layer in range(2)]
    moved = [(turned(keys, -SHIFT, by), values) for (keys, values), by in zip(late, angles, strict=True)]
    for (keys, _), (wanted, _) in zip(moved, early, strict=True):
        torch.testing.assert_close(keys, wanted, rtol=0, atol=1e-6 * max(1.0, float(wanted.abs().max())))
    there, _ = read(model, query, SHIFT + 4, late)
    here, _ = read(model, query, 4, moved)
    torch.testing.assert_close(here, there, rtol=0, atol=2e-6 * float(there.abs().max()))
    wrong, _ = read(model, query, 4, late)
    assert (wrong - there).abs().max() > 1e-2


def test_what_does_not_turn_by_one_angle_is_refused() -> None:
    with pytest.raises(Refused, match="cannot be moved"):
        frequencies(AutoConfig.for_model("gpt2"), 0)
    config = AutoConfig.for_model("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(Refused, match="'dynamic'"):
        frequencies(config, 0)


class Place:
    """An LM, a run with LoRA adapters, a registry, and the configuration of a server."""

    def __init__(self, folder: Path) -> None:
        self.lm, self.registry, self.adapter = save_lm(folder / "lm", "llama"), folder / "registry", folder / "adapter"
        self.registry.mkdir()
        gist = {"name": "gist", "num_slots": 3}
        self.gist = Compressor.load(save_run(folder / "gist", self.lm, {**gist, "train": "none"}), device="cpu")
        self.prompt = self.gist.compress("cat bench => foo \nangry owl tea => bar \n")
        self.prompt.save(self.registry / "gist.safetensors")
        lora = save_run(folder / "lora", self.lm, {**gist, "train": "lora"})
        self.lora = Compressor.load(lora, device="cpu")
        self.lora.compress("cat bench => foo \n").save(self.registry / "lora.safetensors")
        export(lora, self.adapter, "peft")

    def server(self, **changes: Any) -> SimpleNamespace:
        """As much of vLLM's configuration as is read."""
        extra = {"registry": str(self.registry), **changes.pop("extra", {})}
        config = AutoConfig.from_pretrained(self.lm)
        found: dict[str, Any] = {"policy": "fail", "tp": 1, "kv": "auto", "window": None, "dtype": torch.float32}
        found |= {"length": 256, "config": config, "draft": None, **changes}
        model = SimpleNamespace(
            hf_text_config=found["config"],
            model=str(self.lm),
            max_model_len=found["length"],
            dtype=found["dtype"],
            get_sliding_window=lambda: found["window"],
            get_total_num_kv_heads=lambda: config.num_key_value_heads,
            get_head_size=lambda: config.hidden_size // config.num_attention_heads,
        )
        return SimpleNamespace(
            model_config=model,
            kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra, kv_load_failure_policy=found["policy"]),
            parallel_config=SimpleNamespace(tensor_parallel_size=found["tp"], pipeline_parallel_size=1),
            cache_config=SimpleNamespace(cache_dtype=found["kv"]),
            speculative_config=found["draft"],
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def test_hashes_are_those_of_the_package(place: Place, tmp_path: Path) -> None:
    """Of an LM in float32 and in bfloat16, with tied embeddings and in shards, and with adapters beside it."""
    assert lm_hash(str(place.lm), "float32") == weights_hash(place.gist.module.lm.hf) == place.prompt.info.lm_hash
    assert lm_hash(str(place.lm), "float32", str(place.adapter)) == weights_hash(place.lora.module.lm.hf)
    model = tiny("qwen3", "default")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size=8192)
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    assert lm_hash(str(tmp_path), "bfloat16") == weights_hash(model)
    assert lm_hash(str(tmp_path), "float32") == weights_hash(model.float())


def test_slots_stand_at_the_first_positions(place: Place) -> None:
    shelf = PromptShelf(place.server())
    found = shelf.find("gist")
    memory = place.prompt.memory
    assert isinstance(memory, KVCache)
    assert found.slots == 3 != int(memory.next_position[0])
    queries = torch.tensor([[5, 9, 12]])
    turned_layers = [(keys.transpose(0, 1)[None], values.transpose(0, 1)[None]) for keys, values in shelf.load(found)]
    here, _ = read(place.gist.module.lm.hf, queries, 3, turned_layers)
    there, _ = read(place.gist.module.lm.hf, queries, int(memory.next_position[0]), memory.layers)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-4)
    assert torch.equal(here.argmax(-1), there.argmax(-1))


def test_only_files_of_the_folder_are_found(place: Place, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(place.registry, registry)
    shutil.copy(registry / "gist.safetensors", tmp_path / "outside.safetensors")
    (registry / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (registry / "alias.safetensors").symlink_to("gist.safetensors")
    shelf = PromptShelf(place.server(extra={"registry": str(registry)}))
    assert shelf.find("alias").slots == 3
    for name in ("../outside", "/etc/passwd", ".hidden", "", "a\0b", "x" * 201, None, 3, ["gist"]):
        with pytest.raises(Refused, match="no name of a prompt") as caught:
            shelf.find(name)
        assert caught.value.status == 400
    for name in ("link", "nowhere", "x" * 200):
        with pytest.raises(Refused, match="no compressed prompt") as caught:
            shelf.find(name)
        assert caught.value.status == 404


def test_a_file_that_does_not_fit_is_refused(place: Place, tmp_path: Path) -> None:
    """The server's dtype, LM, adapter, length and positions; the file's kind and content."""
    memory, info = load_memory(place.registry / "gist.safetensors")
    assert isinstance(memory, KVCache)
    uneven = KVCache((memory.layers[0],), memory.mask, memory.next_position)
    save_memory(tmp_path / "uneven.safetensors", uneven, info)
    save_memory(tmp_path / "bare.safetensors", memory, {})
    save_memory(tmp_path / "list.safetensors", memory, {**info, "lm": []})
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("gist", "lora"):
        shutil.copy(place.registry / f"{name}.safetensors", tmp_path)
    gpt2 = AutoConfig.for_model("gpt2", num_hidden_layers=2)
    cases: list[tuple[dict[str, Any], str, str | None, str]] = [
        ({}, "uneven", None, "layers, heads"),
        ({}, "bare", None, "decoder|no compressed prompt"),
        ({}, "list", None, "no compressed prompt"),
        ({}, "text", None, "no compressed prompt"),
        ({}, "empty", None, "no compressed prompt"),
        ({}, "lora", None, "no LoRA adapter"),
        ({}, "gist", str(place.adapter), "LoRA adapter adapter"),
        ({"dtype": torch.bfloat16}, "gist", None, "runs in bfloat16"),
        ({"length": 4}, "gist", None, "no room"),
        ({"config": gpt2}, "gist", None, "cannot be moved"),
        ({"extra": {"lm_hash": "other"}}, "gist", None, "other weights"),
    ]
    for changes, name, adapter, says in cases:
        extra = {"registry": str(tmp_path), **changes.get("extra", {})}
        shelf = PromptShelf(place.server(**{**changes, "extra": extra}))
        with pytest.raises(Refused, match=says) as caught:
            shelf.find(name, adapter)
        assert caught.value.status == 422
    assert PromptShelf(place.server()).find("lora", str(place.adapter)).slots == 3
    own = PromptShelf(place.server(extra={"lm_hash": place.lora.compress("cat").info.lm_hash}))
    assert own.find("lora").slots == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": "recompute"}, "kv_load_failure_policy"),
        ({"tp": 2}, "one worker"),
        ({"draft": object()}, "speculative"),
        ({"kv": "fp8"}, "kv-cache-dtype fp8"),
        ({"window": 64}, "max-model-len 64"),
        ({"extra": {"registry": "nowhere"}}, "no such folder"),
        ({"extra": {"regstry": "x"}}, "regstry"),
    ],
)
def test_a_server_that_cannot_use_prompts_does_not_start(place: Place, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PromptShelf(place.server(**changes))


def test_a_file_replaced_or_damaged_after_it_was_found_is_not_loaded(place: Place, tmp_path: Path) -> None:
    shelf = PromptShelf(place.server(extra={"registry": str(tmp_path)}))
    file = tmp_path / "gist.safetensors"
    place.prompt.save(file)
    found = shelf.find("gist")
    place.gist.compress("tiny owl => bar \n").save(file, force=True)
    with pytest.raises(ConfigError, match="replaced"):
        shelf.load(found)
    again = shelf.find("gist")
    assert again.sha256 != found.sha256
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="does not match its hash"):
        shelf.load(again)


class Behind:
    """Stands for vLLM's server: a word is its length, and completions are what was asked."""

    def __init__(self, config: Any) -> None:
        self.state = SimpleNamespace(vllm_config=config)
        self.tokenized: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        with pytest.raises(TimeoutError):  # until the client goes away there is nothing more
            await asyncio.wait_for(receive(), 0.01)
        headers = dict(scope["headers"])
        assert headers.get(b"content-length", b"0") == str(len(body)).encode()
        status, answer = 200, json.loads(body or b"{}")
        if headers.get(b"authorization") != b"good":
            status, answer = 401, {"error": "Unauthorized"}
        elif scope["path"] == "/v1/models":
            answer = {"data": [{"id": "lm", "root": "lm", "parent": None}]}
        elif scope["path"] == "/tokenize":
            self.tokenized.append(answer)
            answer = {"tokens": [len(word) for word in answer["prompt"].split()]}
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def asked(behind: Behind, body: Any, path: str = "/v1/completions", key: bytes = b"good") -> tuple[int, Any]:
    """What comes back through the gate."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [content[:7], content[7:]]
    sent: list[Any] = []

    async def receive() -> Any:
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", key), (b"content-length", str(len(content)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "app": behind}
    asyncio.run(PromptGate(behind)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_the_gate_writes_requests_out(place: Place) -> None:
    behind = Behind(place.server())
    body = {"model": "lm", "prompt": "a bb", "kv_transfer_params": {"promptcomp": "gist"}}
    status, found = asked(behind, body)
    info = place.prompt.info
    template = [len(word) for word in info.query.replace("{input}", "a bb").split()]
    assert (status, found["prompt"]) == (200, [0, 0, 0, *template])
    assert found["stop_token_ids"] == list(info.stop_ids)
    assert behind.tokenized[0]["add_special_tokens"] is False
    assert asked(behind, {**body, "prompt": [7, 8]})[1]["prompt"] == [0, 0, 0, 7, 8]
    assert asked(behind, {**body, "prompt": [[7], [8]]})[1]["prompt"] == [[0, 0, 0, 7], [0, 0, 0, 8]]
    assert asked(behind, {**body, "stop_token_ids": [4]})[1]["stop_token_ids"] == [4]
    chat = {"model": "lm", "kv_transfer_params": {"promptcomp": "gist"}}
    turn = {"role": "user", "content": [{"type": "text", "text": "a bb"}]}
    _, found = asked(behind, {**chat, "messages": [turn]}, "/v1/chat/completions")
    assert found["kv_transfer_params"]["prompt_token_ids"] == [0, 0, 0, *template]
    plain = b'{"prompt": "promptcomp"}'
    assert asked(behind, plain) == (200, json.loads(plain))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"kv_transfer_params": {"promptcomp": "nowhere"}}, 404),
        ({"kv_transfer_params": {"promptcomp": "lora"}}, 422),
        ({"kv_transfer_params": {"promptcomp": "../gist"}}, 400),
        ({"prompt": []}, 400),
        ({"prompt": {"a": 1}}, 400),
        ({"prompt": [[1, "a"]]}, 400),
        ({"echo": True}, 400),
        ({"prompt_logprobs": 1}, 400),
    ],
)
def test_the_gate_refuses(place: Place, change: dict[str, Any], status: int) -> None:
    body = {"model": "lm", "prompt": "a", "kv_transfer_params": {"promptcomp": "gist"}, **change}
    found, answer = asked(Behind(place.server()), body)
    assert (found, answer["error"]["code"]) == (status, status)
    assert asked(Behind(place.server()), body, key=b"bad")[0] == 401


def test_the_gate_refuses_chats_of_several_turns(place: Place) -> None:
    body = {"model": "lm", "kv_transfer_params": {"promptcomp": "gist"}}
    for messages in (None, [], ["a"], [{"role": "system", "content": "a"}], [{"role": "user", "content": "a"}] * 2):
        assert asked(Behind(place.server()), {**body, "messages": messages}, "/v1/chat/completions")[0] == 400
