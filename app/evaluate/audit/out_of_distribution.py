"""Responses that are none: what a reward model should say it does not know about.

All of our own making: other languages, code, gibberish, nothing, and the prompt said back.
"""

import string
from collections.abc import Callable
from random import Random

FOREIGN = (
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
SILENCE = (" ", "\n", "...", "\n\n\n", "-", "   .   ", "\u200b", "_ _ _", "?", "\t\t")
Strange = Callable[[str, Random], str]


def foreign(_prompt: str, rng: Random) -> str:
    """Sentences in other languages."""
    return " ".join(rng.sample(FOREIGN, rng.randint(1, 3)))


def code(_prompt: str, rng: Random) -> str:
    """Programs and data."""
    return "\n\n".join(rng.sample(CODE, rng.randint(1, 2)))


def gibberish(_prompt: str, rng: Random) -> str:
    """Random letters in lumps like words."""
    letters = string.ascii_lowercase + string.digits
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(rng.randint(6, 40)))


def silence(_prompt: str, rng: Random) -> str:
    """Blanks and dots."""
    return rng.choice(SILENCE) * rng.randint(1, 3)


def echo(prompt: str, _rng: Random) -> str:
    """The prompt itself."""
    return prompt


KINDS: dict[str, Strange] = {
    "other languages": foreign,
    "code": code,
    "gibberish": gibberish,
    "empty": silence,
    "prompt echo": echo,
}
