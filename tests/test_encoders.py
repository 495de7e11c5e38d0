"""Text models' prompts: chat templates and tags, the tokens that open a text, padding, and what bad input gets."""

import pytest
from transformers import AutoTokenizer

from encoders import TextEncoder, check_lengths, collate, padding_for
from language_settings import Tags
from run_settings import SettingsError
from test_data_module import example
from unlearn_losses import IGNORE

TAGS = Tags(question="Question: ", answer="\nAnswer: ")


@pytest.fixture
def tokenizer(text_base):
    return AutoTokenizer.from_pretrained(text_base)


@pytest.mark.parametrize("tags", [None, TAGS], ids=["template", "tags"])
def test_a_text_prompt_is_built_from_template_or_tags_and_its_labels_are_the_answer(tokenizer, tags):
    encoder = TextEncoder(tokenizer, tags)
    encoded = [encoder.encode(example("Who?", answer)) for answer in ("Ann Lee.", "Nobody at all.")]
    batch = collate(encoded, tokenizer.pad_token_id)
    for row, answer in zip(batch["labels"], ("Ann Lee.", "Nobody at all."), strict=True):
        assert tokenizer.decode(row[row != IGNORE]) == f"{answer}{tokenizer.eos_token}"
    text = encoder.prompt_text(example("Who?", "Ann Lee."))
    assert text == ("Question: Who?\nAnswer: " if tags else "<s><user>Who?<assistant>") and "Ann" not in text


def test_a_template_opens_the_text_itself_and_before_tags_the_tokenizer_does(tokenizer):
    """Two opening tokens, or none, would be another prompt than the model was trained with."""
    tokenizer._tokenizer.post_processor = opening(tokenizer)
    for tags in (None, TAGS):
        ids = TextEncoder(tokenizer, tags).encode(example("Who?", "Ann.")).prompt["input_ids"][0].tolist()
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def opening(tokenizer):
    """What Llama's tokenizers do: put the opening token before every text."""
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)])
    assert tokenizer.eos_token_id not in TextEncoder(tokenizer, TAGS).encode(example("Who?", "Ann.")).prompt["input_ids"]


def test_a_tokenizer_without_a_pad_token_gets_one_that_is_not_its_end(tokenizer):
    tokenizer.pad_token = None
    encoder = TextEncoder(tokenizer, None)
    assert encoder.tokenizer.pad_token_id is not None and encoder.tokenizer.pad_token_id != encoder.tokenizer.eos_token_id
    assert padding_for(tokenizer) == "<pad>"  # a token made for it comes first


def test_without_template_and_tags_the_setting_is_named(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(SettingsError, match=r"model\.tags is required"):
        TextEncoder(tokenizer, None)


def test_a_template_that_drops_the_question_is_refused(tokenizer):
    tokenizer.chat_template = "{{ bos_token }}<assistant>"
    with pytest.raises(SettingsError, match="drops the question"):
        TextEncoder(tokenizer, None)


def test_an_answer_without_a_token_names_its_row(tokenizer, monkeypatch):
    encoder = TextEncoder(tokenizer, None)
    monkeypatch.setattr(encoder, "answer_tokens", lambda answer: [tokenizer.eos_token_id])
    with pytest.raises(SettingsError, match="split test, row 7: no token is left of the answer"):
        encoder.encode(example("Who?", "x", index=7))


class Rows(list):
    @property
    def in_words(self):
        return range(len(self))


def test_rows_that_are_too_long_are_counted_and_the_first_is_named_before_anything_trains(tokenizer):
    rows = Rows([example("Who?", "Ann."), example("Who?", "Ann Lee of Oslo. " * 9, index=4), example("Who?", "Bob Ray of Rome. " * 9, index=5)])
    with pytest.raises(SettingsError, match=r"2 of 3 rows are too long, the first: split test, row 4: \d+ tokens, but the model takes 24; .*truncate=true"):
        check_lengths(TextEncoder(tokenizer, None, max_length=24), rows)
    check_lengths(TextEncoder(tokenizer, None), rows)  # the model takes 512


def test_truncating_cuts_the_answers_end_and_never_the_question(tokenizer):
    long, question = "Ann Lee of Oslo. " * 9, example("Who?", "x")
    encoder = TextEncoder(tokenizer, None, max_length=24, truncate=True)
    encoded = encoder.encode(example("Who?", long))
    asked = encoder.encode(question).prompt["input_ids"].shape[1]
    assert len(encoded.answer) == 24 - asked and encoded.answer == encoder.answer_tokens(long)[: 24 - asked]
    with pytest.raises(SettingsError, match="24"):
        encoder.encode(example("Who is that? " * 20, "x"))  # a question alone that does not fit


def test_a_setting_of_the_length_beyond_the_models_own_changes_nothing(tokenizer):
    assert TextEncoder(tokenizer, None, max_length=10**6).max_length == tokenizer.model_max_length == 512
