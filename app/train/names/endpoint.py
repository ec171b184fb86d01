"""Names and tests features with language models behind an OpenAI-compatible chat endpoint.

Every answer is stored, so a killed run resumes without paying twice. Use another model for the test than for
the names if you can: the one that wrote a name should not judge it.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.errors import SparseRMError
from app.reward.reward_model import Concept, RewardModel
from app.train.names.evidence import Evidence, FeatureEvidence
from app.train.names.naming_sheet import (
    INSTRUCTIONS,
    KINDS,
    MAX_DEFINITION_CHARACTERS,
    MAX_NAME_CHARACTERS,
)

CHARACTERS_PER_TOKEN = 4
TIMEOUT_S = 120.0
MAX_ATTEMPTS = 6
FIRST_PAUSE_S = 1.0
RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
NUMBER_LIST = re.compile(r"\[[\d,\s]*\]")
ANY_LIST = re.compile(r"\[.*\]", re.DOTALL)
MAX_CONCEPTS = 12
GROUPING_INSTRUCTIONS = """Sort these features into 6 to 12 concepts. The name of a concept is a verb phrase
of 2 to 6 words in the third person. All its features have the same effect. Every feature is in one concept.
{names}
Answer with a JSON list of {{"concept": "...", "definition": "...", "latents": [...]}}, nothing else."""


@dataclass(frozen=True, slots=True)
class ChatEndpoint:
    """A model behind an endpoint: `url` ends before /chat/completions. Answers are kept in `store`."""

    url: str
    model: str
    store: Path
    client: httpx.Client
    key: str = ""
    pause: Callable[[float], None] = time.sleep
    answers: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise SparseRMError(
                f"{self.url[:200]}: the address of an endpoint starts with http:// or https://"
            )
        if not self.key.isascii() or not self.key.isprintable():
            raise SparseRMError("the key of the endpoint has characters that no key has")
        if self.store.exists():
            with self.store.open(encoding="utf-8") as stream:
                rows = (_parse_row(line) for line in stream)
                self.answers.update((row["key"], row["answer"]) for row in rows if row)

    def ask(self, prompt: str) -> str:
        """Return the model's answer to a prompt, from the store if it was asked before."""
        key = hashlib.sha256(f"{self.url}\n{self.model}\n{prompt}".encode()).hexdigest()
        if key not in self.answers:
            self.answers[key] = self._request(prompt)
            self.store.parent.mkdir(parents=True, exist_ok=True)
            with self.store.open("a", encoding="utf-8") as stream:
                stream.write("\n" + json.dumps({"key": key, "answer": self.answers[key]}))
        return self.answers[key]

    def _request(self, prompt: str) -> str:
        body = {
            "model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
        }  # fmt: skip
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        problem = ""
        for attempt in range(MAX_ATTEMPTS):
            try:
                response = self.client.post(
                    f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers
                )
                if response.status_code not in RETRIED_STATUSES:
                    return _read_content(response)
                problem = f"status {response.status_code}"
            except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
                problem = type(error).__name__
            if attempt + 1 < MAX_ATTEMPTS:
                self.pause(FIRST_PAUSE_S * 2**attempt)
        raise SparseRMError(f"{self.url}: {problem} after {MAX_ATTEMPTS} attempts; run again to resume")


def write_names(
    evidence: Evidence, endpoint: ChatEndpoint, progress: Callable[[float], None]
) -> dict[int, str]:
    """Return a name for each feature by latent, written from its evidence."""
    names: dict[int, str] = {}
    for done, feature in enumerate(evidence.features, 1):
        answer = endpoint.ask(build_naming_prompt(feature))
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        if lines:
            names[feature.latent] = (
                lines[-1].strip("\"'“”").removeprefix("Name:").strip()[:MAX_NAME_CHARACTERS]
            )
        progress(done / len(evidence.features))
    return names


