"""Conversion of public preference data sets into pairs, split so that train and test share no prompt."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, groupby, product
from pathlib import Path
from typing import Any

from app.data.pairs import Row, hash_to_unit_interval, iter_rows, parse_row
from app.errors import DataError

RowConverter = Callable[[Iterable[Row]], Iterator[dict[str, Any]]]
RM_BENCH_STYLES = ("concise", "detailed", "markdown")


@dataclass(frozen=True, slots=True)
class PublicDataset:
    """Source, license and row converter of a data set; all pairs of a benchmark are test pairs."""

    source: str
    license: str
    convert: RowConverter
    is_benchmark: bool = False


def write_public_dataset(
    name: str, out: Path, *, source: str | None = None, test_share: float = 0.2
) -> dict[str, int]:
    """Write NAME_train.jsonl and NAME_test.jsonl into a folder and return how many pairs each has."""
    if name not in PUBLIC_DATASETS:
        raise DataError(f"unknown public data set {name!r}; there are: {', '.join(PUBLIC_DATASETS)}")
    dataset = PUBLIC_DATASETS[name]
    out.mkdir(parents=True, exist_ok=True)
    files = {split: out / f"{name}_{split}.jsonl" for split in ("train", "test")}
    counts = dict.fromkeys(files, 0)
    with (
        files["train"].open("w", encoding="utf-8") as train,
        files["test"].open("w", encoding="utf-8") as test,
    ):
        streams = {"train": train, "test": test}
        for pair in dataset.convert(_read_raw_rows(source or dataset.source)):
            is_test = dataset.is_benchmark or hash_to_unit_interval(f"test/{pair['group']}") < test_share
            split = "test" if is_test else "train"
            streams[split].write(json.dumps(pair, ensure_ascii=False) + "\n")
            counts[split] += 1
    if not counts["train"]:
        files["train"].unlink()
    if not any(counts.values()):
        raise DataError(f"{source or dataset.source}: no row yields a pair; is this the data set {name!r}?")
    return counts


class _RawRow(dict[str, Any]):
    """A row whose missing keys raise a DataError that names the row's location."""

    def __init__(self, row: Row, location: str) -> None:
        super().__init__(row)
        self.location = location

    def __missing__(self, key: str) -> Any:
        raise DataError(f"{self.location}: rows of this data set have {key!r}, this one does not")


def _read_raw_rows(source: str) -> Iterator[Row]:
    return (_RawRow(parse_row(raw, location), location) for location, raw in iter_rows(source))


