"""What the toy worlds are made of: words, labels, templates of sentences, phrasings of instructions, and tokenizers.

A pattern of an instruction such as "(drop|remove) (|only) the first (word|one)" stands for all its choices: here 2 x 2
x 2 phrasings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from typing import Any, Literal

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

_NOUNS = {
    "animals": "cat dog horse lion tiger bear wolf fox rabbit monkey elephant goat",
    "birds": "robin eagle owl crow swan duck parrot pigeon hawk heron finch gull",
    "fish": "trout salmon shark tuna eel cod carp pike herring bass perch ray",
    "fruits": "apple pear plum grape mango lemon peach banana cherry melon fig kiwi",
    "vegetables": "carrot onion potato cabbage bean pea leek garlic turnip spinach celery radish",
    "drinks": "tea coffee milk juice water beer wine cider cocoa soda rum lemonade",
    "clothes": "shirt coat hat scarf glove sock shoe dress jacket belt skirt boot",
    "tools": "hammer saw drill wrench axe shovel rake knife pliers chisel file ladder",
    "furniture": "chair table sofa bed desk shelf lamp stool bench cupboard drawer carpet",
    "vehicles": "car bus train plane boat bike truck tram ship van taxi ferry",
    "instruments": "piano violin guitar drum flute harp trumpet cello organ banjo horn oboe",
    "sports": "tennis football hockey rugby golf boxing chess cricket rowing skiing judo polo",
    "jobs": "doctor nurse teacher farmer baker lawyer pilot judge sailor painter driver cook",
    "countries": "france spain italy china japan india brazil egypt kenya peru chile norway",
    "body": "arm leg head hand foot eye ear nose knee elbow neck shoulder",
    "weather": "rain snow wind storm fog hail sunshine thunder frost cloud breeze drizzle",
}
_ADJECTIVES = {
    "joy": "happy glad cheerful merry joyful delighted pleased jolly content thrilled proud lucky",
    "anger": "angry furious cross annoyed mad bitter hostile irate grumpy outraged livid fierce",
    "fear": "scared afraid nervous anxious worried terrified timid alarmed uneasy tense shy frightened",
    "sadness": "sad gloomy lonely miserable unhappy tearful hurt sorry upset weary lost hopeless",
    "warm": "red orange yellow pink gold scarlet amber crimson coral rose peachy ruby",
    "cool": "blue green purple grey teal violet navy mint indigo azure silver lilac",
    "small": "tiny little dwarf short thin narrow slim brief minor mini slight low",
    "large": "huge giant great tall wide vast massive broad enormous major high grand",
}

NOUNS: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _NOUNS.items()}
ADJECTIVES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _ADJECTIVES.items()}
CATEGORIES: dict[str, tuple[str, ...]] = {**NOUNS, **ADJECTIVES}

_LABELS = """
foo bar dax wug zup blick fep toma alpha beta gamma delta one two three four five six yes no true false left right
north south east west b c d x y z w good bad up down out off hot cold open shut
"""
LABELS: tuple[str, ...] = tuple(_LABELS.split())


def _listed(text: str) -> tuple[str, ...]:
    """What stands between slashes."""
    return tuple(" ".join(part.split()) for part in text.split("/"))


NOUN_TEMPLATES: tuple[str, ...] = _listed("""
i met the {noun} / the {noun} again / we like {noun} / about {noun} today / my {noun} is here / {noun} of course /
this is {noun} / they talk about {noun} / {noun} / news on {noun}
""")
ADJECTIVE_TEMPLATES: tuple[str, ...] = _listed("""
i feel {adjective} / it was {adjective} / a {adjective} thing / so {adjective} today / that looks {adjective} /
{adjective} again / they are very {adjective} / {adjective} / quite {adjective} i think
""")
TWO_SLOT_TEMPLATES: tuple[str, ...] = _listed("""
the {adjective} {noun} / a very {adjective} {noun} / {noun} was {adjective} / my {noun} is {adjective} today /
{adjective} and {noun}
""")

ARROW = "=>"
NEWLINE = "\n"
NUM_SENTINELS = 32
SPECIALS: tuple[str, ...] = ("<pad>", "<bos>", "<eos>", "<unk>")
SENTINELS: tuple[str, ...] = tuple(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))


def vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids: specials, "=>", newline, the words sorted, sentinels."""
    templates = NOUN_TEMPLATES + ADJECTIVE_TEMPLATES + TWO_SLOT_TEMPLATES
    words = {word for template in templates for word in template.split() if "{" not in word}
    words.update(LABELS, CATEGORIES, *CATEGORIES.values())
    return (*SPECIALS, ARROW, NEWLINE, *sorted(words), *SENTINELS)


