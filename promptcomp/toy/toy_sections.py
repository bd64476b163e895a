"""Sections of the toy worlds, which need no files, and the options of their generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from promptcomp.config import Config
from promptcomp.datamodules.icl_config import ICLConfig, SeparatorName
from promptcomp.datamodules.instruction.instruction_config import CustomTemplate, InstructionConfig, TemplateName
from promptcomp.datamodules.rationale.rationale_config import Markers, RationaleConfig
from promptcomp.datamodules.sections import check_split
from promptcomp.datamodules.tasks import Item, LazySequence

TaskForm = Literal["classification", "natural", "lookup", "arbitrary"]
Group = Literal["nouns", "adjectives"]
World = Literal["cost", "reviews"]


class WorldConfig(Config):
    """Options of a generator whose item i of a split is a pure function of (config, split, i)."""

    splits: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    """What `num_train_*`, `num_dev_*` and `num_test_*` count."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name, most in self:
            _, is_most, what = name.partition("max_")
            least = getattr(self, f"min_{what}", most)
            if is_most and least > most:
                raise ValueError(f"min_{what} {least} is larger than {name} {most}")
        return self

    def items(self, split: str, make: Callable[[Any, str, int], Item]) -> Sequence[Item]:
        """The items of a split, built when they are indexed.

        Raises:
            ConfigError: there is no such split.
        """
        check_split(split, self.splits)
        part = split if split in ("train", "dev") else "test"
        return LazySequence(getattr(self, f"num_{part}_{self.unit}"), partial(make, self, split))


class ToyConfig(WorldConfig):
    """The toy world of in-context classification tasks."""

    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test", "test_hard")
    unit: ClassVar[str] = "tasks"

    name: Literal["toy_icl"] = "toy_icl"
    seed: int = 0
    """Chooses the tasks of every split; the partition of the class sets does not depend on it."""
    min_classes: int = Field(default=2, ge=2, le=4)
    """Fewest classes of a task."""
    max_classes: int = Field(default=4, ge=2, le=4)
    """Most classes of a task; the train split has its own maximum."""
    train_max_classes: int = Field(default=6, ge=2, le=6)
    """Most classes of a training task. Tasks of 5 and 6 classes may hold dev and test pairs; with 4, train class sets
    have train pairs only, and no held-out set is part of one (a harder setting)."""
    groups: tuple[Group, ...] = Field(default=("nouns", "adjectives"), min_length=1)
    """Groups of categories that tasks are made of; distractors come from the other group in any case. nouns: things,
    such as animals and tools; adjectives: properties."""
    train_groups: tuple[Group, ...] | None = None
    """The same for the train split alone; null: as `groups`. nouns: alone they ask for transfer to adjectives;
    adjectives: the reverse."""
    two_slot_share: float = Field(default=0.3, ge=0, le=1)
    """Share of sentences with a distractor from the other group; 1 is the hard setting."""
    train_forms: tuple[TaskForm, ...] = Field(default=("classification",), min_length=1)
    """Forms of the training tasks, drawn uniformly; the other splits hold classification tasks only. classification:
    sentences by the category of a word; natural: the same with the names of categories as labels; lookup: one or two
    single words have each label; arbitrary: two to six words have each label, whatever their categories."""
    held_out: tuple[str, ...] = ()
    """Categories that the test_hard split is made of in the place of its own six, while the other splits do without
    both: for choosing settings before test_hard is looked at. At least two of a group."""
    blended_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the training steps in which words are blended: the embedding of each is mixed with that of a word of
    another category of its group. Such a step has categories that no other has, so that what is learned holds for
    unseen ones, too."""
    num_train_tasks: int = Field(default=100_000, ge=1)
    """Tasks of the train split; they are generated when they are read, so many cost nothing."""
    num_dev_tasks: int = Field(default=64, ge=1)
    """Tasks of the dev split."""
    num_test_tasks: int = Field(default=128, ge=1)
    """Tasks of "test" and of "test_hard"."""
    num_demonstrations: int = Field(default=24, ge=2, le=100_000)
    """Rows in a task's demonstration pool, balanced over its classes."""
    num_queries: int = Field(default=16, ge=1, le=100_000)
    """Query rows of a task, balanced over its classes; none is a copy of a demonstration (except in lookup tasks)."""


