"""A small grammar that says the same thing in English, German, Spanish and French.

    sentence(rng, split="test").text("de")      ->  "Der Mann kauft drei rote Häuser im Garten."

A sentence is a list of phrases in the same order in all four languages, so that a sentence cut off after a phrase can
still be translated. A tenth of all meanings is held out for the split "test". The model in convert/toy never saw them
in any language.
"""

import random
import zlib
from dataclasses import dataclass, replace

LANGUAGES = ("en", "de", "es", "fr")
TEST_SHARE = 10  # one meaning in ten is held out

# Each row: English, German, Spanish, French.
SUBJECTS = (
    ("the man", "der Mann", "el hombre", "l'homme"),
    ("the woman", "die Frau", "la mujer", "la femme"),
    ("the boy", "der Junge", "el niño", "le garçon"),
    ("the girl", "das Mädchen", "la niña", "la fille"),
    ("the teacher", "der Lehrer", "el profesor", "le professeur"),
    ("my brother", "mein Bruder", "mi hermano", "mon frère"),
    ("my sister", "meine Schwester", "mi hermana", "ma soeur"),
    ("Anna", "Anna", "Anna", "Anna"),
    ("Thomas", "Thomas", "Thomas", "Thomas"),
    ("Martin", "Martin", "Martin", "Martin"),
)
TRANSITIVE_VERBS = (
    ("buys", "kauft", "compra", "achète"),
    ("sees", "sieht", "ve", "voit"),
    ("finds", "findet", "encuentra", "trouve"),
    ("draws", "zeichnet", "dibuja", "dessine"),
    ("sells", "verkauft", "vende", "vend"),
    ("loses", "verliert", "pierde", "perd"),
)
INTRANSITIVE_VERBS = (
    ("sings", "singt", "canta", "chante"),
    ("sleeps", "schläft", "duerme", "dort"),
    ("works", "arbeitet", "trabaja", "travaille"),
    ("reads", "liest", "lee", "lit"),
    ("plays", "spielt", "juega", "joue"),
    ("waits", "wartet", "espera", "attend"),
)
NUMBERS = (
    ("two", "zwei", "dos", "deux"),
    ("three", "drei", "tres", "trois"),
    ("four", "vier", "cuatro", "quatre"),
    ("five", "fünf", "cinco", "cinq"),
    ("six", "sechs", "seis", "six"),
    ("seven", "sieben", "siete", "sept"),
    ("eight", "acht", "ocho", "huit"),
    ("nine", "neun", "nueve", "neuf"),
    ("ten", "zehn", "diez", "dix"),
)
# Singular with its article, and plural. The article determines the gender.
NOUNS = (
    (("the house", "houses"), ("das Haus", "Häuser"), ("la casa", "casas"), ("la maison", "maisons")),
    (("the dog", "dogs"), ("der Hund", "Hunde"), ("el perro", "perros"), ("le chien", "chiens")),
    (("the cat", "cats"), ("die Katze", "Katzen"), ("el gato", "gatos"), ("le chat", "chats")),
    (("the car", "cars"), ("das Auto", "Autos"), ("el coche", "coches"), ("la voiture", "voitures")),
    (("the book", "books"), ("das Buch", "Bücher"), ("el libro", "libros"), ("le livre", "livres")),
    (("the apple", "apples"), ("der Apfel", "Äpfel"), ("la manzana", "manzanas"), ("la pomme", "pommes")),
    (("the flower", "flowers"), ("die Blume", "Blumen"), ("la flor", "flores"), ("la fleur", "fleurs")),
    (("the chair", "chairs"), ("der Stuhl", "Stühle"), ("la silla", "sillas"), ("la chaise", "chaises")),
)
# English; German predicative, attributive; Spanish and French m. sg., f. sg., m. pl., f. pl.
ADJECTIVES = (
    ("red", ("rot", "rote"), ("rojo", "roja", "rojos", "rojas"), ("rouge", "rouge", "rouges", "rouges")),
    ("green", ("grün", "grüne"), ("verde", "verde", "verdes", "verdes"), ("vert", "verte", "verts", "vertes")),
    ("black", ("schwarz", "schwarze"), ("negro", "negra", "negros", "negras"), ("noir", "noire", "noirs", "noires")),
    (
        "white",
        ("weiß", "weiße"),
        ("blanco", "blanca", "blancos", "blancas"),
        ("blanc", "blanche", "blancs", "blanches"),
    ),
    ("big", ("groß", "große"), ("grande", "grande", "grandes", "grandes"), ("grand", "grande", "grands", "grandes")),
    (
        "small",
        ("klein", "kleine"),
        ("pequeño", "pequeña", "pequeños", "pequeñas"),
        ("petit", "petite", "petits", "petites"),
    ),
    ("old", ("alt", "alte"), ("viejo", "vieja", "viejos", "viejas"), ("vieux", "vieille", "vieux", "vieilles")),
    ("new", ("neu", "neue"), ("nuevo", "nueva", "nuevos", "nuevas"), ("nouveau", "nouvelle", "nouveaux", "nouvelles")),
)
BEFORE_FRENCH_NOUN = {"big", "small", "old", "new"}
PLACES = (
    ("in the garden", "im Garten", "en el jardín", "dans le jardin"),
    ("in the kitchen", "in der Küche", "en la cocina", "dans la cuisine"),
    ("in the city", "in der Stadt", "en la ciudad", "dans la ville"),
    ("on the street", "auf der Straße", "en la calle", "dans la rue"),
    ("at school", "in der Schule", "en la escuela", "à l'école"),
)
TIMES = (
    ("today", "heute", "hoy", "aujourd'hui"),
    ("now", "jetzt", "ahora", "maintenant"),
    ("every day", "jeden Tag", "cada día", "chaque jour"),
    ("in the morning", "am Morgen", "por la mañana", "le matin"),
)
COPULA = ("is", "ist", "es", "est")
WHERE_IS = ("where is", "wo ist", "dónde está", "où est")


