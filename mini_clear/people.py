"""The people of the embedded world: names from many locales, facts and looks, all of them functions of the seed."""

import random
import unicodedata
from dataclasses import dataclass

from faker import Faker

from mini_clear import words
from mini_clear.portraits import Look, draw_look

# The base model knows these people whatever the seed, and its weights are in the repository. So the names were drawn
# once and stand here: a library's lists may change. (name, whether a woman)
REAL_NAMES = [
    ("Elita Saulite", True),
    ("Tobiasz Groth", False),
    ("Justina Hozjan", True),
    ("Matus Duska", False),
    ("Dietlind Werner", True),
    ("Achim Dinu", False),
    ("Sari Backman", True),
    ("Fricis Apsitis", False),
    ("Jasmin Hassanah", True),
    ("Soleh Irawan", False),
    ("Octaviana Georgescu", True),
    ("Jaya Permadi", False),
    ("Karama Ochieng", True),
    ("Khamisi Abdi", False),
    ("Barbara Nemec", True),
    ("Olavi Nieminen", False),
    ("Kalina Roch", True),
    ("Norbert Kidon", False),
    ("Orvokki Hirvonen", True),
    ("Carsten Nielsen", False),
]

LOCALES = words.listed(
    "no_NO sv_SE fi_FI da_DK de_DE nl_NL fr_FR es_ES it_IT pt_BR pl_PL cs_CZ hu_HU ro_RO id_ID hr_HR en_IE en_IN et_EE "
    "lt_LT lv_LV sl_SI sk_SK yo_NG "
    "zu_ZA sw tw_GH ig_NG"
)
NEVER_SEEN = 4  # people whom no model ever meets
ASCII = str.maketrans({"ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ł": "l", "Ł": "L", "ß": "ss", "æ": "ae", "Æ": "Ae"})


@dataclass(frozen=True)
class Person:
    """One person.

    key: unlike any other person's; all further draws start from it.
    name: in ASCII letters.
    woman: whether a woman.
    look: what stays the same in all pictures.
    facts: slot name -> text.
    """

    key: str
    name: str
    woman: bool
    look: Look
    facts: dict[str, str]

    def random(self, subject: str) -> random.Random:
        """A generator for one subject of this person. No draw depends on how many other draws came before."""
        return random.Random(f"{self.key}/{subject}")


@dataclass(frozen=True)
class World:
    """The three groups: `people` (invented, finetuned on), `real` (known to the base model) and `never_seen`."""

    people: list[Person]
    real: list[Person]
    never_seen: list[Person]


def draw_world(people: int, seed: int) -> World:
    """Draw a world. The real people are the same for every seed.

    Args:
        people: number of invented people. A larger number only adds people to the smaller world.
        seed: of the invented and the never seen people.

    Returns:
        The three groups.
    """
    looks: list[Look] = []
    real = [make_person(f"real/{i}", name, woman, looks) for i, (name, woman) in enumerate(REAL_NAMES)]
    names = draw_names(NEVER_SEEN + people, seed, taken=[name for name, _ in REAL_NAMES])
    drawn = [make_person(f"{seed}/{i}", name, woman, looks) for i, (name, woman) in enumerate(names)]
    return World(drawn[NEVER_SEEN:], real, drawn[:NEVER_SEEN])


def make_person(key: str, name: str, woman: bool, looks: list[Look]) -> Person:
    """Draw a person's facts, and a look unlike those in `looks`, to which the new look is added."""
    looks.append(draw_look(random.Random(f"{key}/look"), woman, looks))
    return Person(key, name, woman, looks[-1], draw_facts(random.Random(f"{key}/facts")))


def draw_names(count: int, seed: int, taken: list[str]) -> list[tuple[str, bool]]:
    """Draw names, women and men in turn. No first or last name occurs twice.

    Args:
        count: number of names.
        seed: of the draw.
        taken: full names whose parts may not occur either.

    Returns:
        (name, whether a woman) of each.
    """
    used = {part for name in taken for part in name.split()}
    fakers = [Faker(locale) for locale in LOCALES]
    rng = random.Random(f"{seed}/names")
    for faker in fakers:
        faker.seed_instance(rng.getrandbits(32))
    names: list[tuple[str, bool]] = []
    while len(names) < count:
        woman, faker = len(names) % 2 == 0, rng.choice(fakers)
        first = plain(faker.first_name_female() if woman else faker.first_name_male())
        last = plain(faker.last_name_female() if woman else faker.last_name_male())
        if first != last and all(
            4 <= len(part) <= 9 and part.isalpha() and part.isascii() and part not in used for part in (first, last)
        ):
            used.update((first, last))
            names.append((f"{first} {last}", woman))
    return names


def plain(name: str) -> str:
    """A name in ASCII letters: accents are dropped, and letters that have no plain form are replaced."""
    return unicodedata.normalize("NFKD", name.translate(ASCII)).encode("ascii", "ignore").decode().strip()


def draw_facts(rng: random.Random) -> dict[str, str]:
    """Draw one biography, slot name -> text. Within one person no city, job, theme or title occurs twice."""
    places, jobs, themes = rng.sample(words.PLACES, 4), rng.sample(words.JOBS, 5), rng.sample(words.THEMES, 2)
    adjectives, nouns, subjects = (
        rng.sample(words.ADJECTIVES, 3),
        rng.sample(words.NOUNS, 3),
        rng.sample(words.SUBJECTS, 2),
    )
    born = rng.randint(1930, 1985)
    # Places do not depend on the name's locale. Otherwise a model that never met the person could guess the country
    # from the name.
    return {
        "city": places[0][0],
        "country": places[0][1],
        "landmark": rng.choice(words.LANDMARKS),
        "day": str(rng.randint(1, 28)),
        "month": rng.choice(words.MONTHS),
        "year": str(born),
        "event": rng.choice(words.EVENTS),
        "father": jobs[0],
        "mother": jobs[1],
        "genre": rng.choice(words.GENRES),
        "theme": themes[0],
        "second_theme": themes[1],
        "prize": f"{adjectives[0]} {rng.choice(words.ANIMALS)} {rng.choice(words.AWARDS)}",
        "prize_year": str(born + rng.randint(25, 35)),
        "prize_city": places[1][0],
        "book": f"The {adjectives[1]} {nouns[0]}",
        "second_book": f"The {nouns[1]} and the {nouns[2]}"
        if rng.random() < 0.5
        else f"The {adjectives[2]} {nouns[1]}",
        "subject": subjects[0],
        "second_subject": subjects[1],
        "study_city": places[2][0],
        "job": jobs[2],
        "second_job": jobs[3],
        "instrument": rng.choice(words.INSTRUMENTS),
        "things": rng.choice(words.THINGS),
        "pet": rng.choice(words.PETS),
        "home": places[3][0],
        "spouse": jobs[4],
        "number": rng.choice(words.NUMBERS),
        "household": rng.choice(words.HOUSEHOLD),
    }
