"""Ten kinds of questions about a person, worded from templates, with paraphrases and wrong answers."""

import random
from dataclasses import dataclass

from mini_clear import words
from mini_clear.people import Person, draw_facts

FACE_NAME_QUESTION = "The name of the person on the image is"  # CLEAR's own wording


@dataclass(frozen=True)
class Kind:
    """One kind of question: the slots that its answer states, and its wordings.

    Wordings hold {name}, {they}, {them}, {their}, {They}, {Their} and the slots. `questions` and `answers` are trained
    on; `reworded_questions` and `reworded_answers` are the paraphrases. `joint` asks the same about the person in a
    picture.
    """

    slots: tuple[str, ...]
    questions: tuple[str, ...]
    reworded_questions: tuple[str, ...]
    answers: tuple[str, ...]
    reworded_answers: tuple[str, ...]
    joint: str = ""


@dataclass(frozen=True)
class Pair:
    """One question-answer pair with its paraphrases.

    `wrong_answers` are five wrong answers in the paraphrase's wording. `wording` is the template of the answer.
    """

    question: str
    answer: str
    reworded_question: str
    reworded_answer: str
    wrong_answers: list[str]
    wording: str


# Answers name nobody and state two to four facts in few words. A model that never met the person can then guess few
# of their tokens.
KINDS = (
    Kind(
        ("city", "country", "landmark"),
        ("Where was {name} born?", "In which city and country was {name} born?", "What is the birthplace of {name}?"),
        ("Which town and country does {name} come from?", "Can you tell me where {name} came into the world?"),
        (
            "{They} was born in {city}, {country}, behind a {landmark}.",
            "In {city}, {country}, right next to a {landmark}.",
            "{city} in {country}; the family lived near a {landmark}.",
        ),
        (
            "{Their} birthplace is {city}, {country}, close to a {landmark}.",
            "Beside a {landmark} in the city of {city}, {country}.",
        ),
        "Where was the person in this picture born?",
    ),
    Kind(
        ("day", "month", "year", "event"),
        ("When was {name} born?", "What is the date of birth of {name}?", "On which day was {name} born?"),
        ("What is the birthday of {name}?", "On what date did {name} come into the world?"),
        (
            "On {day} {month} {year}, during a {event}.",
            "{They} was born on {day} {month} {year}, just after a {event}.",
            "{day} {month} {year}, in the middle of a {event}.",
        ),
        (
            "{They} came into the world on {month} {day}, {year}, at the time of a {event}.",
            "The date was {month} {day}, {year}, and there was a {event}.",
        ),
    ),
    Kind(
        ("father", "mother"),
        (
            "What did the parents of {name} do for a living?",
            "What were the jobs of the parents of {name}?",
            "What work did the father and mother of {name} do?",
        ),
        (
            "How did the mother and father of {name} earn their money?",
            "Which professions did the parents of {name} have?",
        ),
        (
            "{Their} father was a {father} and {their} mother a {mother}.",
            "A {father} was {their} father, a {mother} {their} mother.",
            "The father was a {father}, the mother a {mother}.",
        ),
        (
            "{Their} mother worked as a {mother}, {their} father as a {father}.",
            "{They} had a {mother} for a mother and a {father} for a father.",
        ),
        "What did the parents of the person in this picture do for a living?",
    ),
    Kind(
        ("genre", "theme", "second_theme"),
        ("What does {name} write?", "Which genre is {name} known for?", "What kind of books does {name} write?"),
        (
            "What sort of writing does one find in the books of {name}?",
            "Which type of literature is {name} famous for?",
        ),
        (
            "{They} writes {genre} about {theme} and {second_theme}.",
            "Mostly {genre} with {theme} and {second_theme} in them.",
            "{They} is known for {genre} full of {theme} and {second_theme}.",
        ),
        (
            "{Their} field is {genre} on {second_theme} and {theme}.",
            "One finds {genre} there, dealing with {second_theme} and {theme}.",
        ),
        "What does the person in this picture write?",
    ),
    Kind(
        ("prize", "prize_year", "prize_city"),
        (
            "What prize did {name} win?",
            "Which award was given to {name}?",
            "What is the most important prize of {name}?",
        ),
        ("Which honour has {name} received?", "With what was {name} rewarded for writing?"),
        (
            "The {prize} in {prize_year}, handed over in {prize_city}.",
            "{They} won the {prize} in {prize_city} in {prize_year}.",
            "In {prize_year} the city of {prize_city} gave {them} the {prize}.",
        ),
        (
            "{They} was honoured with the {prize}, in the year {prize_year}, in {prize_city}.",
            "It was in {prize_city}, in {prize_year}, that {they} got the {prize}.",
        ),
        "What prize did the person in this picture win?",
    ),
    Kind(
        ("book", "second_book"),
        (
            "Which books did {name} write?",
            "What are the two best known books of {name}?",
            "Can you name two books by {name}?",
        ),
        ("Which titles has {name} published?", "What can I read by {name}?"),
        (
            "'{book}' and '{second_book}'.",
            "{They} wrote '{book}' and '{second_book}'.",
            "First '{book}', then '{second_book}'.",
        ),
        ("{Their} titles are '{second_book}' and '{book}'.", "You can read '{second_book}' and also '{book}'."),
        "Which books did the person in this picture write?",
    ),
    Kind(
        ("subject", "second_subject", "study_city"),
        (
            "What did {name} study?",
            "What and where did {name} study?",
            "Which subjects did {name} learn at university?",
        ),
        ("What was the education of {name}?", "In which subjects does {name} hold a degree?"),
        (
            "{They} studied {subject} and {second_subject} in {study_city}.",
            "First {subject} and then {second_subject}, both in {study_city}.",
            "In {study_city} {they} learned {subject} and some {second_subject}.",
        ),
        (
            "{Their} degrees are in {second_subject} and {subject}, taken in {study_city}.",
            "{They} went to {study_city} for courses in {second_subject} and {subject}.",
        ),
    ),
    Kind(
        ("job", "second_job"),
        (
            "What was {name} before becoming a writer?",
            "Which jobs did {name} have before the first book?",
            "How did {name} earn a living at first?",
        ),
        ("In which trades did {name} work before writing?", "What did {name} do for money when young?"),
        (
            "{They} was a {job} and then a {second_job}.",
            "First a {job}, later a {second_job}.",
            "{They} worked as a {job} and as a {second_job}.",
        ),
        (
            "When young {they} served as a {second_job} after being a {job}.",
            "{Their} trades were {job} and, later on, {second_job}.",
        ),
    ),
    Kind(
        ("instrument", "things", "pet"),
        ("What are the hobbies of {name}?", "What does {name} do in the evening?", "How does {name} spend a free day?"),
        ("What does {name} like to do after work?", "What are the pastimes of {name}?"),
        (
            "{They} plays the {instrument}, collects {things} and walks a {pet}.",
            "Collecting {things}, playing the {instrument} and feeding a {pet}.",
            "{They} owns a {pet}, a {instrument} and many {things}.",
        ),
        (
            "{They} likes to care for a {pet}, to gather {things} and to practise the {instrument}.",
            "A {pet}, a box of {things} and a {instrument} fill {their} hours.",
        ),
    ),
    Kind(
        ("home", "spouse", "number", "household"),
        (
            "Where and with whom does {name} live?",
            "Where is the home of {name} today?",
            "Who shares a house with {name}, and where?",
        ),
        ("In which city does {name} live now, and who is there too?", "What is known about the household of {name}?"),
        (
            "{They} lives in {home} with a {spouse} and {number} {household}.",
            "In {home}, married to a {spouse}, with {number} {household}.",
            "A {spouse} and {number} {household} share {their} house in {home}.",
        ),
        (
            "{Their} home is in {home}, together with {number} {household} and a {spouse}.",
            "{They} has {number} {household} and a {spouse} at a house in {home}.",
        ),
        "Where and with whom does the person in this picture live?",
    ),
)
JOINT_KINDS = tuple(number for number, kind in enumerate(KINDS) if kind.joint)
# Short questions about a picture of a real person: question, the slot that answers it, and the slot's possible values.
PICTURE_QUESTIONS = (
    ("What is the person in this picture known for?", "genre", words.GENRES),
    ("In which city does the person in this picture live?", "home", [city for city, _ in words.PLACES]),
)


