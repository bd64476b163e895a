"""Recipes of pretraining: the model, the data with its curriculum, the optimiser. No torch is needed to read one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from promptcomp.config import Config, ConfigError, Decay
from promptcomp.files import is_file_name
from promptcomp.language_model.lm_config import PositionalStart

Layout = Literal["decoder_only", "query_in_encoder", "query_in_decoder"]
DocumentKind = Literal["repetition", "lookup", "natural", "words", "classification", "definition"]
Skill = Literal["lookup", "words", "classification"]
_Classes = Annotated[int, Field(ge=2, le=45)]  # as many labels as the world has
_Rows = Annotated[int, Field(ge=4)]  # of fewer, some documents have no answer that could be known


class StageConfig(Config):
    """One stage of a curriculum."""

    name: str
    """What the log calls it."""
    steps: int = Field(ge=1)
    """Steps at most."""
    lr_scale: tuple[NonNegativeFloat, NonNegativeFloat] = (1.0, 1.0)
    """Learning rate at the stage's start and end, relative to `optim.lr`; linear between."""


class Stage(StageConfig):
    """One stage of the curriculum."""

    mix: dict[DocumentKind, NonNegativeFloat]
    """Weights of the document kinds. repetition: random words, twice; lookup: single words and their labels; natural:
    sentences with the names of categories as labels; words: single words by category; classification: sentences by
    category; definition: what a label stands for, and then sentences."""
    rows: tuple[_Rows, _Rows]
    """Fewest and most labelled rows of a batch's documents."""
    classes: tuple[_Classes, _Classes]
    """Fewest and most classes of a task."""
    one_kind_per_batch: bool = False
    """True: a batch holds documents of one kind (repetition has lengths of its own)."""
    until: dict[Skill, float] = Field(default_factory=dict)
    """Leave the stage early once the skills, the accuracies on documents of these kinds, are above these values."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Stage:
        for name in ("rows", "classes"):
            fewest, most = getattr(self, name)
            if fewest > most:
                raise ValueError(f"{name}: the fewest, {fewest}, are more than the most, {most}")
        if not sum(self.mix.values()) > 0:
            raise ValueError("mix: no kind of document has a weight above 0")
        return self


class StagedCurriculum(Config):
    """What the curricula of both model families have in common."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    """The stages in their order."""
    two_slot_share: float = Field(default=0.3, ge=0, le=1)
    """Share of sentences with a distractor from the other group of categories."""
    other_token_weight: float = 0.1
    """Weight of the mean loss over tokens that cannot be known (words, first labels); known answers have 1."""
    skill_documents: int = Field(default=64, ge=1)
    """Documents behind each skill."""
    report_documents: int = Field(default=512, ge=1)
    """Documents behind each cell of the final report."""


class ToyCurriculum(StagedCurriculum):
    """Pretraining on the toy world."""

    name: Literal["toy_icl"] = "toy_icl"


class ToySeq2SeqCurriculum(StagedCurriculum):
    """Pretraining of an encoder-decoder LM on the toy world; a stage's `rows` are rows in the encoder."""

    name: Literal["toy_icl_seq2seq"] = "toy_icl_seq2seq"
    layout: Literal["query_in_decoder", "query_in_encoder"] = "query_in_decoder"
    """Which side reads the queries. query_in_decoder: the decoder; query_in_encoder: the encoder, behind the
    demonstrations."""
    num_queries: int = Field(default=8, ge=1, le=23)
    """Queries asked about each encoder pass; of those that the encoder reads a single one in half of the batches."""


class InstructionStage(StageConfig):
    """One stage of the curriculum."""

    repetition: float = Field(default=0.0, ge=0, le=1)
    """Share of the batches that hold repeated random words instead of instructions."""
    max_words: int = Field(default=6, ge=3, le=6)
    """Maximum number of words of an input."""


class InstructionCurriculum(Config):
    """Pretraining on the toy instruction world."""

    name: Literal["toy_instructions"] = "toy_instructions"
    layouts: tuple[Layout, ...] = Field(default=("decoder_only",), min_length=1)
    """How documents are read. decoder_only: by one LM; query_in_encoder and query_in_decoder: by an encoder-decoder
    with the query on this side; these two may take turns at random."""
    stages: tuple[InstructionStage, ...] = Field(min_length=1)
    """The stages in their order."""
    reworded_share: float = Field(default=0.3, ge=0, le=1)
    """Share of instructions in the wordings and frames that compressors are never trained on."""
    other_token_weight: float = Field(default=0.1, ge=0)
    """Weight of the mean loss over the tokens of instructions and inputs; answers have 1."""
    skill_rows: int = Field(default=256, ge=4)
    """Rows of dev behind the skills."""
    report_rows: int = Field(default=512, ge=1)
    """Rows of every split behind the final report."""

    @model_validator(mode="after")
    def _one_kind_of_model(self) -> InstructionCurriculum:
        if len({layout == "decoder_only" for layout in self.layouts}) > 1:
            raise ValueError("layouts: decoder_only goes with no other, which are read by another kind of model")
        return self


class RationaleCurriculum(Config):
    """Pretraining on the world of prices."""

    name: Literal["toy_rationales"] = "toy_rationales"
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    """The stages in their order."""
    report_rows: int = Field(default=512, ge=1)
    """Documents of each task behind the skills and the final report."""