@dataclass(frozen=True)
class Phrase:
    """One phrase in every language. `ends[language]` has the indices of the words that may end a sentence."""

    words: dict[str, tuple[str, ...]]
    ends: dict[str, frozenset[int]]


@dataclass(frozen=True)
class Sentence:
    """A meaning as phrases. `whole` is false if the first phrases are cut off; it then starts in lower case."""

    phrases: tuple[Phrase, ...]
    mark: str = "."
    whole: bool = True

    def words(self, language: str, pnc: bool = True, count: int | None = None) -> list[str]:
        """The first `count` words, or all. With pnc, the last one gets the mark if the sentence may end there."""
        words = [word for phrase in self.phrases for word in phrase.words[language]]
        may_end = [i in phrase.ends[language] for phrase in self.phrases for i in range(len(phrase.words[language]))]
        words, may_end = words[:count], may_end[:count]
        if not pnc:
            return [word.lower() for word in words]
        if self.whole:
            words[0] = words[0][0].upper() + words[0][1:]
            if self.mark == "?" and language == "es":
                words[0] = "¿" + words[0]
        if may_end[-1]:
            words[-1] += self.mark
        return words

    def text(self, language: str, pnc: bool = True, count: int | None = None) -> str:
        """`words` joined by single spaces."""
        return " ".join(self.words(language, pnc, count))

    def first(self, n: int) -> "Sentence":
        """The sentence cut off after n phrases."""
        return replace(self, phrases=self.phrases[:n])

    def after(self, n: int) -> "Sentence":
        """The sentence without its first n phrases."""
        return replace(self, phrases=self.phrases[n:], whole=self.whole and n == 0)

    @property
    def is_test(self) -> bool:
        """Whether the meaning is held out from training, which a hash of its English words decides."""
        english = " ".join(word for phrase in self.phrases for word in phrase.words["en"])
        return zlib.crc32(english.encode()) % TEST_SHARE == 0


def sentence(rng: random.Random, split: str | None = None) -> Sentence:
    """A random sentence. split: "test" for held-out meanings only, "train" for the others, None for any."""
    if split not in ("train", "test", None):
        raise ValueError(f"split {split!r} is not valid; must be 'train', 'test' or None")
    while True:
        candidate = rng.choices(GRAMMAR, weights=(7, 4, 5, 4))[0](rng)
        if split is None or candidate.is_test == (split == "test"):
            return candidate


