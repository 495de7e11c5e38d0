"""What a processor makes of rows and of batches, seen on processors made up here: no family is needed for it."""

import pytest
import torch

from engine.processor_tensors import LONG, SHORT, Layout, check_joined, join_rows, layout_of
from settings.script import SettingsError


def processor(change=lambda made, lengths: made, most=2):
    """Reads a token for each letter and one for each picture; makes types of tokens, pixels and a count of pictures."""

    def read(questions, pictures):
        if any(len(own) > most for own in pictures):
            raise ValueError("too many pictures")
        rows = [torch.tensor([9] * len(own) + [1] * len(text)) for text, own in zip(questions, pictures, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        made = {"input_ids": ids, "attention_mask": ids != 0, "types": (ids == 9).long()}
        sizes = [picture.size for own in pictures for picture in own]
        if sizes:
            widest = max(width for width, _ in sizes)
            pixels = torch.zeros(len(sizes), widest)
            for row, (width, height) in enumerate(sizes):
                pixels[row, :width] = height
            made |= {"pixels": pixels, "counts": torch.tensor([[len(own)] for own in pictures])}
        return change(made, [len(row) for row in rows])

    return read


def test_two_texts_show_what_goes_by_tokens_and_two_pictures_what_goes_by_rows():
    assert layout_of(processor(), {}, "P") == Layout({"types": 1}, frozenset({"counts"}), {})


def test_where_two_pictures_are_refused_nothing_goes_by_rows():
    assert layout_of(processor(most=1), {}, "P").by_row == frozenset()


ROWS = [
    {"input_ids": torch.tensor([[9, 1]]), "types": torch.tensor([[1, 7]]), "pixels": torch.ones(1, 2)},
    {"input_ids": torch.tensor([[1, 1, 1]])},
    {"input_ids": torch.tensor([[9]]), "types": torch.tensor([[5]]), "pixels": 2 * torch.ones(1, 3)},
]


def test_per_token_tensors_go_on_as_the_prompt_ends_and_are_padded_like_the_ids():
    layout = Layout({"types": 1}, frozenset(), {})
    joined = join_rows(ROWS, [4, 3, 2], layout, left=False)["types"]
    assert joined.tolist() == [[1, 7, 7, 7], [0, 0, 0, 0], [5, 5, 0, 0]]
    assert join_rows(ROWS, [2, 3, 1], layout, left=True)["types"].tolist() == [[0, 1, 7], [0, 0, 0], [0, 0, 5]]


def test_a_value_of_the_model_file_stands_over_the_answer():
    joined = join_rows(ROWS[:1], [4], Layout({"types": 1}, frozenset(), {"types": 3}), left=False)
    assert joined["types"].tolist() == [[1, 7, 3, 3]]


def test_pictures_are_padded_to_their_common_shape_and_rows_in_words_have_none():
    assert join_rows(ROWS, [2, 3, 1], Layout({"types": 1}), left=False)["pixels"].tolist() == [[1, 1, 0], [2, 2, 2]]


def test_what_goes_by_rows_is_zero_for_a_row_in_words():
    joined = join_rows(ROWS, [2, 3, 1], Layout({"types": 1}, frozenset({"pixels"})), left=False)["pixels"]
    assert joined.tolist() == [[1, 1, 0], [0, 0, 0], [2, 2, 2]]


def test_a_mask_of_four_dimensions_goes_on_over_the_answer_along_its_tokens():
    """As Mllama's, which says of each token what it sees of each picture."""
    mask = torch.tensor([[[[1, 0]], [[1, 1]]]])  # one row, two tokens, one picture of two tiles
    row = {"input_ids": torch.tensor([[9, 1]]), "mask": mask}
    joined = join_rows([row, row], [4, 3], Layout({"mask": 1}), left=False)["mask"]
    assert joined[0, :, 0].tolist() == [[1, 0], [1, 1], [1, 1], [1, 1]]
    assert joined[1, :, 0].tolist() == [[1, 0], [1, 1], [1, 1], [0, 0]]


def test_rows_joined_are_the_processors_own_batch():
    read = processor()
    check_joined(read, layout_of(read, {}, "P"), "P")


def test_a_processor_that_makes_something_else_of_a_batch_is_refused_by_the_tensors_name():
    read = processor(
        lambda made, lengths: made | {"pixels": made["pixels"] + len(lengths)} if "pixels" in made else made
    )
    with pytest.raises(SettingsError, match="batch check: P makes another 'pixels' of two rows together than of each"):
        check_joined(read, layout_of(read, {}, "P"), "P")


def test_a_processor_that_writes_other_tokens_in_a_batch_is_refused_too():
    read = processor(lambda made, lengths: made | {"input_ids": made["input_ids"].clamp(max=10 - len(lengths))})
    with pytest.raises(SettingsError, match="batch check: P makes another 'input_ids'"):
        check_joined(read, layout_of(read, {}, "P"), "P")


def test_a_tensor_that_goes_by_tokens_twice_is_refused():
    def squares(made, lengths):
        tokens = made["input_ids"].shape[1]
        return made | {"square": torch.ones(len(lengths), tokens, tokens)}

    with pytest.raises(SettingsError, match=r"P: its 'square' has shape .* only one dimension may go by tokens"):
        layout_of(processor(squares), {}, "P")


def test_a_template_that_drops_the_picture_is_refused():
    def blind(questions, pictures):
        return {"input_ids": processor()(questions, [[] for _ in questions])["input_ids"]}

    with pytest.raises(SettingsError, match="P: its chat template drops the picture"):
        layout_of(blind, {}, "P")
    assert len(SHORT) < len(LONG)


def test_a_value_for_a_tensor_that_does_not_go_by_tokens_names_those_that_do():
    with pytest.raises(
        SettingsError, match=r"model\.answer_values: P makes no 'pixels' for each token; it makes types"
    ):
        layout_of(processor(), {"pixels": 1}, "P")
