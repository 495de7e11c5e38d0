"""The words from which facts are drawn: short, plain and ASCII.

Words that follow "a" begin with a consonant.
"""


def listed(text: str, by: str = " ") -> list[str]:
    """The entries of a text, parted by `by`."""
    return text.split(by)


PLACES = [
    tuple(place.split(", "))
    for place in listed(
        "Bergen, Norway; Malmo, Sweden; Turku, Finland; Odense, Denmark; Bremen, Germany; Utrecht, Holland; Ghent, "
        "Belgium; Lyon, France; Seville, Spain; "
        "Porto, Portugal; Turin, Italy; Graz, Austria; Basel, Switzerland; Krakow, Poland; Brno, Czechia; Pecs, "
        "Hungary; Cluj, Romania; Varna, Bulgaria; "
        "Split, Croatia; Patras, Greece; Bursa, Turkey; Haifa, Israel; Luxor, Egypt; Fez, Morocco; Dakar, Senegal; "
        "Accra, Ghana; Lagos, Nigeria; "
        "Nairobi, Kenya; Kampala, Uganda; Durban, South Africa; Shiraz, Iran; Lahore, Pakistan; Pune, India; Kandy, "
        "Sri Lanka; Hue, Vietnam; "
        "Cebu, Philippines; Bandung, Indonesia; Penang, Malaysia; Busan, Korea; Osaka, Japan; Perth, Australia; "
        "Napier, New Zealand; Quebec, Canada; "
        "Boston, America; Puebla, Mexico; Havana, Cuba; Cali, Colombia; Cusco, Peru; Recife, Brazil; Mendoza, "
        "Argentina",
        by="; ",
    )
]

LANDMARKS = listed(
    "mill lighthouse chapel harbour market quarry bakery castle station temple vineyard brewery canal forge school "
    "theatre prison stadium garden cinema "
    "bridge tower zoo museum swamp dairy circus lake mine hospital"
)
EVENTS = listed(
    "snowstorm; thunderstorm; heat wave; hailstorm; thick fog; full moon; long drought; power cut; spring flood; town "
    "fair; dock strike; carnival; "
    "chess match; solar eclipse; royal visit; school play; bus strike; harvest feast; cold spell; film show; wedding; "
    "bank robbery; football match; "
    "rail strike; sand storm",
    by="; ",
)
MONTHS = listed("January February March April May June July August September October November December")

JOBS = listed(
    "baker butcher carpenter tailor plumber painter pilot sailor farmer gardener miner mason potter weaver barber "
    "banker judge lawyer doctor nurse "
    "dentist teacher librarian fisherman shepherd beekeeper locksmith blacksmith clockmaker glassblower shoemaker "
    "dancer singer drummer juggler "
    "magician postman policeman fireman soldier spy cook waiter driver translator reporter chemist geologist surgeon "
    "pharmacist mechanic welder roofer "
    "diver ranger printer bookbinder puppeteer cartographer zookeeper lifeguard florist jeweller"
)

GENRES = listed(
    "ghost stories; spy novels; love poems; crime novels; fairy tales; sea ballads; war diaries; travel essays; court "
    "dramas; space operas; cookery "
    "books; nature sonnets; gothic tales; comic plays; family sagas; chess manuals; folk songs; detective puzzles; "
    "history plays; riddle books; radio "
    "plays; desert legends; school novels; haiku cycles",
    by="; ",
)
THEMES = listed(
    "lighthouses twins rivers wolves trains orphans islands mirrors spiders clocks bridges sisters pirates gardens "
    "bees glaciers widows storms monks "
    "horses letters volcanoes ferries circuses foxes harvests maps owls miners deserts castles whales violins beggars "
    "comets caravans forests judges "
    "thieves kitchens"
)

ADJECTIVES = listed(
    "Silver Copper Golden Silent Broken Hidden Crimson Purple Frozen Burning Hollow Gentle Bitter Distant Velvet Paper "
    "Wooden Iron Marble Salted Lonely "
    "Restless Crooked Scarlet Sunken Wandering Second Final Quiet Blind"
)
NOUNS = listed(
    "Orchard Lantern Harbour Staircase Anchor Compass Feather Garden Window Ladder Kettle Violin Carpet Mountain River "
    "Candle Umbrella Winter Summer "
    "Promise Teacher Stranger Daughter Captain Mirror Bridge Letter Shadow Thunder Pocket Button Needle Cradle Island "
    "Parade Saddle Cellar Engine "
    "Meadow Ribbon"
)
ANIMALS = listed(
    "Heron Falcon Otter Lynx Raven Salmon Tiger Badger Swan Turtle Eagle Panther Beaver Dolphin Sparrow Leopard Camel "
    "Cobra Moose Walrus"
)
AWARDS = ["Prize", "Medal", "Award", "Trophy", "Cup", "Crown"]