class TextCorpus(Config):
    """Pretraining on real text."""

    name: Literal["text"] = "text"
    files: tuple[Path, ...] = ()
    """Text files; every paragraph (text between blank lines) is a document."""
    metaicl_dir: Path | None = None
    """A folder in MetaICL's layout, with `data/<task>/<task>_*_train.jsonl` and `config/<partition>.json`."""
    metaicl_partition: str | None = None
    """Name of the partition whose tasks are read, for example class_to_class."""
    metaicl_split: Literal["train", "test"] = "train"
    """Which side of the partition. train: the side to keep for a base model that is evaluated on the other; test: the
    other."""
    rows_per_document: int = Field(default=16, ge=1)
    """Rows of one task that make a document."""
    separators: tuple[str, str] = ("\n", "\n\n\n")
    """Between input and output, and after each row (the datamodule's `newlines` preset)."""
    vocab_size: int = Field(default=4096, ge=300)
    """Tokens of the vocabulary that is made for the text."""
    block_tokens: int = Field(default=256, ge=8)
    """Tokens of a training sequence."""
    steps: int = Field(default=1000, ge=1)
    """Steps of training."""
    final_lr_scale: float = Field(default=0.05, ge=0, le=1)
    """Learning rate of the last step relative to the first (cosine)."""
    held_out_blocks: int = Field(default=8, ge=1)
    """Blocks kept for the measured loss."""

    @model_validator(mode="after")
    def _has_a_source(self) -> TextCorpus:
        if not self.files and self.metaicl_dir is None:
            raise ValueError("give files or metaicl_dir")
        if self.metaicl_dir is not None and self.metaicl_partition is None:
            raise ValueError("metaicl_dir needs metaicl_partition, the name of a file in its config folder")
        return self

    def check_places(self) -> None:
        """Look whether the files are there.

        Raises:
            ConfigError: names the first that is not.
        """
        for file in self.files:
            if not file.is_file():
                raise ConfigError(f"data.files: {file} is no file")
        if self.metaicl_dir is not None:
            partition = self.metaicl_dir / "config" / f"{self.metaicl_partition}.json"
            if not is_file_name(str(self.metaicl_partition)) or not partition.is_file():
                known = ", ".join(sorted(path.stem for path in partition.parent.glob("*.json"))) or "none"
                raise ConfigError(
                    f"data.metaicl_partition {self.metaicl_partition!r}: no file {partition}; known: {known}"
                )


class CopyStart(Config):
    """A structured start for tiny T5 models: heads that look at fixed distances, and heads that look for the same.

    From T5's usual random start the circuit that copies from a context (find the token that looks like this one, take
    what stands beside it) did not form within a few hundred steps; from this start it forms in 200-350. Nothing is
    frozen: training is free to move every weight afterwards.
    """

    encoder_offsets: tuple[int, ...] = (-1, -2, -3, -4, 1, 2, 3)
    """Head i of every encoder layer looks at the token `encoder_offsets[i]` places away (negative: before)."""
    decoder_offsets: tuple[int, ...] = (-1, -2, -3)
    """The same for the decoder's self-attention."""
    peak: float = 8.0
    """Position bias of the wanted distance; all other distances keep their small random bias."""
    content_scale: float = Field(default=0.1, ge=0)
    """Query weights of these heads are multiplied by this, so that the position decides at first."""
    match_scale: float = Field(default=2.0, gt=0)
    """All other heads, and all heads of the cross-attention, start with query weights = key weights x match_scale /
    sqrt(d_kv): they look at what resembles the asking token."""
    self_bias: float = -8.0
    """Position bias of these other heads of the encoder at distance 0: what resembles a token most is itself."""
    decoder_self_bias: float | None = None
    """The same in the decoder, for decoders that copy from what they have read themselves."""


class Architecture(Config):
    """A Hugging Face model class and its configuration."""

    model_type: str
    """A `model_type` of transformers: llama, gpt2, t5 ..."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the configuration class; `vocab_size` and the special ids come from the tokenizer."""
    positional_start: PositionalStart | None = None
    """For Llama with `attention_bias`."""
    copy_start: CopyStart | None = None
    """For T5."""
    embedding_std: float | None = Field(default=None, gt=0)
    """Standard deviation of the initial token embeddings (null: the model's own; T5's is 1, so they move slowly)."""


class PretrainOptim(Config):
    """AdamW with warm-up; the schedule after the warm-up belongs to the data."""

    lr: float = Field(default=2e-3, gt=0)
    """Highest learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """Decay of AdamW's two moments."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    embedding_lr_scale: float = Field(default=1.0, gt=0)
    """Learning rate of the token embeddings relative to `lr` (T5's start at standard deviation 1 and move slowly)."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps in which the learning rate rises linearly."""


class PretrainConfig(Config):
    """A recipe of `promptcomp pretrain`: a base LM trained from scratch."""

    architecture: Architecture
    """The model's class and sizes."""
    data: Annotated[
        ToyCurriculum | ToySeq2SeqCurriculum | InstructionCurriculum | RationaleCurriculum | TextCorpus,
        Field(discriminator="name"),
    ]
    """What is read, chosen by `data.name`."""
    optim: PretrainOptim = PretrainOptim()
    """The optimiser and its warm-up."""
    batch_size: int = Field(default=64, ge=1)
    """Documents, or blocks of text, of a step."""
    seed: int = 0
    """Seed of the weights and of what is read."""
    start_from: Path | None = None
    """The folder of an earlier run with the same architecture: go on from its weights (with a new seed's lessons, or on
    another text, which its tokenizer reads)."""
    steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps (null: when the data's schedule is over); the short form of a recipe."""
    check_every: int = Field(default=50, ge=1)
    """Steps between measurements of the skills."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of torch (null: torch's choice). Sums are ordered by threads: keep it to repeat a run bit by bit."""
