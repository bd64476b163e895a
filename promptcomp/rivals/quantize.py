"""The full context's keys and values in 8 or 4 bits: keys by channel, values by token (KIVI, Liu et al. 2024, arXiv
2402.02750, which has groups of 32 and keeps the latest tokens as they are).

Numbers are really packed, two of 4 bits in a byte, and made whole again from the packed ones. What is counted is what
is allocated while the cache is held: the packed integers and, in half precision, the step and the least value of each
channel or token. To be read by this program's attention they are made whole, which an engine does layer by layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from promptcomp.rivals.rival import Made, NotMet, Reading, Rival, Setting, Share, share_text

if TYPE_CHECKING:
    from torch import Tensor


class Quantize(Rival):
    """Every position, in fewer bits."""

    title: ClassVar[str] = "quantised cache"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2402.02750"
    keeps_bos: ClassVar[bool] = True

    name: Literal["quantize"] = "quantize"
    bits: Literal[8, 4] = 4
    """Bits of a number. 8: half the bytes of bfloat16; 4: a quarter, with more error."""
    bytes: Share | None = None
    """The share of the full context's bytes that it has to fit into; it does, or it has no row."""

    @property
    def variants(self) -> tuple[str, ...]:
        """See Rival."""
        return (f"{self.bits} bits", *([] if self.bytes is None else [share_text(self.bytes)]))

    def asked(self, reading: Reading) -> tuple[Tensor | None, Tensor | None]:
        """See Rival."""
        share = None if self.bytes is None else self.bytes * reading.lm.cost.kv_bytes_per_token
        return None, None if share is None else reading.lengths * share

    def memory(self, reading: Reading, setting: Setting) -> Made:
        """The full cache as it comes out of the packed one.

        Raises:
            NotMet: the LM has no cache of a context, or the bytes are more than the share that was asked for.
        """
        from promptcomp.memory import KVCache

        if reading.lm.family == "encoder_decoder":
            raise NotMet("an encoder-decoder LM keeps a context as its encoder's states, not as keys and values")
        if not isinstance(cache := reading.full, KVCache):
            return Made(None)
        real = cache.mask[:, None, :, None]
        pairs = [
            (packed(keys, real, self.bits, 2), packed(values, real, self.bits, 3)) for keys, values in cache.layers
        ]
        lengths = cache.mask.sum(-1)
        held = lengths * 0
        for pair in pairs:
            held = held + pair[0].held(lengths, 2) + pair[1].held(lengths, 3)
        share = float((held / (lengths * reading.lm.cost.kv_bytes_per_token)).max())
        if self.bytes is not None and share > self.bytes:
            raise NotMet(f"{self.bits} bits with their steps take {share:.3f} of the bytes, more than {self.bytes:g}")
        whole = tuple((keys.whole(), values.whole()) for keys, values in pairs)
        return Made(KVCache(whole, cache.mask, cache.next_position), held)


class PackedNumbers(NamedTuple):
    """Numbers [G, H, K, D] as integers from 0 to 2^bits - 1 of a step above a least value."""

    codes: Tensor  # [G, H, K, D] uint8; 4 bits: [G, H, K, ceil(D / 2)], the even channel in the low half
    step: Tensor  # float16, 1 in the dimension that shares it
    least: Tensor  # as `step`
    like: Tensor  # empty, of the type of the numbers
    width: int
    bits: int

    def whole(self) -> Tensor:
        """The numbers again."""
        import torch

        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)[..., : self.width]
        return (codes.float() * self.step.float() + self.least.float()).to(self.like.dtype)

    def held(self, lengths: Tensor, shared: int) -> Tensor:
        """Bytes of each row [G] with that many positions; `shared`: the dimension that shares a step (2: positions)."""
        scales = 2 * self.step[0].numel() * self.step.element_size()
        codes = self.codes[0, :, 0].numel() * self.codes.element_size()
        if shared == 2:
            return lengths * codes + scales
        return lengths * (codes + scales // self.step.shape[2])


def packed(values: Tensor, real: Tensor, bits: int, shared: int) -> PackedNumbers:
    """Round numbers [G, H, K, D], asymmetrically; padding (not `real` [G, 1, K, 1]) gives no extremes.

    Args:
        values: the numbers.
        real: positions that count.
        bits: 8 or 4.
        shared: the dimension whose numbers share a step: 2 is one step for each channel, 3 for each position.
    """
    import torch

    wide, most = values.float(), 2**bits - 1
    low = wide.masked_fill(~real, torch.inf).amin(shared, keepdim=True).nan_to_num(posinf=0)
    high = wide.masked_fill(~real, -torch.inf).amax(shared, keepdim=True).nan_to_num(neginf=0)
    least = low.half()
    step = ((high - least.float()).clamp(min=0) / most).half()
    codes = ((wide - least.float()) / step.float().clamp(min=1e-30)).round().clamp(0, most).to(torch.uint8)
    if bits == 4:
        codes = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
        codes = codes[..., ::2] | (codes[..., 1::2] << 4)
    return PackedNumbers(codes, step, least, values[:0], values.shape[-1], bits)
