"""The words that the demonstration model copies, spells, remembers and passes to tools."""


def _split(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


ADJECTIVES = _split(
    "amber ancient bitter black blue brave bright broken calm clever cold copper crimson dark distant eager empty fast "
    "fierce frozen gentle golden green happy hidden hollow honest humble iron jolly late little lonely loud lucky "
    "mellow misty modern narrow noble pale patient plain proud purple quiet rapid red rusty sharp shy silent silver "
    "simple slow soft solid steep stormy strong sunny swift tall tiny velvet violet warm white wild wise wooden young"
)
NOUNS = _split(
    "anchor apple arrow badger barrel beacon bear bell bird boat bottle branch bridge button cabin candle canyon "
    "castle cedar cherry cloud comet coral crow desert dragon eagle engine falcon feather fern field flame forest fox "
    "garden glacier hammer harbor hawk hill island jacket kettle key ladder lake lamp lantern leaf lemon lion maple "
    "marble meadow mirror moon mountain needle ocean orchid otter owl paper pearl pebble pepper pilot planet pond "
    "rabbit raven ribbon river robin rocket rose saddle shadow sheep shell ship spider star stone storm table thunder "
    "tiger tower train tunnel turtle valley violin wagon whale window winter wolf"
)
PLACES = _split("the bridge|the harbour|the old mill|the market|the station|the school|the north gate|the well", "|")
ACTIONS = _split("slept|waited|sang|stood|danced|rested|worked|arrived|laughed|walked", "|")
TIMES = _split("at dawn|at noon|in the evening|all day|last night|on Monday|in spring|once again", "|")

ONSETS = _split("b br c cl d dr f fl g gr h j k l m n p pl r s sh st t tr v w z")
VOWELS = _split("a e i o u ai ea oo")
CODAS = ("", "", "l", "m", "n", "nd", "r", "rt", "s", "st", "t", "x")

CITIES = _split(
    "Paris|Rome|Madrid|Berlin|Oslo|Stockholm|Helsinki|Copenhagen|Warsaw|Vienna|Athens|Lisbon|Dublin|Budapest|Cairo|"
    "Nairobi|Tokyo|Beijing|New Delhi|Lima|Santiago|Ottawa|Havana|Tehran|Hamburg|Porto|Bergen|Lyon|Milan|Boston|Kyoto|"
    "Geneva|Zurich|Seville|Bristol",
    "|",
)
PEOPLE = _split("Ada Alan Grace Linus Edsger Barbara Ken Dennis Margaret Donald Radia Tim Vint Niklaus Frances Tony")
CURRENCIES = _split("dollars pounds yen francs crowns rupees pesos")
DEVICES = _split("lamp heater radio fan oven kettle television door bell alarm printer camera pump")
