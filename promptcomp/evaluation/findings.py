"""What a run has found, in plain words: a sentence for each split, as honest for failures as for success."""

from __future__ import annotations

from promptcomp.evaluation.formatting import METRIC_TITLES, value_text
from promptcomp.evaluation.predictions import LOWER_IS_BETTER, ROWS
from promptcomp.evaluation.results import Results, SplitResult


def findings(results: Results) -> list[str]:
    """A sentence for each split; the first that tells what was kept says in how many positions."""
    where = _positions(results)
    found = []
    for name, split in results.splits.items():
        if not split.not_finite.keys() & {*ROWS}:
            sentence, keeps = _sentence(results, name, split)
            found.append(f"{sentence}{where if keeps else ''}.")
            where = "" if keeps else where
        if split.not_finite:
            found.append(f"{not_finite(results, name)}.")
    return found


def not_finite(results: Results, name: str) -> str:
    """What is said of a split on which the loss of some rows is no number, without a full stop."""
    split, kind = results.splits[name], results.context_kind
    words = {"method": results.title or results.method, "no_prompt": f"no {kind}", "full_prompt": f"the full {kind}"}
    words |= {row: rival.title for row, rival in split.rivals.items()}
    rows = ", ".join(f"{words.get(row, row)} in {count} of {split.count}" for row, count in split.not_finite.items())
    return (
        f"On {name} the loss is NaN or infinite ({rows} examples), so no metric of such a row means anything: its "
        "weights hold such numbers (promptcomp checkpoint verify), or they overflow in 16 bits (lm.dtype=float32)"
    )


def abouts(results: Results) -> list[str]:
    """What the splits are, a line for each whose data says it."""
    return [f"{name}: {split.about}" for name, split in results.splits.items() if split.about]


def _sentence(results: Results, name: str, split: SplitResult) -> tuple[str, bool]:
    """A sentence without its full stop, and whether it tells of quality that was kept."""
    title, whole = results.title or results.method, results.context_words or f"the full {results.context_kind}"
    add = "adds" if whole.startswith(("the full prompt", "1 ")) else "add"
    score = f"{METRIC_TITLES.get(split.metric, split.metric)} {value_text(split.method, split.method_ci)}"
    low, high = split.retained_ci or (split.retained, split.retained)
    if split.method is None or {"no_prompt", "full_prompt"} - split.rows.keys():
        return f"{title}: {score} on {name}, without bounds to hold it against", False
    if results.is_bound:
        values = f"{value_text(split.full_prompt, None)} with {whole}, {value_text(split.no_prompt, None)} without"
        said = "too close for anything to be kept" if split.no_headroom else "the gap is what can be kept of it"
        return f"{METRIC_TITLES.get(split.metric, split.metric)} on {name}: {values}; {said}", False
    # A method that trains the LM and compresses nothing.
    if not results.size.memory_slots or results.size.compression == 1:
        return f"{title}: {score} on {name}; it compresses nothing, so there is nothing to keep", False
    if split.no_headroom or split.retained is None or low is None or high is None:
        gain = "" if split.headroom is None else f" ({split.headroom:+.3f})"
        return f"On {name} {whole} {add} too little{gain} to say what {title} keeps of it", False
    ends = "" if split.retained_ci is None else f" [{low:.0%}, {high:.0%}]"
    share = f"{split.retained:.0%}{ends}"
    of = f"of what {whole} {add}"
    if high < 0:
        best = ", lower is better" if split.metric in LOWER_IS_BETTER else ""
        none = f"{value_text(split.no_prompt, None)} without{best}"
        return f"On {name} {title} is worse than no {results.context_kind} at all: {score}, {none}", False
    if low <= 0:
        why = "and there is no interval" if split.retained_ci is None else "and the interval includes 0"
        return f"{title} is not shown to keep anything {of} on {name}: {share}, {why}", False
    if low > 1:
        return f"{title} does better than the full {results.context_kind} on {name}: {share} {of}", True
    return f"{title} keeps {share} {of} on {name}", True


def _positions(results: Results) -> str:
    ratio = results.size.compression
    if not ratio:  # a context without demonstrations takes no position
        return ""
    if ratio <= 1:
        return f", and takes {1 / ratio:.1f} times the positions" if ratio < 1 else ", in as many positions"
    return f", in 1/{ratio:.0f} of the positions" if ratio >= 1.5 else f", in {1 / ratio:.0%} of the positions"