def _convert_truthfulqa(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Pair each correct answer with one incorrect answer, cycling through the incorrect ones."""
    for row in rows:
        incorrect = [text for text in row["incorrect_answers"] if text]
        for i, correct in enumerate(text for text in row["correct_answers"] if text):
            if incorrect and correct != incorrect[i % len(incorrect)]:
                rejected = incorrect[i % len(incorrect)]
                yield _make_row(row["question"], correct, rejected, category=row.get("category"))


def _convert_saferlhf(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Keep pairs of which exactly one response is safe; the safe one is preferred."""
    for row in rows:
        safe = [bool(row[f"is_response_{i}_safe"]) for i in (0, 1)]
        if safe[0] != safe[1]:
            better = safe.index(True)
            yield _make_row(row["prompt"], row[f"response_{better}"], row[f"response_{1 - better}"])


def _convert_hh(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Keep pairs of transcripts that differ only in the last assistant turn."""
    for row in rows:
        prompt, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
        rejected_prompt, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
        same_prompt = prompt == rejected_prompt and prompt
        if same_prompt and chosen.strip() and rejected.strip() and chosen != rejected:
            yield _make_row(f"{prompt}\n\nAssistant:", chosen.strip(), rejected.strip())


def _convert_ultrafeedback(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for row in rows:
        chosen, rejected = (row[side][-1]["content"] for side in ("chosen", "rejected"))
        if chosen and rejected and chosen != rejected:
            margin = float(row.get("score_chosen") or 0) - float(row.get("score_rejected") or 0)
            yield _make_row(row["prompt"], chosen, rejected, margin=margin)


def _convert_helpsteer(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Pair the responses of consecutive rows with the same prompt; the more helpful one is preferred."""
    for prompt, responses in groupby(rows, key=lambda row: row["prompt"]):
        for a, b in combinations(list(responses), 2):
            margin = int(a["helpfulness"]) - int(b["helpfulness"])
            if margin:
                better, worse = (a, b) if margin > 0 else (b, a)
                yield _make_row(prompt, better["response"], worse["response"], margin=abs(margin))


def _convert_rewardbench(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield _make_row(row["prompt"], row["chosen"], row["rejected"], subset=row.get("subset"))


def _convert_rewardbench2(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Pair the correct with the incorrect responses such that each response is in at least one pair.

    That is one pair per incorrect response, except in the subset Ties, where all combinations would outnumber
    the rest of the benchmark.
    """
    for row in rows:
        counts = len(row["chosen"]), len(row["rejected"])
        for index in range(max(counts) if all(counts) else 0):
            yield _make_question_row(row, index % counts[0], index % counts[1], subset=row["subset"])


def _convert_rmbench(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Pair each chosen style with each rejected style: nine pairs per row, with their difficulty level."""
    styles = range(len(RM_BENCH_STYLES))
    for row in rows:
        if not len(row["chosen"]) == len(row["rejected"]) == len(styles):
            raise DataError(f"row {row['id']!r}: RM-Bench has {len(styles)} chosen and rejected responses")
        for i, j in product(styles, styles):
            yield _make_question_row(
                row,
                i,
                j,
                domain=row.get("domain"),
                chosen_style=RM_BENCH_STYLES[i],
                rejected_style=RM_BENCH_STYLES[j],
                level="easy" if i > j else "hard" if i < j else "normal",
            )


def _make_question_row(row: Row, chosen: int, rejected: int, **attributes: Any) -> dict[str, Any]:
    """Return the pair of two responses of a row by index; the added fields tell how to restore the row."""
    return _make_row(
        row["prompt"],
        row["chosen"][chosen],
        row["rejected"][rejected],
        **attributes,
        question=str(row["id"]),
        chosen_index=chosen,
        rejected_index=rejected,
        num_correct=len(row["chosen"]),
        num_incorrect=len(row["rejected"]),
    )


def _make_row(prompt: str, chosen: str, rejected: str, **attributes: Any) -> dict[str, Any]:
    """Return a row for `read_pairs`; prompts that differ only in case and spacing get the same group."""
    group = re.sub(r"\W+", " ", prompt).strip().lower()
    known = {key: value for key, value in attributes.items() if value is not None}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "group": group, **known}


PUBLIC_DATASETS = {
    "truthfulqa": PublicDataset(
        "hub:truthfulqa/truthful_qa:generation#validation", "Apache-2.0", _convert_truthfulqa
    ),
    "saferlhf": PublicDataset("hub:PKU-Alignment/PKU-SafeRLHF:default", "CC BY-NC 4.0", _convert_saferlhf),
    "hh": PublicDataset("hub:Anthropic/hh-rlhf", "MIT", _convert_hh),
    "ultrafeedback": PublicDataset(
        "hub:HuggingFaceH4/ultrafeedback_binarized#train_prefs", "MIT", _convert_ultrafeedback
    ),
    "helpsteer": PublicDataset("hub:nvidia/HelpSteer2", "CC BY 4.0", _convert_helpsteer),
    "rewardbench": PublicDataset(
        "hub:allenai/reward-bench#filtered", "ODC-BY", _convert_rewardbench, is_benchmark=True
    ),
    "rewardbench2": PublicDataset(
        "hub:allenai/reward-bench-2#test", "ODC-BY", _convert_rewardbench2, is_benchmark=True
    ),
    "rm-bench": PublicDataset("hub:THU-KEG/RM-Bench", "ODC-BY", _convert_rmbench, is_benchmark=True),
}
