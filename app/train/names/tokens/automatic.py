"""Names features, and scores each name.

A candidate name is a concept, a common word, or the tokens whose logits a direction raises most. It
is selected on half of the prompts and scored on the other half: the score is its balanced accuracy in
predicting whether the latent fires, on tokens that include the hardest ones on which it does not. A feature
is named only if the score is high enough, and only if its projection, which is the input of the head,
predicts when the latent fires.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.tokenization import ChatTokenizer
from app.reward.directions import Dictionary
from app.train.names.tokens.categories import compile_concepts, find_keywords
from app.train.names.tokens.contexts import TokenContexts
from app.types import Feature

MIN_LABEL_SCORE = 0.70
MIN_FIRING_TOKENS = 20
"""Tokens on which a latent must fire, and tokens on which it must not, in each half."""
MAX_EXAMPLES = 1000
"""Firing tokens that candidates are scored on, and the same number of silent ones."""
MAX_COMMON_ID = 6000
"""Token ids below this are the frequent tokens of the vocabulary, in the order of BPE merges."""
MAX_COMMON_WORDS = 600
MAX_SCOPE_TOKENS = 4
"""A name "after X" applies to at most this many tokens after X."""
START_TOKENS = 4
"""Tokens around the start of a response that count as its start."""
NUM_RAISED_TOKENS = 10
"""Tokens of the vocabulary whose logits a direction raises most."""
NUM_KEYWORDS = 3
WORD = re.compile(r"\s?\w{2,}")
Mask = NDArray[np.bool_]
Examples = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices of tokens on which a latent fires, and of tokens on which it does not."""


@dataclass(frozen=True, slots=True)
class CandidateName:
    """A possible name, and the tokens it applies to (T)."""

    name: str
    mask: Mask


@dataclass(frozen=True, slots=True)
class SharedCandidates:
    """The candidates of all features, with their masks (T, C), and the common words.

    `word_index[t]` is the index in `words` of the word that token t is, or len(words) for other tokens.
    """

    candidates: list[CandidateName]
    masks: Mask
    words: list[str]
    word_index: NDArray[np.int64]


def name_features(
    features: tuple[Feature, ...],
    dictionary: Dictionary,
    contexts: TokenContexts,
    tokenizer: ChatTokenizer,
    backbone: Backbone,
    neuronpedia: str | None,
) -> tuple[Feature, ...]:
    """Return the features with names, scores, links, and the agreement of projection and activation."""
    fired = (dictionary.encode(contexts.residuals) > 0).cpu().numpy()
    projections = dictionary.project(contexts.residuals).cpu().numpy()
    shared = _build_shared_candidates(contexts, tokenizer)
    raised = _find_raised_tokens(dictionary.directions, backbone, contexts, tokenizer)
    named = []
    for k, unnamed in enumerate(features):
        feature = replace(unnamed, agreement=compute_auroc(projections[:, k], fired[:, k]))
        if neuronpedia:
            url = f"https://www.neuronpedia.org/{neuronpedia}/{feature.latent}"
            feature = replace(feature, url=url)
        named.append(_name_feature(feature, fired[:, k], projections[:, k], contexts, shared, raised[k]))
    return tuple(named)


def _name_feature(
    feature: Feature,
    fired: Mask,
    projections: NDArray[np.float32],
    contexts: TokenContexts,
    shared: SharedCandidates,
    raised: list[CandidateName],
) -> Feature:
    """Return the feature with the best candidate as its name, or unchanged if that is not good enough."""
    selecting = _sample_examples(fired, projections, contexts.in_selection_half)
    scoring = _sample_examples(fired, projections, ~contexts.in_selection_half)
    if selecting is None or scoring is None:
        return feature
    own_candidates = [*raised, *_find_keyword_candidates(selecting, shared, contexts)]
    shared_scores = _compute_balanced_accuracy(shared.masks, selecting)
    best = max(
        [shared.candidates[int(shared_scores.argmax())], *own_candidates],
        key=lambda candidate: float(_compute_balanced_accuracy(candidate.mask, selecting)),
    )
    score = float(_compute_balanced_accuracy(best.mask, scoring))
    if score < MIN_LABEL_SCORE or not feature.projection_predicts_firing:
        return feature
    return replace(feature, label=best.name, label_score=round(score, 3), keywords=find_keywords(best.name))


