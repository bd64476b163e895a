"""Option scoring with shared contexts and queries against a plain forward of every (context, query, option).

Run: python benchmarks/scoring.py [--threads 1] [--repeats 5]. Both sides run in this process on the same models and
texts, and the scores are checked to be equal to 1e-5 (relative to the tokens scored).
"""

from __future__ import annotations

import argparse

import torch
from common import make_batch, make_contexts, make_lm, median_seconds

from promptcomp.batch import EncodedContext
from promptcomp.language_model import LanguageModel


def plain_scores(lm: LanguageModel, contexts: list[EncodedContext]) -> torch.Tensor:
    """One row for each (context, query, option), in batches of a query's options, as MEND and MetaICL score."""
    scores = []
    for context in contexts:
        for query in context.queries:
            width = max(len(target.ids) for target in query.targets)
            targets = torch.tensor([target.ids + (0,) * (width - len(target.ids)) for target in query.targets])
            if lm.family == "decoder":
                prefix = torch.tensor([context.ids + query.ids]).expand(len(targets), -1)
                logits = lm.hf(torch.cat([prefix, targets], 1)).logits[:, prefix.shape[1] - 1 : -1]
            else:
                encoder = torch.tensor([context.ids]).expand(len(targets), -1)
                start = torch.tensor([(0, *query.ids)]).expand(len(targets), -1)
                decoder = torch.cat([start, targets], 1)
                logits = lm.hf(input_ids=encoder, decoder_input_ids=decoder).logits[:, start.shape[1] - 1 : -1]
            picked = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
            for row, target in zip(picked, query.targets, strict=True):
                scores.append(row[: len(target.ids)].sum())
    return torch.stack(scores)


def main() -> None:
    """Print a table of both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{'model':6} {'queries':>8} {'context':>8} {'plain ms':>9} {'shared ms':>10} {'faster':>7} {'difference':>11}"
    )
    for kind, queries, demonstration in [("gpt2", 1, 40), ("gpt2", 8, 40), ("t5", 1, 40), ("t5", 8, 40), ("toy", 8, 7)]:
        lm = make_lm(kind)
        tokens = (demonstration, demonstration, 3)
        contexts = make_contexts(lm, contexts=1, queries=queries, options=4, tokens=tokens)
        batch = make_batch(contexts)
        with torch.no_grad():
            shared = lm.score(lm.encode(batch.context), batch)
            plain = plain_scores(lm, contexts)
            difference = ((shared.sum_log_prob - plain).abs() / shared.num_tokens).max().item()
            slow = median_seconds(lambda c=contexts, m=lm: plain_scores(m, c), arguments.repeats)
            fast = median_seconds(lambda b=batch, m=lm: m.score(m.encode(b.context), b), arguments.repeats)
        row = f"{kind:6} {queries:8d} {16 * demonstration:8d} {slow * 1e3:9.1f} {fast * 1e3:10.1f}"
        print(f"{row} {slow / fast:6.1f}x {difference:11.1e}")
        if difference > 1e-5:
            raise SystemExit(f"the scores differ by {difference:.1e}, more than 1e-5")


if __name__ == "__main__":
    main()
