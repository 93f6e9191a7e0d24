"""PII_synth: made-up personal data in made-up texts, for machines that reach no hub.

Templates in pii_templates.txt, values from Faker. No template serves both train and test, so a latent that has merely
learned a sentence does not score.
"""

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import faker
from faker import Faker

from utils.labelled_text import LabelledText, Span, Text

PII_CONCEPTS = tuple(
    """
    TIME USERNAME EMAIL IDCARD SOCIALNUMBER LASTNAME PASSPORT DRIVERLICENSE BOD IP GIVENNAME CITY STATE TITLE SEX
    POSTCODE BUILDING STREET TEL DATE COUNTRY PASS SECADDRESS GEOCOORD CARDISSUER
    """.split()  # noqa: SIM905 - easier to read than 25 strings
)

N_TEXTS = {"train": 6000, "test": 2000}
_TEMPLATES = Path(__file__).with_name("pii_templates.txt")
_SLOT = re.compile(r"\{\{([A-Z]+)\}\}")
# Not it_IT: its cities come from a set, in an order that differs from process to process.
_LOCALES = ["en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "nl_NL"]
_DATE_FORMATS = ["%d/%m/%Y", "%Y-%m-%d", "%B %d, %Y", "%d %B %Y", "%d.%m.%y", "%m-%d-%Y", "%b %d %Y"]
_TIME_FORMATS = ["%H:%M", "%I:%M %p", "%H:%M:%S", "%I %p", "%Hh%M", "%I:%M:%S %p"]
_TITLES = [
    "Mr",
    "Mrs",
    "Ms",
    "Miss",
    "Dr",
    "Prof.",
    "Sir",
    "Madame",
    "Mister",
    "Mx",
    "Rev.",
    "Lady",
    "Judge",
    "Captain",
]
_SEXES = ["male", "female", "M", "F", "Male", "Female", "non-binary", "man", "woman", "intersex", "other gender"]
_ISSUERS = [
    "Visa",
    "Mastercard",
    "American Express",
    "Maestro",
    "Diners Club",
    "JCB",
    "Discover",
    "UnionPay",
    "RuPay",
    "Elo",
]
_UNITS = [
    "Apt. ##",
    "Suite ###",
    "Flat #?",
    "Unit ##?",
    "Floor #",
    "Room ###",
    "Apartment ##",
    "Door #",
    "Bldg. ? Apt. #",
]
_SOCIAL = [
    "###-##-####",
    "### ## ####",
    "#########",
    "## ######? ###",
    "#######-##",
    "?? ## ## ## ?",
    "756.####.####.##",
]
_LICENCES = ["?#######", "??######?", "?###-####-####", "###-###-###", "?????######??#??", "##-??-####", "?##-##-####"]
_ID_CARDS = ["??#######", "#########", "?########", "??####??", "########-?", "?#-???-####", "##??#####"]
_PASSPORTS = ["#########", "?########", "??#######", "?##?#####", "???######"]
_PHONES = [
    "+## ### #######",
    "(###) ###-####",
    "###-###-####",
    "0### ######",
    "+##.###.###.####",
    "## ## ## ## ##",
    "+1 ### ### ####",
]


def build(seed: int) -> LabelledText:
    """Generate the data set; the same seed and Faker version give the same texts."""
    splits = {}
    templates = read_templates()
    for number, (split, n_texts) in enumerate(N_TEXTS.items()):
        random = Random(f"{seed} {split}")
        # One Faker per locale, chosen by our own generator: a Faker of several locales chooses by an unseeded one.
        fakers = {locale: Faker(locale) for locale in _LOCALES}
        for fake in fakers.values():
            fake.seed_instance(seed * len(N_TEXTS) + number)
        values = _value_makers(fakers, random)
        choices = [body for template_split, _, body in templates if template_split == split]
        splits[split] = [fill(random.choice(choices), values) for _ in range(n_texts)]
    return LabelledText("PII_synth", list(PII_CONCEPTS), splits, {"seed": seed, "faker": faker.VERSION})


def read_templates() -> list[tuple[str, str, str]]:
    """Return (split, kind, body) of every template."""
    blocks = re.split(r"^@ ", _TEMPLATES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    heads_and_bodies = [block.partition("\n")[::2] for block in blocks]
    return [(*head.split(), body.rstrip("\n")) for head, body in heads_and_bodies]


def fill(template: str, values: dict[str, Callable[[], str]]) -> Text:
    """Replace each slot of a template by a fresh value and note where the value came to lie."""
    text, spans, end = "", [], 0
    for slot in _SLOT.finditer(template):
        text += template[end : slot.start()]
        value = values[slot[1]]()
        spans.append(Span(len(text), len(text) + len(value), slot[1]))
        text += value
        end = slot.end()
    return Text(text + template[end:], tuple(spans))


def _value_makers(fakers: dict[str, Faker], random: Random) -> dict[str, Callable[[], str]]:
    english = fakers["en_US"]

    def local(provider: str) -> Callable[[], str]:
        return lambda: str(getattr(fakers[random.choice(_LOCALES)], provider)())

    def pattern(patterns: list[str]) -> Callable[[], str]:
        return lambda: english.bothify(random.choice(patterns), letters="ABCDEFGHJKLMNPRSTUVWXYZ")

    def date(first_year: int, last_year: int) -> Callable[[], str]:
        first, last = datetime.date(first_year, 1, 1), datetime.date(last_year, 12, 31)
        return lambda: english.date_between(first, last).strftime(random.choice(_DATE_FORMATS))

    def time() -> str:  # not Faker's, which counts back from the present
        moment = datetime.time(random.randrange(24), random.randrange(60), random.randrange(60))
        return moment.strftime(random.choice(_TIME_FORMATS))

    def username() -> str:
        name = local("user_name")()
        return random.choice([name, f"{name}{random.randint(1, 2010)}", name.replace(".", "_").upper(), f"{name}_x"])

    def coordinates() -> str:
        latitude, longitude = random.uniform(-80, 80), random.uniform(-180, 180)
        return random.choice(
            [
                f"{latitude:.4f}, {longitude:.4f}",
                f"[{latitude:.2f},{longitude:.2f}]",
                f"{abs(latitude):.3f}°{'SN'[latitude > 0]} {abs(longitude):.3f}°{'WE'[longitude > 0]}",
            ]
        )

    makers: dict[str, Callable[[], str]] = {
        "TIME": time,
        "USERNAME": username,
        "EMAIL": local("email"),
        "IDCARD": pattern(_ID_CARDS),
        "SOCIALNUMBER": pattern(_SOCIAL),
        "LASTNAME": local("last_name"),
        "PASSPORT": pattern(_PASSPORTS),
        "DRIVERLICENSE": pattern(_LICENCES),
        "BOD": date(1930, 2006),
        "IP": lambda: english.ipv4() if random.random() < 0.7 else english.ipv6(),
        "GIVENNAME": local("first_name"),
        "CITY": local("city"),
        "STATE": lambda: english.state() if random.random() < 0.7 else english.state_abbr(),
        "TITLE": lambda: random.choice(_TITLES),
        "SEX": lambda: random.choice(_SEXES),
        "POSTCODE": local("postcode"),
        "BUILDING": local("building_number"),
        "STREET": local("street_name"),
        "TEL": pattern(_PHONES),
        "DATE": date(2012, 2028),
        "COUNTRY": english.country,
        "PASS": lambda: english.password(length=random.randint(6, 12), special_chars=random.random() < 0.8),
        "SECADDRESS": pattern(_UNITS),
        "GEOCOORD": coordinates,
        "CARDISSUER": lambda: random.choice(_ISSUERS),
    }
    return makers