def group_into_concepts(
    model: RewardModel, names: Mapping[int, str], endpoint: ChatEndpoint
) -> tuple[Concept, ...]:
    """Return the concepts that the endpoint sorts the named features into, without misplaced features."""
    signs = {feature.latent: feature.sign for feature in model.features}
    used: set[int] = set()
    concepts: dict[str, Concept] = {}
    for row in _find_list(endpoint.ask(_build_grouping_prompt(names, signs)), ANY_LIST):
        if not isinstance(row, dict) or not isinstance(row.get("latents"), list):
            continue
        name = " ".join(str(row.get("concept", "")).split())[:MAX_NAME_CHARACTERS]
        numbers = [latent for latent in row["latents"] if type(latent) is int]
        known = [n for n in dict.fromkeys(numbers) if n in names and n not in used]
        same = [latent for latent in known if signs[latent] == signs[known[0]]]
        if same and name and name not in concepts and not name.isdecimal():
            used.update(same)
            definition = str(row.get("definition", ""))[:MAX_DEFINITION_CHARACTERS]
            concepts[name] = Concept(name, tuple(same), signs[same[0]], definition)
    return tuple(concepts.values())


def answer_test(
    questions: Sequence[Mapping[str, Any]], endpoint: ChatEndpoint, progress: Callable[[float], None]
) -> list[dict[str, Any]]:
    """Return the questions with `fits` filled in; those whose answer cannot be read are left out."""
    answered = []
    for done, question in enumerate(questions, 1):
        answer = endpoint.ask(build_test_prompt(question))
        if NUMBER_LIST.search(answer):
            numbers = set(_find_list(answer, NUMBER_LIST))
            fits = [number in numbers for number in range(1, len(question["texts"]) + 1)]
            answered.append({**question, "fits": fits})
        progress(done / len(questions))
    return answered


def estimate_cost(evidence: Evidence, items: int) -> dict[str, int]:
    """Return about how many calls and input tokens naming and testing takes."""
    naming = [build_naming_prompt(feature) for feature in evidence.features]
    per_text = sum(map(len, naming)) / max(sum(_count_texts(f) for f in evidence.features), 1)
    tests = len(naming) + MAX_CONCEPTS
    characters = sum(map(len, naming)) + tests * items * per_text
    return {"calls": len(naming) + 1 + tests, "input_tokens": int(characters / CHARACTERS_PER_TOKEN)}


def build_naming_prompt(feature: FeatureEvidence) -> str:
    """Return the request to name one feature."""
    parts = [INSTRUCTIONS, ""]
    for kind, title in KINDS.items():
        parts.append(f"Responses that {title}:" if kind != "near_misses" else "Near misses:")
        for context in getattr(feature, kind):
            words = f" (words: {', '.join(context.words)})" if context.words else ""
            parts.append(f"- PROMPT: {context.text.prompt}\n  RESPONSE: {context.text.response}{words}")
    return "\n".join([*parts, "", "Answer with the name of this one feature on a single line, nothing else."])


def build_test_prompt(question: Mapping[str, Any]) -> str:
    """Return the request to answer one question of a blind test."""
    definition = f" ({question['definition']})" if question.get("definition") else ""
    texts = "\n".join(
        f"{number}. PROMPT: {text['prompt']}\n   RESPONSE: {text['response']}"
        for number, text in enumerate(question["texts"], 1)
    )
    return (
        f"A response fits a description if it does this: {question['name']}{definition}.\n"
        f"About half of these responses fit:\n{texts}\n"
        "Answer with a JSON list of the numbers of the responses that fit, nothing else."
    )


def _build_grouping_prompt(names: Mapping[int, str], signs: Mapping[int, int]) -> str:
    effects = {1: "raises", -1: "lowers"}
    lines = (f"{latent} ({effects[signs[latent]]} rewards): {name}" for latent, name in names.items())
    return GROUPING_INSTRUCTIONS.format(names="\n".join(lines))


def _count_texts(feature: FeatureEvidence) -> int:
    return sum(len(getattr(feature, kind)) for kind in KINDS)


def _find_list(answer: str, pattern: re.Pattern[str]) -> list[Any]:
    """Return the last JSON list in an answer that matches a pattern; an empty list without one."""
    matches = pattern.findall(answer)
    try:
        return list(json.loads(matches[-1])) if matches else []
    except ValueError:
        return []


def _read_content(response: httpx.Response) -> str:
    """Return the text of a chat completion; raise an error that names the problem otherwise."""
    if response.status_code != httpx.codes.OK:
        raise SparseRMError(f"{response.url}: status {response.status_code}: {response.text[:200]}")
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SparseRMError(f"{response.url}: the answer is not a chat completion") from error
    return content if isinstance(content, str) else ""


def _parse_row(line: str) -> dict[str, str] | None:
    """Return a stored answer; None for a line that a killed run left incomplete."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"key", "answer"} <= row.keys() else None
