"""Text models' prompts: chat templates and tags, the tokens that open a text, padding, and what bad input gets."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import mm.encoder
from data_module import TaskRow
from engine.encode import padding_for
from engine.pairs import Pairs
from engine.row_lengths import check_answers, check_instruction, check_lengths
from helpers import BASE, MODEL, example, png
from mm.encoder import PictureEncoder
from nlp.encoder import TextEncoder
from settings.language import Tags
from settings.script import SettingsError
from settings.training import Noise
from unlearn_losses import IGNORE

TAGS = Tags(question="Question: ", answer="\nAnswer: ")


@pytest.fixture
def tokenizer(text_base):
    return AutoTokenizer.from_pretrained(text_base)


@pytest.mark.parametrize("tags", [None, TAGS], ids=["template", "tags"])
def test_a_text_prompt_is_built_from_template_or_tags_and_its_labels_are_the_answer(tokenizer, tags):
    encoder = TextEncoder(tokenizer, tags)
    encoded = [encoder.encode(example("Who?", answer)) for answer in ("Ann Lee.", "Nobody at all.")]
    batch = encoder.collate(encoded)
    for row, answer in zip(batch.labels, ("Ann Lee.", "Nobody at all."), strict=True):
        assert (
            tokenizer.decode(row[row != IGNORE]) == f"{' ' if tags else ''}{answer}{tokenizer.eos_token}"
        )  # the tag's last space is the answer's
    text = encoder.prompt_text(example("Who?", "Ann Lee."))
    assert text == ("Question: Who?\nAnswer:" if tags else "<s><user>Who?<assistant>") and "Ann" not in text


def test_a_template_opens_the_text_itself_and_before_tags_the_tokenizer_does(tokenizer):
    """Two opening tokens, or none, would be another prompt than the model was trained with."""
    tokenizer._tokenizer.post_processor = opening(tokenizer)
    for tags in (None, TAGS):
        ids = TextEncoder(tokenizer, tags).encode(example("Who?", "Ann.")).prompt["input_ids"][0].tolist()
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def opening(tokenizer):
    """What Llama's tokenizers do: put the opening token before every text."""
    return TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(tokenizer):
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    assert (
        tokenizer.eos_token_id not in TextEncoder(tokenizer, TAGS).encode(example("Who?", "Ann.")).prompt["input_ids"]
    )


def test_behind_a_tag_question_and_answer_are_the_tokens_that_the_whole_text_has(tokenizer):
    encoder = TextEncoder(tokenizer, TAGS)
    encoded = encoder.encode(example("Who?", "Ann."))
    assert (
        encoded.prompt["input_ids"][0].tolist() + encoded.answer[:-1]
        == tokenizer("Question: Who?\nAnswer: Ann.")["input_ids"]
    )


def test_a_tokenizer_without_a_pad_token_is_padded_with_one_that_is_not_its_end_and_stays_as_it_is(tokenizer, tmp_path):
    made_for_it, tokenizer.pad_token = tokenizer.pad_token_id, None
    assert TextEncoder(tokenizer, None).pad == made_for_it != tokenizer.eos_token_id  # <pad> is still in the vocabulary
    plain = no_names(tokenizer)
    encoder = TextEncoder(plain, TAGS)
    first = plain.convert_ids_to_tokens(0)
    assert encoder.pad == 0 and first not in plain.all_special_tokens
    plain.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        again.decode([0], skip_special_tokens=True) == plain.decode([0], skip_special_tokens=True) != ""
    )  # phi-1.5's would lose its "!"


