"""Concepts that a feature may be named after: each has a name and the tokens that express it.

A word matches a whole token without its leading space, case-insensitively; a pattern matches the text of a
token as it is.
"""

import re

WORDS = {
    "negation": "no not never none nor nothing neither without cannot n't",
    "refusal": "sorry cannot unable apologize inappropriate refuse unfortunately",
    "doubt": "may might perhaps maybe possibly probably seems unclear unlikely depends",
    "certainty": "always definitely certainly absolutely clearly surely indeed must",
    "contrast": "but however although though yet instead rather while despite",
    "cause": "because since therefore thus so hence due reason causes cause",
    "condition": "if unless whether would could should",
    "addition": "and also moreover furthermore additionally besides plus",
    "first person": "i me my mine myself we us our ours",
    "second person": "you your yours yourself",
    "third person": "he she they him her them his their it its",
    "question words": "what why how who when where which whose",
    "all or none": "all every each everyone everything nobody none any entire",
    "quantity": "many most some few several more less much lot number",
    "comparison": "than better worse best worst as like similar different same",
    "time": "time year years day days today now then before after until century history",
    "place": "country city world states state america europe england china africa",
    "people": "people person man woman men women children child friend family",
    "health": "health doctor medical disease body blood treatment symptoms drug drugs",
    "law": "law laws legal illegal police crime court government rights",
    "money": "money pay cost price buy sell financial business",
    "harm": "harm dangerous hurt kill violence attack weapon damage risk safety",
    "help": "help helpful assist support provide offer advice",
    "knowledge": "know known believe think thought true false fact facts evidence research science",
    "feelings": "feel feeling love hate happy sad fear angry anger",
    "instruction": "please write give make use try create list explain describe",
    "politeness": "please thank thanks welcome hello hi dear",
    "articles": "the a an this that these those",
    "prepositions": "of in on at to from by with for about into over under",
    "forms of be": "is are was were be been being am",
    "modal verbs": "can could may might must shall should will would",
}

PATTERNS = {
    "digits": r"\s*\d+",
    "full stop": r"\.+",
    "comma": r",",
    "question mark": r"\?+",
    "exclamation mark": r"!+",
    "colon": r":+",
    "quotation marks": r"\s*[\"“”'‘’]+",
    "brackets": r"\s*[()\[\]{}]+",
    "hyphen": r"\s*[-–—]+",
    "line break": r"\n+",
    "list marker": r"\s*[*•]+",
    "capitalised word": r"\s*[A-Z][a-z]+",
    "all capitals": r"\s*[A-Z]{2,}",
    "part of a word": r"[a-z]+",
    "other scripts": r"[^\x00-ɏ‘-”–—]+",
    "code": r"\s*[<>/\\=_#;|`~^$&@]+",
}


QUOTED_WORD = re.compile("“([^”]+)”")


def compile_concepts() -> dict[str, re.Pattern[str]]:
    """Return every concept as a pattern that is matched against whole tokens."""
    alternatives = {name: "|".join(map(re.escape, words.split())) for name, words in WORDS.items()}
    patterns = {
        name: re.compile(rf"\s*(?:{alternation})", re.IGNORECASE)
        for name, alternation in alternatives.items()
    }
    return patterns | {name: re.compile(pattern) for name, pattern in PATTERNS.items()}


def find_keywords(label: str) -> tuple[str, ...]:
    """Return the words that a label summarises; none if it describes a kind of token or a position."""
    concept = label.removeprefix("after ").removeprefix("before ")
    return tuple(QUOTED_WORD.findall(concept)) or tuple(WORDS.get(concept, "").split())
