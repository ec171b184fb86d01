"""Out-of-distribution responses, for which a reward model should report a high distance.

The texts were written for this project: other languages, code, gibberish, blanks, and the repeated prompt.
"""

import string
from collections.abc import Callable
from random import Random

OTHER_LANGUAGES = (
    "Das Wasser im Fluss steigt seit gestern, und die Brücke bleibt bis morgen gesperrt.",
    "Wer im Herbst Zwiebeln setzt, hat im Frühjahr die ersten Blumen im Garten.",
    "Le train de nuit arrive vers six heures, mais le café de la gare ouvre plus tard.",
    "On trouve ces champignons sous les chênes après une semaine de pluie douce.",
    "La biblioteca cierra a las ocho y los libros se devuelven en la entrada.",
    "Mi abuela guardaba las semillas en frascos de vidrio con etiquetas azules.",
    "Il pane si lascia riposare tutta la notte prima di metterlo nel forno caldo.",
    "Pociąg do Gdańska odjeżdża z drugiego peronu, a bilety kupuje się w automacie.",
    "Köprünün altında balık tutanlar sabah erkenden gelir ve öğlene kadar kalır.",
    "Зимой озеро замерзает, и дети катаются на коньках до позднего вечера.",
    "春天的时候，院子里的梨树开满了白色的花。",
    "駅前のパン屋は朝七時に開いて、昼にはもう売り切れる。",
)
CODE = (
    "def total(rows):\n    return sum(row['price'] * row['count'] for row in rows if row['count'] > 0)",
    "for (let i = 0; i < items.length; i++) {\n  if (!seen.has(items[i].id)) queue.push(items[i]);\n}",
    "SELECT city, COUNT(*) AS n FROM visits WHERE day >= '2024-01-01' GROUP BY city ORDER BY n DESC;",
    "int *grow(int *a, size_t n) {\n  return realloc(a, 2 * n * sizeof *a);\n}",
    "impl Iterator for Steps {\n    type Item = u32;\n    fn next(&mut self) -> Option<u32> { self.0 }\n}",
    "while read -r line; do\n  printf '%s\\n' \"${line%%#*}\" >> out.txt\ndone < in.txt",
    '{"name": "pump-7", "pressure": [3.1, 3.4, 2.9], "valves": {"a": true, "b": false}}',
    ".card > h2 { margin: 0 auto 1rem; color: #334; font: 600 1.2rem/1.4 system-ui; }",
)
BLANKS = (" ", "\n", "...", "\n\n\n", "-", "   .   ", "\u200b", "_ _ _", "?", "\t\t")
ResponseGenerator = Callable[[str, Random], str]


def generate_other_languages(_prompt: str, rng: Random) -> str:
    """Return one to three sentences in other languages than English."""
    return " ".join(rng.sample(OTHER_LANGUAGES, rng.randint(1, 3)))


def generate_code(_prompt: str, rng: Random) -> str:
    """Return program code or data."""
    return "\n\n".join(rng.sample(CODE, rng.randint(1, 2)))


def generate_gibberish(_prompt: str, rng: Random) -> str:
    """Return random letters and digits in groups of word length."""
    letters = string.ascii_lowercase + string.digits
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(rng.randint(6, 40)))


def generate_blanks(_prompt: str, rng: Random) -> str:
    """Return white space or punctuation without words."""
    return rng.choice(BLANKS) * rng.randint(1, 3)


def repeat_prompt(prompt: str, _rng: Random) -> str:
    """Return the prompt."""
    return prompt


GENERATORS: dict[str, ResponseGenerator] = {
    "other languages": generate_other_languages,
    "code": generate_code,
    "gibberish": generate_gibberish,
    "empty": generate_blanks,
    "prompt echo": repeat_prompt,
}