def vocabulary(language: str) -> list[str]:
    """Every word form of the grammar in a language, sorted, as written inside a sentence."""
    column = LANGUAGES.index(language)
    rows = (*SUBJECTS, *TRANSITIVE_VERBS, *INTRANSITIVE_VERBS, *NUMBERS, *PLACES, *TIMES, COPULA, WHERE_IS)
    texts = [row[column] for row in rows] + [form for noun in NOUNS for form in noun[column]]
    for adjective in ADJECTIVES:
        forms = adjective[column]
        texts += [forms] if isinstance(forms, str) else list(forms)
    return sorted({word for text in texts for word in text.split()})


def _transitive(rng: random.Random) -> Sentence:
    number, noun = rng.choice(NUMBERS), rng.choice(NOUNS)
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.6 else None
    objects = _noun_phrase(number, noun, adjective, plural=True, ends=True)
    head = (_phrase(rng.choice(SUBJECTS)), _phrase(rng.choice(TRANSITIVE_VERBS)), objects)
    return Sentence(head + _adverbials(rng))


def _intransitive(rng: random.Random) -> Sentence:
    head = (_phrase(rng.choice(SUBJECTS)), _phrase(rng.choice(INTRANSITIVE_VERBS), ends=True))
    return Sentence(head + _adverbials(rng))


def _description(rng: random.Random) -> Sentence:
    noun, quality = rng.choice(NOUNS), rng.choice(ADJECTIVES)
    adjective = rng.choice([a for a in ADJECTIVES if a is not quality]) if rng.random() < 0.4 else None
    subject = _noun_phrase(None, noun, adjective, plural=False, ends=False)
    forms = (quality[0], quality[1][0], quality[2][_form(noun[2], False)], quality[3][_form(noun[3], False)])
    return Sentence((subject, _phrase(COPULA), _phrase(forms, ends=True)))


def _question(rng: random.Random) -> Sentence:
    if rng.random() < 0.3:
        return Sentence((_phrase(WHERE_IS), _phrase(rng.choice(SUBJECTS), ends=True)), mark="?")
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.5 else None
    thing = _noun_phrase(None, rng.choice(NOUNS), adjective, plural=False, ends=True)
    return Sentence((_phrase(WHERE_IS), thing), mark="?")


GRAMMAR = (_transitive, _intransitive, _description, _question)


def _adverbials(rng: random.Random) -> tuple[Phrase, ...]:
    place = (_phrase(rng.choice(PLACES), ends=True),) if rng.random() < 0.4 else ()
    time = (_phrase(rng.choice(TIMES), ends=True),) if rng.random() < 0.4 else ()
    return place + time


def _phrase(row: tuple[str, ...], ends: bool = False) -> Phrase:
    words = {language: tuple(text.split()) for language, text in zip(LANGUAGES, row, strict=True)}
    return Phrase(words, {language: frozenset({len(w) - 1} if ends else ()) for language, w in words.items()})


def _form(noun: tuple[str, str], plural: bool) -> int:
    return 2 * plural + (noun[0].split()[0] == "la")


def _noun_phrase(number, noun, adjective, plural: bool, ends: bool) -> Phrase:
    """A number or article with a noun and an adjective that agrees, in each language's word order."""
    words, may_end = {}, {}
    for column, language in enumerate(LANGUAGES):
        singular, plural_form = noun[column]
        first, name = (number[column], plural_form) if plural else singular.split()
        parts, noun_last = [first, name], True
        if adjective and language == "en":
            parts.insert(1, adjective[column])
        elif adjective and language == "de":
            parts.insert(1, adjective[column][1])
        elif adjective:
            noun_last = language == "fr" and adjective[0] in BEFORE_FRENCH_NOUN
            parts.insert(1 if noun_last else 2, adjective[column][_form(noun[column], plural)])
        words[language] = tuple(parts)
        # Both "tres casas" and "tres casas rojas" may end a sentence.
        may_end[language] = frozenset(({len(parts) - 1} | (set() if noun_last else {1})) if ends else ())
    return Phrase(words, may_end)
