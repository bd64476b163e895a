"""Training the small base models that the embedded world needs, from scratch and by one command."""

from promptcomp.pretrain.loop import PretrainConfig, pretrain

__all__ = ["PretrainConfig", "pretrain"]