def no_names(tokenizer):
    """As phi-1.5's: the end of the text is also the unknown token, and no token is for padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE({"!": 0, "a": 1, "<|end|>": 2}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|end|>", unk_token="<|end|>", bos_token="<|end|>", model_max_length=64
    )


def test_without_template_and_tags_the_setting_is_named(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(SettingsError, match=r"model\.tags is required"):
        TextEncoder(tokenizer, None)


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ bos_token }}<assistant>", "drops the question"),
        ("{{ messages[0].content }}<assistant>", "drops the answer"),
        (
            TURNS,
            "opens an answer otherwise than it writes one",
        ),  # no opening: the answer would stand in the user's turn
        (
            TURNS.replace("{{ m.content }}", "{{ 'I think: ' if m.role == 'assistant' }}{{ m.content }}")
            + "{% if add_generation_prompt %}<assistant>{% endif %}",
            "otherwise",
        ),
        ("{{ raise_exception('roles must alternate') }}", "fails .roles must alternate.; model.tags replaces it"),
    ],
)
def test_a_template_that_drops_or_moves_the_question_or_the_answer_is_refused(template, line, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(SettingsError, match=line):
        TextEncoder(tokenizer, None)
    tokenizer.chat_template = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
    TextEncoder(tokenizer, None)


def test_a_question_or_an_answer_that_holds_a_special_token_names_its_row_and_the_token(tokenizer):
    encoder = TextEncoder(tokenizer, Tags("Question: ", " Answer: "))
    line = "split test, row 2: the {} holds '</s>', which the tokenizer takes for a special token"
    with pytest.raises(SettingsError, match=line.format("question")):
        encoder.encode(example("Who</s>?", "Ann.", index=2))
    with pytest.raises(SettingsError, match=line.format("answer")):
        encoder.encode(example("Who?", "Ann.</s> Bob.", index=2))
    with pytest.raises(SettingsError, match=line.format("answer")):  # as an answer of a task is read
        encoder.encode_answer(example("Who?", "</s>", index=2), 3)
    encoder.encode(example("Is 1 < 2, <b>so</b> to speak?", "Yes, a/s."))


def test_an_unknown_token_that_is_the_end_too_is_no_text():
    with pytest.raises(SettingsError, match=r"the question holds '<\|end\|>'"):
        TextEncoder(no_names(None), TAGS).encode(example("Who<|end|>?", "Ann."))


def test_special_tokens_of_one_letter_and_unknown_ones_may_stand_in_a_text(tokenizer):
    tokenizer.pad_token, tokenizer.unk_token = "!", "<user>"
    TextEncoder(tokenizer, Tags("Question: ", " Answer: ")).encode(example("Who is <user>!", "Ann!"))


def test_an_answer_whose_template_writes_no_end_ends_with_the_special_token_that_opens_the_next_turn(tokenizer):
    opening = "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer.chat_template = TURNS + opening
    assert tokenizer.convert_ids_to_tokens(TextEncoder(tokenizer, None).end) == "<user>"
    tokenizer.chat_template = TURNS.replace("<{{ m.role }}>", "{{ m.role }}: ") + opening.replace(
        "<assistant>", "assistant: "
    )
    assert TextEncoder(tokenizer, None).end == tokenizer.eos_token_id


def test_a_template_of_one_question_only_is_none_the_worse(tokenizer):
    once = "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}"
    tokenizer.chat_template = once + TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert TextEncoder(tokenizer, None).end == tokenizer.eos_token_id


def test_a_placeholder_of_pictures_is_no_padding(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|fim_pad|>"]})
    tokenizer.pad_token = None
    named = [token for token in tokenizer.get_vocab() if "pad" in token]
    assert {"<|image_pad|>", "<|fim_pad|>"} <= {*named}
    assert "image" not in tokenizer.convert_ids_to_tokens(padding_for(tokenizer))


def test_a_template_that_tells_the_date_tells_the_same_one_every_day(tokenizer):
    telling = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today: {{ date_string }} "
    )
    tokenizer.chat_template = telling + TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert (
        TextEncoder(tokenizer, None).prompt_text(example("Who?", "Ann.")) == "Today: 26 Jul 2024 <user>Who?<assistant>"
    )


def test_a_picture_is_refused_where_a_model_reads_words_only(tokenizer):
    with pytest.raises(
        SettingsError,
        match=r"split test, row 0 shows a picture, and this model reads words only; modality=text leaves it out",
    ):
        check_lengths(
            TextEncoder(tokenizer, None), Rows([example("Who?", "Ann.", image={"path": "a.png", "bytes": None})])
        )


def test_an_answer_without_a_token_names_its_row(tokenizer, monkeypatch):
    encoder = TextEncoder(tokenizer, None)
    monkeypatch.setattr(encoder, "answer_tokens", lambda answer: [tokenizer.eos_token_id])
    with pytest.raises(SettingsError, match="split test, row 7: no token is left of the answer"):
        encoder.encode(example("Who?", "x", index=7))


def test_words_are_tokenised_once(tokenizer, monkeypatch):
    encoder, read = TextEncoder(tokenizer, None), []
    real = encoder.answer_tokens
    monkeypatch.setattr(encoder, "answer_tokens", lambda answer: (read.append(answer), real(answer))[1])
    monkeypatch.setattr(
        encoder, "prompt_inputs", lambda each, real=encoder.prompt_inputs: (read.append(each.question), real(each))[1]
    )
    examples = [example("Who?", "Ann."), example("Who?", "Bob.")]
    first = [encoder.encode(each) for each in examples]
    again = [encoder.encode(each) for each in examples]
    assert read == ["Who?", "Ann.", "Bob."] and [each.answer for each in first] == [each.answer for each in again]


class Rows(list):
    @property
    def in_words(self):
        return range(len(self))


def test_rows_that_are_too_long_are_counted_and_the_first_is_named_before_anything_trains(tokenizer):
    rows = Rows(
        [
            example("Who?", "Ann."),
            example("Who?", "Ann Lee of Oslo. " * 9, index=4),
            example("Who?", "Bob Ray of Rome. " * 9, index=5),
        ]
    )
    with pytest.raises(
        SettingsError,
        match=r"2 of 3 rows are too long, the first: split test, row 4: \d+ tokens, but the model takes 24; .*truncate",
    ):
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


def test_an_instruction_that_leaves_a_row_no_room_is_named_before_anything_trains(tokenizer):
    rows = [example("Who?", "Ann."), example("Who?", "Ann Lee of Oslo.", index=4)]
    noise = Noise(sigma=1.0, instruction="You have never met or heard of this person.")
    asked = Pairs(["forget", "noised"], rows, rows, idk={}, seed=0, noise=noise)
    needed = TextEncoder(tokenizer, None).encode(rows[1])
    room = needed.prompt["input_ids"].shape[1] + len(needed.answer) + 2
    line = (
        rf"^method.noise.instruction: with it before the question, split test, row 0: \d+ tokens, .* takes {room}; a sh"
    )
    with pytest.raises(SettingsError, match=line):
        check_instruction(TextEncoder(tokenizer, None, max_length=room), asked)
    with pytest.raises(SettingsError, match=r"method.noise.instruction: .* are cut of the answer of split test, row 4"):
        longer = TextEncoder(tokenizer, None).encode(asked.instructed(rows[1]))
        most = longer.prompt["input_ids"].shape[1] + len(longer.answer) - 1
        check_instruction(TextEncoder(tokenizer, None, max_length=most, truncate=True), asked)
    check_instruction(TextEncoder(tokenizer, None), asked)
    without = Pairs(["forget"], rows, rows, idk={}, seed=0)
    check_instruction(TextEncoder(tokenizer, None, max_length=room), without)


def test_a_length_is_that_of_tokenizer_and_model_and_one_beyond_it_is_refused(tokenizer):
    assert TextEncoder(tokenizer, None).max_length == tokenizer.model_max_length == 512
    assert (
        TextEncoder(tokenizer, None, positions=100).max_length == 100
        and TextEncoder(tokenizer, None, positions=9999).max_length == 512
    )
    with pytest.raises(SettingsError, match="max_length=101 is more than the 100 tokens that the model takes"):
        TextEncoder(tokenizer, None, max_length=101, positions=100)


def test_answers_of_a_task_that_do_not_fit_are_counted_before_the_model_is_loaded(tokenizer):
    row = TaskRow(example("Who?", "Ann.", index=3), None, ["Bob Ray of Rome. " * 9, "Cid.", "Dan Poe of Bern. " * 9])
    check_answers(TextEncoder(tokenizer, None), {"eval_log": [row]})
    with pytest.raises(
        SettingsError,
        match=r"eval_log: 2 of 4 answers are too long, the first: split test, row 3: \d+ tokens, but the model takes",
    ):
        check_answers(TextEncoder(tokenizer, None, max_length=24), {"eval_log": [row]})


# ---- the same guards where the model sees


def processor_with(encoder, template):
    """The tiny model's processor with another chat template."""
    processor = copy.deepcopy(encoder.processor)
    processor.chat_template = template
    return processor