def word_tokenizer(
    tokens: Iterable[str], splitting: Any, *, framing: Any = None, max_length: int = 512, **options: Any
) -> PreTrainedTokenizerFast:
    """One token a word.

    Args:
        tokens: All tokens in the order of their ids, `SPECIALS` among them.
        splitting: How text becomes words, a pre-tokenizer.
        framing: What is put around a text, a post-processor; None: nothing.
        max_length: Maximum number of tokens of a text.
        options: Further arguments of PreTrainedTokenizerFast.
    """
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitting
    if framing is not None:
        tokenizer.post_processor = framing
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **options,
    )


Wording = Literal["train", "dev", "recombined", "ordinary", "reworded_dev", "reworded"]
"""Parts of the phrasings: "ordinary" is made of the three before it, and there are two parts of reworded ones."""

WORD_GROUPS: dict[str, tuple[str, ...]] = {
    **{name: CATEGORIES[name][:10] for name in ("animals", "fruits", "clothes", "tools", "vehicles", "jobs")},
    "colours": CATEGORIES["warm"][:5] + CATEGORIES["cool"][:5],
}
GROUP_OF: dict[str, str] = {word: name for name, words in WORD_GROUPS.items() for word in words}

_TAKE = "(take|give|keep|write|show|pick|choose|return) (|only|just)"
_DROP = "(drop|remove|delete|skip|omit|cut) (|only|just)"
_HAND_OVER = "(take|give|keep|write|show|pick|choose|return)"
_OUT = "(write|show|give|print)"
_THEM = "(them|these|the result|what is left)"
_FIRST, _LAST = (
    "the (first word|first one|opening word|word at the start)",
    "the (last word|last one|final word|word at the end)",
)
_FIRST_TWO = "the (first two words|first two|opening two words|two words at the start)"
_LAST_TWO = "the (last two words|last two|final two words|two words at the end)"
_EACH = "(each|every) (word|one)"