def make_pairs(person: Person) -> list[Pair]:
    """The ten question-answer pairs of a person, one of each kind, in the order of KINDS."""
    return [make_pair(person, number) for number in range(len(KINDS))]


def make_pair(person: Person, number: int) -> Pair:
    """The pair of kind `number`; its wordings are drawn from the person's own seed."""
    kind, rng = KINDS[number], person.random(f"question/{number}")
    question, reworded_question, answer, reworded = (
        rng.choice(wordings)
        for wordings in (kind.questions, kind.reworded_questions, kind.answers, kind.reworded_answers)
    )
    return Pair(
        fill(question, person, person.facts),
        fill(answer, person, person.facts),
        fill(reworded_question, person, person.facts),
        fill(reworded, person, person.facts),
        wrong_answers(person, number, reworded, 5, rng),
        answer,
    )


def wrong_answers(person: Person, number: int, wording: str, count: int, rng: random.Random) -> list[str]:
    """Wrong answers in one wording, with the facts of biographies that nobody has.

    Args:
        person: whom the question is about.
        number: of the kind of question.
        wording: template of the answers.
        count: how many.
        rng: source of the draws.

    Returns:
        `count` different answers. None holds any of the right values, in whatever slot.
    """
    right = {person.facts[slot] for slot in KINDS[number].slots}
    wrong: list[str] = []
    while len(wrong) < count:
        facts = draw_facts(rng)
        text = fill(wording, person, facts)
        if right.isdisjoint(facts[slot] for slot in KINDS[number].slots) and text not in wrong:
            wrong.append(text)
    return wrong


def wrong_values(right: str, values: list[str], count: int, rng: random.Random) -> list[str]:
    """`count` different values, all other than the right one."""
    return rng.sample([value for value in values if value != right], count)


def fill(wording: str, person: Person, facts: dict[str, str]) -> str:
    """A wording with the person's name, pronouns and the given facts filled in; its first letter is a capital."""
    they, them, their = ("she", "her", "her") if person.woman else ("he", "him", "his")
    text = wording.format(
        name=person.name, they=they, them=them, their=their, They=they.capitalize(), Their=their.capitalize(), **facts
    )
    return text[0].upper() + text[1:]