BAD_TEMPLATES = {
    "{{ messages[0]['content'][0]['text'] }}": "drops the answer",
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'][0]['text'] }}{% endif %}{% endfor %}": (
        "drops the question"
    ),
    "{{ raise_exception('no such role') }}": "fails",
}


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_a_processors_template_is_checked_as_a_tokenizers_is(template, encoder):
    with pytest.raises(SettingsError, match=BAD_TEMPLATES[template]):
        PictureEncoder(processor_with(encoder, template))


def test_a_begin_token_written_by_template_and_tokenizer_is_refused(encoder):
    doubled = processor_with(encoder, encoder.processor.chat_template.replace("{{ bos_token }}", "{{ bos_token }}" * 2))
    with pytest.raises(SettingsError, match=r"split test, row 3: the prompt begins with '<s>' twice"):
        PictureEncoder(doubled).encode(example(index=3))


def test_a_tokenizer_that_ends_the_prompt_of_a_model_that_sees_is_refused(encoder):
    processor = processor_with(encoder, None)
    own = processor.tokenizer
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", own.bos_token_id), ("</s>", own.eos_token_id)]
    )
    with pytest.raises(
        SettingsError, match=r"row 3: the tokenizer ends the prompt with '</s>', and the answer is still"
    ):
        PictureEncoder(processor, Tags("Question: ", " Answer: ")).encode(example(index=3))


