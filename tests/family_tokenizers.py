"""Tokenizers of the two kinds that families have, made in a moment: byte-level BPE and BPE behind a word mark."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

# so that "Ann" and " Ann" are different tokens, as in any real vocabulary
MERGES = [("A", "n"), ("An", "n"), ("t", "h"), ("th", "e"), ("o", "f")]


def vocabulary(special, letters, merges):
    """Tokens in this order: special ones, letters, what merges make."""
    tokens = [*special, *sorted(letters), *[one + other for one, other in merges]]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def byte_level(special, *, end, begin=None, pad="<pad>", opens=False, late=(), **more):
    """A tokenizer of the GPT-2 kind.

    `special`: its tokens besides `pad`; `end`, `begin`: their roles; `opens`: whether it puts `begin` before every
    text; `late`: special tokens behind the whole vocabulary; `more`: further named tokens.
    """
    merges = [*MERGES, ("Ġ", "Ann"), ("Ġ", "the")]
    special = [*dict.fromkeys([pad, *special])]
    letters = pre_tokenizers.ByteLevel.alphabet()
    own = Tokenizer(models.BPE(vocabulary(special, letters, merges), merges))
    own.add_special_tokens([*late])
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return finished(own, special, end=end, begin=begin, pad=pad, opens=opens, **more)


def word_mark(special, *, end, begin=None, pad="<pad>", opens=True, **more):
    """A tokenizer of the Llama-2 kind: a mark stands for each space, and one before the text."""
    merges = [*MERGES, ("▁", "Ann"), ("▁", "the")]
    special = [*dict.fromkeys([pad, *special])]
    letters = {*map(chr, range(32, 127)), "\n", "▁"}
    own = Tokenizer(models.BPE(vocabulary([*special, "<unk>"], letters, merges), merges, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    own.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return finished(own, special, end=end, begin=begin, pad=pad, opens=opens, unk_token="<unk>", **more)


def finished(own, special, *, end, begin, pad, opens, **more):
    """The tokenizer as the library has it; its special tokens are never parted."""
    if opens:
        own.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, own.token_to_id(begin))])
    names = {"bos_token": begin} if begin else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token=end, pad_token=pad, model_max_length=4096, **names, **more
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer
