"""Public preference sets as pairs of ours: a converter a schema, split so that sides share no prompt."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, groupby, product
from pathlib import Path
from typing import Any

from app.data.pairs import chance, parsed, rows
from app.errors import DataError

Row = Mapping[str, Any]
Convert = Callable[[Iterable[Row]], Iterator[dict[str, Any]]]
STYLES = ("concise", "detailed", "markdown")


@dataclass(frozen=True, slots=True)
class PublicSet:
    """Where a set is, on what terms, and how its rows become pairs; a benchmark is all test."""

    source: str
    license: str
    convert: Convert
    benchmark: bool = False


def write(name: str, out: Path, *, source: str | None = None, test_share: float = 0.2) -> dict[str, int]:
    """Write NAME_train.jsonl and NAME_test.jsonl into a folder; how many pairs went to each."""
    if name not in SETS:
        raise DataError(f"no public set {name!r}; there are: {', '.join(SETS)}")
    public = SETS[name]
    out.mkdir(parents=True, exist_ok=True)
    files = {part: out / f"{name}_{part}.jsonl" for part in ("train", "test")}
    counts = dict.fromkeys(files, 0)
    with (
        files["train"].open("w", encoding="utf-8") as train,
        files["test"].open("w", encoding="utf-8") as test,
    ):
        streams = {"train": train, "test": test}
        for pair in public.convert(_readable(source or public.source)):
            held = public.benchmark or chance(f"test/{pair['group']}") < test_share
            part = "test" if held else "train"
            streams[part].write(json.dumps(pair, ensure_ascii=False) + "\n")
            counts[part] += 1
    if not counts["train"]:
        files["train"].unlink()
    if not any(counts.values()):
        raise DataError(f"{source or public.source}: no row of this set's form")
    return counts


class _Raw(dict[str, Any]):
    """A row that says where it stands when it lacks what its set should have."""

    def __init__(self, row: Row, place: str) -> None:
        super().__init__(row)
        self.place = place

    def __missing__(self, key: str) -> Any:
        raise DataError(f"{self.place}: rows of this set have {key!r}, this one does not")


def _readable(source: str) -> Iterator[Row]:
    return (_Raw(parsed(raw, place), place) for place, raw in rows(source))


def _truthfulqa(found: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Every true answer against a false one, in turn."""
    for row in found:
        wrong = [text for text in row["incorrect_answers"] if text]
        for i, right in enumerate(text for text in row["correct_answers"] if text):
            if wrong and right != wrong[i % len(wrong)]:
                yield _pair(row["question"], right, wrong[i % len(wrong)], category=row.get("category"))


def _saferlhf(found: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Pairs of which exactly one response is safe."""
    for row in found:
        safe = [bool(row[f"is_response_{i}_safe"]) for i in (0, 1)]
        if safe[0] != safe[1]:
            better = safe.index(True)
            yield _pair(row["prompt"], row[f"response_{better}"], row[f"response_{1 - better}"])


def _hh(found: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Two transcripts that differ in the last assistant turn."""
    for row in found:
        before, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
        other, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
        if before == other and before and chosen.strip() and rejected.strip() and chosen != rejected:
            yield _pair(f"{before}\n\nAssistant:", chosen.strip(), rejected.strip())


def _ultrafeedback(found: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for row in found:
        chosen, rejected = (row[side][-1]["content"] for side in ("chosen", "rejected"))
        if chosen and rejected and chosen != rejected:
            margin = float(row.get("score_chosen") or 0) - float(row.get("score_rejected") or 0)
            yield _pair(row["prompt"], chosen, rejected, margin=margin)


def _helpsteer(found: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Responses to one prompt stand in consecutive rows; the more helpful one is preferred."""
    for prompt, answers in groupby(found, key=lambda row: row["prompt"]):
        for a, b in combinations(list(answers), 2):
            margin = int(a["helpfulness"]) - int(b["helpfulness"])
            if margin:
                better, worse = (a, b) if margin > 0 else (b, a)
                yield _pair(prompt, better["response"], worse["response"], margin=abs(margin))


def _rewardbench(found: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for row in found:
        yield _pair(row["prompt"], row["chosen"], row["rejected"], subset=row.get("subset"))


def _rmbench(found: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Each side is written in three styles: all nine meetings, and which of them are hard."""
    for row in found:
        for (i, chosen), (j, rejected) in product(enumerate(row["chosen"]), enumerate(row["rejected"])):
            level = "easy" if i > j else "hard" if i < j else "normal"
            facts = {"chosen_style": STYLES[i], "rejected_style": STYLES[j], "level": level}
            yield _pair(row["prompt"], chosen, rejected, domain=row.get("domain"), **facts)


def _pair(prompt: str, chosen: str, rejected: str, **facts: Any) -> dict[str, Any]:
    """A row as `read_pairs` takes it; prompts that differ in case and spacing alone are one group."""
    group = re.sub(r"\W+", " ", prompt).strip().lower()
    said = {key: value for key, value in facts.items() if value is not None}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "group": group, **said}


SETS = {
    "truthfulqa": PublicSet("hub:truthfulqa/truthful_qa:generation#validation", "Apache-2.0", _truthfulqa),
    "saferlhf": PublicSet("hub:PKU-Alignment/PKU-SafeRLHF:default", "CC BY-NC 4.0", _saferlhf),
    "hh": PublicSet("hub:Anthropic/hh-rlhf", "MIT", _hh),
    "ultrafeedback": PublicSet(
        "hub:HuggingFaceH4/ultrafeedback_binarized#train_prefs", "MIT", _ultrafeedback
    ),
    "helpsteer": PublicSet("hub:nvidia/HelpSteer2", "CC BY 4.0", _helpsteer),
    "rewardbench": PublicSet("hub:allenai/reward-bench#filtered", "ODC-BY", _rewardbench, benchmark=True),
    "rm-bench": PublicSet("hub:THU-KEG/RM-Bench", "ODC-BY", _rmbench, benchmark=True),
}
