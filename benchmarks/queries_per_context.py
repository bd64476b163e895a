"""Training queries per second of MEND with 8 queries to a context against 1, in one run.

Run: python benchmarks/queries_per_context.py [--threads 1] [--repeats 5]. A step is forward, backward and update on
the same number of contexts; with 8 queries one distillation and one teacher pass over the demonstrations serve all.
"""

from __future__ import annotations

import argparse

import torch
from common import make_batch, make_contexts, make_lm, median_seconds

from promptcomp.batch import Batch
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.mend import Mend
from promptcomp.lightning_modules.mend_config import MendConfig


def step(module: Mend, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One training step without Lightning."""
    loss = torch.stack([term.weight * term.total / term.count for term in module.losses(batch)]).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    """Print a table of queries per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'model':6} {'context':>8} {'query':>6} {'slots':>6} {'1 query/s':>10} {'8 queries/s':>12} {'faster':>7}")
    for kind, contexts, demonstration, slots in [("gpt2", 1, 40, 100), ("toy", 8, 7, 16)]:
        lm = make_lm(kind)
        module = Mend(MendConfig(num_slots=slots), lm, OptimConfig(), max_steps=1, seed=0)
        module.configure_model()
        module.train()
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])
        rates = []
        for queries in (1, 8):
            tokens = (demonstration, demonstration, 3)
            batch = make_batch(make_contexts(lm, contexts=contexts, queries=queries, options=1, tokens=tokens))
            seconds = median_seconds(lambda b=batch, m=module, o=optimizer: step(m, o, b), arguments.repeats)
            rates.append(contexts * queries / seconds)
        row = f"{kind:6} {16 * demonstration:8d} {demonstration:6d} {slots:6d} {rates[0]:10.1f} {rates[1]:12.1f}"
        print(f"{row} {rates[1] / rates[0]:6.1f}x")


if __name__ == "__main__":
    main()
