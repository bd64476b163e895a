"""Requests a second of a vLLM server behind a whole prompt, the same in its prefix cache, and an exported prompt.

    python benchmarks/vllm_requests.py URL EXPORT PROMPT.txt QUESTIONS.jsonl [--requests 24] [--tokens 32]

EXPORT is what `promptcomp export PROMPT --to vllm` has written. Each row takes other questions, so that only what they
have in common can be cached; "anew" gives every request a cache salt of its own. Answers go to EXPORT.answers.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def ask(url: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("export", type=Path)
    parser.add_argument("prompt", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--at-once", default="1,8")
    given = parser.parse_args()
    compressed = json.loads((given.export / "chat.json").read_text(encoding="utf-8")) | {"max_tokens": given.tokens}
    vectors, query = compressed["messages"][0]["content"]
    whole = {"type": "text", "text": given.prompt.read_text(encoding="utf-8").rstrip("\n")}
    questions = [json.loads(line)["input"] for line in given.questions.read_text(encoding="utf-8").splitlines()]
    rows: dict[str, list[str]] = {}
    for level in map(int, given.at_once.split(",")):
        for name, first in (("whole prompt, anew", whole), ("whole prompt, cached", whole), ("compressed", vectors)):

            def send(number: int, first: dict[str, str] = first, name: str = name) -> str:
                text = query["text"].replace("{input}", questions[number % len(questions)])
                parts = [first, {"type": "text", "text": text}]
                salt = {"cache_salt": f"{time.time_ns()}"} if name.endswith("anew") else {"cache_salt": name}
                body = compressed | {"messages": [{"role": "user", "content": parts}]} | salt
                return ask(f"{given.url}/v1/chat/completions", body)

            send(len(questions) - 1)
            start = time.perf_counter()
            with ThreadPoolExecutor(level) as pool:
                rows[name] = list(pool.map(send, range(given.requests)))
            seconds = time.perf_counter() - start
            print(f"{level} at a time, {name}: {given.requests / seconds:.2f} requests/s", flush=True)
    with given.export.with_suffix(".answers.jsonl").open("w", encoding="utf-8") as file:
        for number in range(given.requests):
            file.write(
                json.dumps({"input": questions[number], **{key: row[number] for key, row in rows.items()}}) + "\n"
            )
    same = [a == b for a, b in zip(rows["whole prompt, cached"], rows["compressed"], strict=True)]
    print(f"answers alike behind both: {sum(same)} of {len(same)}")


if __name__ == "__main__":
    main()