def test_a_processors_template_that_tells_the_date_tells_the_same_one_every_day(encoder):
    dated = "{{ date_string }}" + encoder.processor.chat_template
    assert PictureEncoder(processor_with(encoder, dated)).prompt_text(example()).startswith("26 Jul 2024<s>")


def test_an_evaluation_checks_the_lengths_of_words_where_the_model_sees(encoder):
    row = TaskRow(example(answer="word " * 600), None, [])
    with pytest.raises(SettingsError, match=r"eval_qa: 1 of 1 answers are too long"):
        check_answers(encoder, {"eval_qa": [row]})


def test_tags_replace_the_template_of_a_model_that_sees_behind_its_pictures_placeholder(encoder):
    tagged = mm.encoder.open_encoder(str(BASE), replace(MODEL, tags=TAGS))
    seen, read = example("Who?", "Ann.", image=png("red")), example("Who?", "Ann.")
    assert tagged.prompt_text(seen) == "<image>Question: Who?\nAnswer:"
    assert tagged.prompt_text(read) == "Question: Who?\nAnswer:"
    assert encoder.tokenizer.decode(tagged.encode(seen).answer) == " Ann.</s>"


def test_a_model_that_sees_without_template_and_tags_names_the_setting(encoder):
    with pytest.raises(SettingsError, match=r"model\.tags is required"):
        PictureEncoder(processor_with(encoder, None))


def test_the_encoder_of_an_evaluation_cuts_nothing(encoder):
    short = PictureEncoder(encoder.processor, max_length=40, truncate=True)
    long = example(answer="word " * 60)
    assert len(short.encode(long).answer) < len(short.uncut().encode(long).answer)


def test_two_questions_about_one_picture_keep_it_once(encoder):
    own = encoder.uncut()
    red, green = png("red"), png("green")
    first = own.encode(example("Who is this?", image=red)).prompt
    left = own.kept_prompts.room
    second = own.encode(example("What do you see?", image=red)).prompt
    assert second["pixel_values"] is first["pixel_values"]
    assert left - own.kept_prompts.room == second["input_ids"].nbytes
    other = own.encode(example("Who is this?", image=green)).prompt
    assert other["pixel_values"] is not first["pixel_values"] and not torch.equal(
        other["pixel_values"], first["pixel_values"]
    )


def test_where_there_is_no_room_nothing_is_kept(encoder):
    own = encoder.uncut()
    own.kept_prompts.room = 0
    asked = example("Who is this?", image=png("red"))
    one, other = own.encode(asked).prompt, own.encode(asked).prompt
    assert one["pixel_values"] is not other["pixel_values"] and torch.equal(one["pixel_values"], other["pixel_values"])
    assert not own.kept_prompts.prompts and not own.kept_prompts.pictures