def _sample_examples(fired: Mask, projections: NDArray[np.float32], half: Mask) -> Examples | None:
    """Return firing tokens, and as many silent ones: half of them those with the highest projections.

    None if there are too few of either.
    """
    firing, silent = np.flatnonzero(fired & half), np.flatnonzero(~fired & half)
    if len(firing) < MIN_FIRING_TOKENS or len(silent) < MIN_FIRING_TOKENS:
        return None
    rng = np.random.default_rng(0)
    firing = rng.permutation(firing)[:MAX_EXAMPLES]
    hardest = np.argsort(-projections[silent])[: len(firing) // 2]
    easy = rng.permutation(np.delete(silent, hardest))[: len(firing) - len(hardest)]
    return firing, np.concatenate([silent[hardest], easy])


def _compute_balanced_accuracy(masks: Mask, examples: Examples) -> NDArray[np.float64]:
    """Return the balanced accuracy of each mask as a prediction of where the latent fires."""
    firing, silent = examples
    accuracy: NDArray[np.float64] = (masks[firing].mean(0) + 1 - masks[silent].mean(0)) / 2
    return accuracy


def _build_shared_candidates(contexts: TokenContexts, tokenizer: ChatTokenizer) -> SharedCandidates:
    """Return the candidates for positions and concepts, and the common words of the responses."""
    ids, id_index = np.unique(contexts.ids, return_inverse=True)
    texts = tokenizer.decode(ids.tolist())
    counts = np.bincount(id_index[contexts.response_offset >= 0], minlength=len(ids))
    common = [
        i for i in np.argsort(-counts) if counts[i] and ids[i] < MAX_COMMON_ID and WORD.fullmatch(texts[i])
    ][:MAX_COMMON_WORDS]
    word_index = np.full(len(ids), len(common))
    word_index[common] = np.arange(len(common))
    offset = contexts.response_offset
    candidates = [
        CandidateName("the start of the response", (offset >= -START_TOKENS) & (offset < START_TOKENS)),
        CandidateName("the prompt", offset < -START_TOKENS),
        CandidateName("the response", offset >= 0),
    ]
    for concept, pattern in compile_concepts().items():
        mask = np.array([pattern.fullmatch(text) is not None for text in texts])[id_index]
        candidates += _make_scopes(concept, mask, contexts)
    masks = np.stack([candidate.mask for candidate in candidates], axis=1)
    words = [texts[i].strip() for i in common]
    return SharedCandidates(candidates, masks, words, word_index[id_index])


def _find_keyword_candidates(
    examples: Examples, shared: SharedCandidates, contexts: TokenContexts
) -> list[CandidateName]:
    """Return two candidates: the words that best predict firing at them, and those for firing after them.

    Words are ranked by log-odds of firing against silent tokens, divided by their standard error.
    """
    candidates: list[CandidateName] = []
    num_words = len(shared.words)
    for lag in (0, 1):
        firing, silent = (
            np.bincount(shared.word_index[np.maximum(side - lag, 0)], minlength=num_words + 1)[:-1] + 0.5
            for side in examples
        )
        log_odds = np.log(firing / (len(examples[0]) + 1 - firing)) - np.log(
            silent / (len(examples[1]) + 1 - silent)
        )
        z_scores = log_odds / np.sqrt(1 / firing + 1 / silent)
        best = np.argsort(-z_scores)[:NUM_KEYWORDS]
        label = _quote([shared.words[i] for i in best])
        at, after = _make_scopes(label, np.isin(shared.word_index, best), contexts)
        candidates.append(after if lag else at)
    return candidates


def _make_scopes(name: str, mask: Mask, contexts: TokenContexts) -> list[CandidateName]:
    """Return the candidate at the tokens of a mask, and the one shortly after them in the same text."""
    after = np.zeros_like(mask)
    for lag in range(1, MAX_SCOPE_TOKENS + 1):
        after[lag:] |= mask[:-lag] & (contexts.text_index[lag:] == contexts.text_index[:-lag])
    return [CandidateName(name, mask), CandidateName(f"after {name}", after)]


def _find_raised_tokens(
    directions: Tensor, backbone: Backbone, contexts: TokenContexts, tokenizer: ChatTokenizer
) -> list[list[CandidateName]]:
    """For each direction, return the candidate "before" the tokens whose logits it raises most.

    There are none if the backbone's input and output embeddings are not tied.
    """
    logits = backbone.project_to_vocabulary(directions)
    if logits is None:
        return [[] for _ in directions]
    next_ids = np.append(contexts.ids[1:], -1)
    candidates: list[list[CandidateName]] = []
    for ids in logits.topk(NUM_RAISED_TOKENS).indices.cpu().numpy():
        common = [i for i in ids.tolist() if i < MAX_COMMON_ID]
        words = [text.strip() for text in tokenizer.decode(common) if WORD.fullmatch(text)]
        label = f"before {_quote(words[:NUM_KEYWORDS])}"
        candidates.append([CandidateName(label, np.isin(next_ids, ids))] if words else [])
    return candidates


def _quote(words: list[str]) -> str:
    return " ".join(f"“{word}”" for word in dict.fromkeys(word.lower() for word in words))


def compute_auroc(scores: NDArray[np.float32], fired: Mask) -> float | None:
    """Return how often a firing token scores above a silent one; None if either kind is missing."""
    positives, negatives = int(fired.sum()), int((~fired).sum())
    if not positives or not negatives:
        return None
    above = rankdata(scores)[fired].sum() - positives * (positives + 1) / 2
    return round(float(above / (positives * negatives)), 3)