class ToyInstructionsConfig(WorldConfig):
    """The toy instruction world."""

    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "seen", "unseen", "paraphrased")
    unit: ClassVar[str] = "rows"

    seed: int = 0
    """Chooses the rows of every split; what is held out does not depend on it."""
    phrasings: int | None = Field(default=None, ge=1)
    """Phrasings of every operation in training (null: all of the training part, 15-67)."""
    reworded_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the paraphrased split whose wording is new to training, not only recombined."""
    min_words: int = Field(default=3, ge=3, le=6)
    """Fewest words of an input."""
    max_words: int = Field(default=6, ge=3, le=6)
    """Most words of an input."""
    num_train_rows: int = Field(default=100_000, ge=1)
    """Rows are generated when they are read, so many cost nothing."""
    num_dev_rows: int = Field(default=256, ge=1)
    """Rows of the dev split."""
    num_test_rows: int = Field(default=512, ge=1)
    """Rows of "seen", of "unseen" and of "paraphrased"."""


class ToyRationaleConfig(Config):
    """The generator of the toy rationale worlds."""

    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")

    kind: World = "cost"
    """cost: the price of two goods (9 labels); reviews: whether most opinions are good (2 labels)."""
    seed: int = Field(default=0, ge=0)
    """Chooses the rows of every split and the teacher's mistakes; the hidden prices do not depend on it."""
    pool_rows: int = Field(default=800, ge=1, le=4000)
    """Rows of the train split (`train_count` and `train_share` choose among them)."""
    dev_rows: int = Field(default=1000, ge=1, le=1000)
    """Rows of the dev split."""
    test_rows: int = Field(default=1000, ge=1, le=1000)
    """Rows of the test split."""
    misread_share: float = Field(default=0.0, ge=0, le=1)
    """Probability that the teacher misreads one price (by one) or one opinion; its rationale and label follow."""
    swapped_share: float = Field(default=0.0, ge=0, le=1)
    """Share of rows that have the teacher's rationale and label of another question."""


class Generated:
    """A section whose rows a generator makes, which its `world` configures."""

    def source(self: Any) -> Any:
        """The generator."""
        return resolve_name(self.source_class)(self.world)

    @property
    def splits(self: Any) -> tuple[str, ...]:
        """Those of the world."""
        found: tuple[str, ...] = self.world.splits
        return found


class ToyICLData(Generated, ICLConfig):
    """The toy world of in-context classification tasks (no files needed)."""

    source_class: ClassVar[str] = "promptcomp.toy.icl_world:ToySource"
    split_words: ClassVar[Mapping[str, str]] = {
        **ICLConfig.split_words,
        "test": "new tasks: classes that training knows but never sets against each other",
        "test_hard": "new tasks of classes that training never sees at all",
    }
    name: Literal["toy_icl"] = "toy_icl"
    world: ToyConfig = ToyConfig()
    """The generator's own options."""
    num_demonstrations: int = Field(default=24, ge=0)
    separator: SeparatorName = "arrow"
    balance: Literal["examples", "tasks"] = "tasks"
    max_example_tokens: int = Field(default=32, ge=4)
    length_window: int = Field(default=1, ge=1, le=2**16)
    """1: the tasks are so alike in length that sorting them saves nothing."""

    @model_validator(mode="after")
    def _enough_demonstrations(self) -> ToyICLData:
        if self.num_demonstrations > self.world.num_demonstrations:
            raise ValueError(
                f"num_demonstrations {self.num_demonstrations} is more than a task of the world has: raise "
                f"world.num_demonstrations (now {self.world.num_demonstrations}) as well"
            )
        if self.balance != "tasks":
            raise ValueError("balance must be 'tasks': the tasks of the toy world are generated and never listed")
        return self


class ToyInstructionsData(Generated, InstructionConfig):
    """The toy world of list-editing instructions (no files needed)."""

    source_class: ClassVar[str] = "promptcomp.toy.instruction_world:ToyInstructionSource"
    split_words: ClassVar[Mapping[str, str]] = {
        **InstructionConfig.split_words,
        "seen": "instructions of training, with other inputs",
        "unseen": "combinations of operations that training never sees, in its wording",
        "paraphrased": "operations of training in wording that it never sees",
    }
    name: Literal["toy_instructions"] = "toy_instructions"
    world: ToyInstructionsConfig = ToyInstructionsConfig()
    """The generator's own options."""
    template: TemplateName | CustomTemplate = CustomTemplate(query=": {input} =>", empty_query=": =>")
    """Your own {context, query, empty_query, output}, by default that of the built-in base model, "instruction : input
    => output". alpaca_gist: "Instruction: ..." and then "Input: ... Output:"; chat: the tokenizer's chat template;
    plain: lines without added words."""
    max_context_tokens: int = Field(default=48, ge=1)
    max_query_tokens: int = Field(default=16, ge=1)
    max_target_tokens: int = Field(default=24, ge=1)
    metric: Literal["exact_match", "rougeL", "loss", "teacher_match", "teacher_rougeL", "kl"] = "exact_match"
    length_window: int = Field(default=1, ge=1, le=2**16)
    """1: the rows are so alike in length that sorting them saves nothing."""


class ToyRationaleData(Generated, RationaleConfig):
    """The toy worlds of rationales (no files needed)."""

    source_class: ClassVar[str] = "promptcomp.toy.rationale_world:ToyRationaleSource"
    name: Literal["toy_rationales"] = "toy_rationales"
    world: ToyRationaleConfig = ToyRationaleConfig()
    """The generator's own options."""
    markers: Markers = "suffix"
    input_end: str | None = ""
    target_space: bool | None = False
    train_count: int | None = Field(default=400, ge=1)
    max_label_tokens: int = Field(default=16, ge=2)
    max_rationale_tokens: int = Field(default=32, ge=2)
    length_window: int = Field(default=1, ge=1, le=2**16)
    """1: the rows are so alike in length that sorting them saves nothing."""
