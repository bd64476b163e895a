"""Words, labels and sentence templates of the toy world (see `promptcomp.toy.icl_world`)."""

from __future__ import annotations

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

NOUN_TEMPLATES: tuple[str, ...] = (
    "i met the {noun}",
    "the {noun} again",
    "we like {noun}",
    "about {noun} today",
    "my {noun} is here",
    "{noun} of course",
    "this is {noun}",
    "they talk about {noun}",
    "{noun}",
    "news on {noun}",
)
ADJECTIVE_TEMPLATES: tuple[str, ...] = (
    "i feel {adjective}",
    "it was {adjective}",
    "a {adjective} thing",
    "so {adjective} today",
    "that looks {adjective}",
    "{adjective} again",
    "they are very {adjective}",
    "{adjective}",
    "quite {adjective} i think",
)
TWO_SLOT_TEMPLATES: tuple[str, ...] = (
    "the {adjective} {noun}",
    "a very {adjective} {noun}",
    "{noun} was {adjective}",
    "my {noun} is {adjective} today",
    "{adjective} and {noun}",
)

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