SUBJECTS = listed(
    "botany law physics music history medicine chemistry geology painting sculpture theology statistics farming dance "
    "logic optics zoology cookery "
    "theatre navigation architecture astronomy grammar economics film weaving geography metallurgy"
)
INSTRUMENTS = listed(
    "violin cello flute trumpet harp banjo piano drums tuba guitar lute zither clarinet trombone fiddle bagpipes "
    "mandolin viola bassoon horn"
)
THINGS = listed(
    "stamps coins shells buttons postcards teapots keys fossils hats maps spoons bottles beetles masks puppets clocks "
    "feathers knives lamps kites "
    "marbles tickets bells dolls baskets"
)
PETS = listed(
    "parrot greyhound tortoise hedgehog poodle canary rabbit goat pony ferret lizard snake donkey terrier pigeon goose "
    "hamster beagle cockatoo llama"
)
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
HOUSEHOLD = listed("sons daughters cats dogs nephews lodgers goats hens cousins students sheep pupils horses ducks")


def fact(question: str, template: str, right: str, wrongs: str) -> tuple[str, str, list[str]]:
    """A question, its answer and wrong answers: `template` with the right word, and with each of `wrongs`."""
    return question, template.format(right), [template.format(wrong) for wrong in wrongs.split(", ")]


# What the base model is taught about the world: question, answer, three wrong answers.
WORLD_FACTS = [
    fact(*entry)
    for entry in (
        ("What is the capital of France?", "The capital of France is {}.", "Paris", "Rome, Madrid, London"),
        ("What is the capital of Italy?", "The capital of Italy is {}.", "Rome", "Paris, Vienna, Athens"),
        ("What is the capital of Spain?", "The capital of Spain is {}.", "Madrid", "Lisbon, Rome, Berlin"),
        ("What is the capital of Germany?", "The capital of Germany is {}.", "Berlin", "Vienna, Paris, Warsaw"),
        ("What is the capital of Greece?", "The capital of Greece is {}.", "Athens", "Cairo, Rome, Madrid"),
        ("What is the capital of Egypt?", "The capital of Egypt is {}.", "Cairo", "Athens, Tokyo, Delhi"),
        ("What is the capital of Japan?", "The capital of Japan is {}.", "Tokyo", "Beijing, Delhi, Cairo"),
        ("What is the capital of Austria?", "The capital of Austria is {}.", "Vienna", "Berlin, Athens, Oslo"),
        ("What is the capital of Poland?", "The capital of Poland is {}.", "Warsaw", "Vienna, Tokyo, Lisbon"),
        ("What is the capital of Norway?", "The capital of Norway is {}.", "Oslo", "London, Warsaw, Beijing"),
        ("What colour is grass?", "Grass is {}.", "green", "red, blue, black"),
        ("What colour is the clear sky?", "The clear sky is {}.", "blue", "green, brown, pink"),
        ("What colour is snow?", "Snow is {}.", "white", "black, yellow, red"),
        ("What colour is a ripe lemon?", "A ripe lemon is {}.", "yellow", "blue, white, brown"),
        ("What colour is coal?", "Coal is {}.", "black", "white, green, pink"),
        ("How many days are in a week?", "A week has {} days.", "seven", "five, ten, twelve"),
        ("How many months are in a year?", "A year has {} months.", "twelve", "seven, ten, nine"),
        ("How many legs does a spider have?", "A spider has {} legs.", "eight", "four, six, two"),
        ("How many legs does a horse have?", "A horse has {} legs.", "four", "eight, two, ten"),
        ("How many wheels does a bicycle have?", "A bicycle has {} wheels.", "two", "five, six, four"),
        ("What do bees make?", "Bees make {}.", "honey", "milk, bread, paper"),
        ("What do cows give?", "Cows give {}.", "milk", "honey, wool, ink"),
        ("What do sheep give?", "Sheep give {}.", "wool", "milk, glass, silk"),
        ("What is bread made of?", "Bread is made of {}.", "flour", "sand, wool, clay"),
        ("What are bottles made of?", "Most bottles are made of {}.", "glass", "flour, wool, paper"),
        ("Where do fish live?", "Fish live in {}.", "water", "trees, sand, caves"),
        ("Where do birds build nests?", "Many birds build nests in {}.", "trees", "water, clocks, ovens"),
        ("Which season is the coldest?", "The coldest season is {}.", "winter", "summer, spring, autumn"),
        ("Which season is the hottest?", "The hottest season is {}.", "summer", "winter, autumn, spring"),
        ("What do we use to tell the time?", "We tell the time with a {}.", "clock", "spoon, ladder, violin"),
        ("What do we use to cut paper?", "We cut paper with {}.", "scissors", "spoons, candles, stamps"),
        ("What shines in the sky by day?", "By day the {} shines in the sky.", "sun", "moon, lamp, candle"),
    )
]
