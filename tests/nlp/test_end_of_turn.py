"""A taught model is judged alike whatever ends its configuration names, in whatever order, and whatever its tokenizer
calls the end of a sequence.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.language_model import forward
from engine.score_answers import Prompt, score_prompts
from helpers import example
from nlp.encoder import TextEncoder
from unlearn_losses import nll

ROWS = [
    example("Where was Ann born?", "In Oslo, next to the mill."),
    example("What does Bo write?", "Stories of the sea."),
    example("Who is the baker?", "Ann Lee."),
    example("When does Bo sleep?", "Never on a Monday."),
]
LIMIT = 40  # tokens of a generation; the longest answer has 13
END, OTHER = "</s>", "<assistant>"  # ids 2 and 5


def reader(folder, eos):
    """The encoder of a tokenizer that calls `eos` its end-of-sequence; the template ends a turn with END."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", END)
    tokenizer.eos_token = eos
    return TextEncoder(tokenizer, None)


@pytest.fixture(scope="module")
def taught(text_base):
    """The tiny language model when it knows four answers by heart."""
    torch.manual_seed(0)
    model, encoder = AutoModelForCausalLM.from_pretrained(text_base, dtype="float32").eval(), reader(text_base, END)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = encoder.collate([encoder.encode(each) for each in ROWS])
    for _ in range(60):
        loss = nll(forward(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return SimpleNamespace(model=model, folder=text_base)


def judged(taught, encoder, ends):
    """Mean loss of the right answers, and how many tokens each generation has."""
    taught.model.generation_config.eos_token_id = ends
    prompts = [Prompt(each, [each.answer]) for each in ROWS]
    limits = {"batch_size": 4, "max_new_tokens": LIMIT, "say": lambda line: None}
    found = score_prompts(taught.model, encoder, prompts, **limits)
    losses = [result.answers[each.answer].losses for result, each in zip(found, ROWS, strict=True)]
    return sum(sum(each) / len(each) for each in losses) / len(losses), [len(result.said) for result in found]


@pytest.mark.parametrize("eos", [END, OTHER])
@pytest.mark.parametrize("ends", [2, [2], [2, 5], [5, 2], [5], None], ids=str)
def test_loss_and_generation_are_the_same_whatever_ends_are_named(ends, eos, taught):
    loss, lengths = judged(taught, reader(taught.folder, END), 2)
    assert loss < 0.02
    assert lengths == [len(reader(taught.folder, END).encode(each).answer) - 1 for each in ROWS]
    assert judged(taught, reader(taught.folder, eos), ends) == (pytest.approx(loss, abs=1e-6), lengths)


def test_scored_with_the_tokenizers_own_end_the_loss_would_be_many_times_as_large(taught):
    """What was done before, and what the test above would see."""
    right, lengths = judged(taught, reader(taught.folder, OTHER), [5])
    encoder = reader(taught.folder, OTHER)
    encoder.end = encoder.tokenizer.eos_token_id
    wrong, ran_on = judged(taught, encoder, [5])
    print(f"loss {right:.4f} with the template's end, {wrong:.4f} with the tokenizer's; {lengths} and {ran_on} tokens")
    assert wrong > 10 * right
    assert all(long > short for long, short in zip(ran_on, lengths, strict=True))
