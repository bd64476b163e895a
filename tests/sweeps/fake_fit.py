"""What a sweep needs of `promptcomp fit`, without torch: starts in milliseconds, can be told to fail.

FAKE_MODE: words MODE:SLOTS:SEED (* for any) with MODE raise, once (raise the first time), nan, memory, oom (dies like a
process that the kernel ends), config, disk, usr1, hang; FAKE_STEPS and FAKE_SECONDS: length.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

words = sys.argv[1:]
resume = words[0] == "--resume"
run = Path(words[1] if resume else words[3])
text = (run / "config.yaml" if resume else Path(words[1])).read_text(encoding="utf-8")
slots = int(re.search(r"num_slots: (\d+)", text).group(1)) if "num_slots" in text else 0
seed = int(re.search(r"^seed: (\d+)", text, re.MULTILINE).group(1))
method = re.search(r"^method:\n(?:  .*\n)*?  name: (\w+)", text, re.MULTILINE).group(1)
rate = float(re.search(r"^  lr: (\S+)", text, re.MULTILINE).group(1))
steps, seconds = int(os.environ.get("FAKE_STEPS", "4")), float(os.environ.get("FAKE_SECONDS", "0"))
modes = [
    mode
    for mode, want_slots, want_seed in (word.split(":") for word in os.environ.get("FAKE_MODE", "").split())
    if want_slots in ("*", str(slots)) and want_seed in ("*", str(seed))
]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))


def mark(name: str, line: str = "") -> None:
    """Add a line to a file beside the run."""
    with (run / name).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def end(message: str, code: int) -> None:
    """End as the program does."""
    print(f"error: {message}", flush=True)
    sys.exit(code)


if not resume:
    if run.exists():
        end(f"{run} is not empty", 2)
    (run / "checkpoints").mkdir(parents=True)
    (run / ".config.tmp").write_text(text, encoding="utf-8")
    (run / ".config.tmp").replace(run / "config.yaml")
lock = (run / "config.yaml").open("a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    mark("doubled.txt")
    end(f"{run} is in use by another process", 2)
mark("starts.txt", str(os.getpid()))
if (run / "results.json").exists():
    mark("repeated.txt")
first_time = len((run / "starts.txt").read_text().splitlines()) == 1
for mode in modes:
    if mode == "raise" or (mode == "once" and first_time):
        raise ValueError("something is wrong with <this> trial")
    if mode == "nan":
        end("the loss is not finite at step 1; lower optim.lr or set optim.clip_norm, then start a new run", 65)
    if mode == "memory":
        end("out of memory: CUDA out of memory", 71)
    if mode == "oom":
        sys.exit(137)
    if mode == "config":
        end("data.source: no such file", 2)
    if mode == "disk":
        end(f"cannot write {run}: No space left on device; finished work is kept", 74)
    if mode == "usr1" and first_time:
        sys.exit(75)
checkpoint = run / "checkpoints" / "last.ckpt"
begin = int(checkpoint.read_text()) if checkpoint.is_file() else 0
for step in range(begin, steps):
    if stop:
        checkpoint.write_text(str(step))
        sys.exit(130)
    time.sleep(seconds)
    header = "" if (run / "metrics.csv").is_file() else "step,train/loss,dev/accuracy\n"
    with (run / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write(f"{header}{step + 1},1.0,{slots / 10 + step / 100 + 10 * rate}\n")
    (run / ".last").write_text(str(step + 1))
    (run / ".last").replace(checkpoint)
while "hang" in modes and not stop:
    time.sleep(0.02)
if stop:
    sys.exit(130)
split = {"metric": "accuracy", "count": 4, "method": slots / 10, "full_prompt": 0.9, "no_prompt": 0.1}
split["retained"] = None if "novalue" in modes else slots / 10
tree = {
    "schema": 1, "method": method, "family": "decoder", "data": "toy_icl", "lm": "tiny", "seed": seed,
    "splits": {"test": split}, "size": {"memory_slots": float(slots)},
}  # fmt: skip
(run / "predictions.jsonl").write_text("")
(run / ".results.tmp").write_text(json.dumps(tree))
(run / ".results.tmp").replace(run / "results.json")