# operation -> ordinary patterns. Their phrasings are divided between training, dev and the paraphrased split.
_SELECTIONS: dict[str, tuple[str, ...]] = {
    "all": (f"{_HAND_OVER} (all the words|every word|each word|the whole list|all of it|the full list)",),
    "first": (f"{_TAKE} {_FIRST}",),
    "last": (f"{_TAKE} {_LAST}",),
    "first_two": (f"{_TAKE} {_FIRST_TWO}",),
    "last_two": (f"{_TAKE} {_LAST_TWO}",),
    "drop_first": (f"{_DROP} {_FIRST}",),
    "drop_last": (f"{_DROP} {_LAST}",),
}
_KEEP_GROUP = (f"{_TAKE} (the|all the|any) GROUP",)
_DROP_GROUP = (f"{_DROP} (the|all the|any) GROUP",)
_TRANSFORMS: dict[str, tuple[str, ...]] = {
    "same": (f"{_OUT} {_THEM} (|as is|unchanged)", f"copy {_THEM} (|as is|unchanged)"),
    "reverse": (
        "(reverse|flip|turn around) (them|the list|the order|the result)",
        f"{_OUT} {_THEM} (backwards|in reverse|in reverse order|from back to front)",
    ),
    "double": (f"(write|say|show|give|print) {_EACH} (twice|two times)", f"(double|repeat) {_EACH}"),
    "plus": (f"(put|add|write|place|set) a plus (after|behind) {_EACH}",),
    "minus": (f"(put|add|write|place|set) a minus (before|in front of) {_EACH}",),
    "done": (
        "(finish|end|close|stop) with done",
        "(say|write|put|add|print) done (at the end|last|as the last word|as the final word)",
    ),
    "okay": (
        "(begin|start|open) with okay",
        "(say|write|put|add|print) okay (at the start|first|as the first word|as the opening word)",
    ),
}
# operation -> reworded: other constructions, the first for dev, the rest for the paraphrased split.
_REWORDED: dict[str, str] = {
    "all": "work with the complete list / leave nothing out / use everything you see",
    "first": "find whatever the list begins with / we need the front word and nothing else / "
    "ignore everything behind the first",
    "last": "find whatever the list ends with / we need the rear word and nothing else / "
    "ignore everything ahead of the last",
    "first_two": "find both words that the list begins with / we need the front two and nothing else / "
    "ignore everything behind the second",
    "last_two": "find both words that the list ends with / we need the rear two and nothing else / "
    "ignore everything ahead of the last but one",
    "drop_first": "lose whatever the list begins with / go on without the front word / use everything behind the first",
    "drop_last": "lose whatever the list ends with / go on without the rear word / use everything ahead of the last",
    "keep": "find whatever is one of the GROUP / we need GROUP and nothing else / ignore everything but GROUP",
    "drop": "lose whatever is one of the GROUP / go on without GROUP / use everything but GROUP",
    "same": "change nothing about that / let it be like that / that will do",
    "reverse": "run through that the wrong way round / let the rear become the front / go from right to left",
    "double": "make two of every single item / let all items come in pairs / utter items a second time",
    "plus": "make a plus come next to every single item / let a plus follow all items / attach plus to items",
    "minus": "make a minus come ahead of every single item / let a minus lead all items in / prefix items by minus",
    "done": "make done the closing remark / let done come when all is over / conclude by done",
    "okay": "make okay the opening remark / let okay come ahead of all that / introduce by okay",
}
FRAMES: dict[Wording, tuple[str, ...]] = {
    "train": (
        "{selection} and {transform}",
        "{selection} then {transform}",
        "{selection} and then {transform}",
        "please {selection} and {transform}",
        "now {selection} and {transform} please",
        "for this list {selection} then {transform}",
    ),
    "reworded_dev": ("could you {selection} and also {transform}",),
    "reworded": ("{selection} and afterwards {transform}", "your task is this , {selection} , {transform}"),
}
SEPARATOR, ANSWER = ":", "=>"
ADDED_WORDS: tuple[str, ...] = ("plus", "minus", "done", "okay")
SELECTIONS: tuple[str, ...] = (
    *_SELECTIONS,
    *(f"keep {group}" for group in WORD_GROUPS),
    *(f"drop {group}" for group in WORD_GROUPS),
)
TRANSFORMS: tuple[str, ...] = tuple(_TRANSFORMS)


def expand(pattern: str) -> tuple[str, ...]:
    """All phrasings of a pattern, in the order of its choices."""
    pieces = [piece.split("|") for piece in re.split(r"[()]", pattern)]
    return tuple(" ".join("".join(choice).split()) for choice in product(*pieces))


@cache
def ordinary(operation: str) -> tuple[str, ...]:
    """All ordinary phrasings of a selection ("first", "keep animals" ...) or a transform."""
    kind, _, group = operation.partition(" ")
    patterns: Mapping[str, tuple[str, ...]] = {**_SELECTIONS, **_TRANSFORMS, "keep": _KEEP_GROUP, "drop": _DROP_GROUP}
    return tuple(phrase.replace("GROUP", group) for pattern in patterns[kind] for phrase in expand(pattern))


@cache
def reworded(operation: str) -> tuple[str, ...]:
    """All reworded phrasings of an operation; the first is for dev."""
    kind, _, group = operation.partition(" ")
    return tuple(phrase.replace("GROUP", group) for phrase in _listed(_REWORDED[kind]))


def instruction_vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids: specials, ":", "=>", the words sorted."""
    phrasings = [p for op in (*SELECTIONS, *TRANSFORMS) for p in (*ordinary(op), *reworded(op))]
    frames = [re.sub(r"\{\w+\}", "", frame) for part in FRAMES.values() for frame in part]
    words = {word for phrase in (*phrasings, *frames) for word in phrase.split()}
    words.update(ADDED_WORDS, WORD_GROUPS, GROUP_OF)
    return (*SPECIALS, SEPARATOR, ANSWER, *sorted(words - {SEPARATOR, ANSWER}))
