"""Names for directions, and the score of each name.

A name is a concept of ours, a common token, or the tokens a direction speaks for in the vocabulary. It is
chosen on half of the conversations and scored on the other half: how well does it tell tokens on which the
latent fires from tokens on which it does not, the hardest of those included? A direction keeps its name
only if the name scores, and only if its projection, which is what the head sees, tells when the latent fires.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.tokenization import Text
from app.reward.directions import Dictionary
from app.train.names.concepts import compile_concepts, find_keywords
from app.train.names.contexts import TokenContexts
from app.types import Feature

MIN_LABEL_SCORE = 0.70
LEAST_FIRINGS, MOST_EXAMPLES = 20, 1000
COMMON_IDS, COMMON_TOKENS = 6000, 600
NEAR, OPENING, SPOKEN_FOR, KEYWORDS = 4, 4, 10, 3
WORD = re.compile(r"\s?\w{2,}")
Mask = NDArray[np.bool_]
Examples = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible name and the tokens it points at."""

    name: str
    mask: Mask


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The candidates every direction shares, and the common words keywords are drawn from.

    `word[t]` is the place in `words` of the word token t is, or one past the end for other tokens.
    """

    candidates: list[Candidate]
    masks: Mask
    words: list[str]
    word: NDArray[np.int64]


def name_features(
    features: tuple[Feature, ...],
    dictionary: Dictionary,
    contexts: TokenContexts,
    text: Text,
    backbone: Backbone,
    neuronpedia: str | None,
) -> tuple[Feature, ...]:
    """The features with names, scores, links, and how far the projection agrees with the latent."""
    fired = (dictionary.encode(contexts.residuals) > 0).cpu().numpy()
    projected = dictionary.project(contexts.residuals).cpu().numpy()
    lexicon = _lexicon(contexts, text)
    spoken = _spoken_for(dictionary.directions, backbone, contexts, text)
    named = []
    for k, feature in enumerate(features):
        found = replace(feature, agreement=_auroc(projected[:, k], fired[:, k]))
        if neuronpedia:
            found = replace(found, url=f"https://www.neuronpedia.org/{neuronpedia}/{feature.latent}")
        named.append(_named(found, fired[:, k], projected[:, k], contexts, (lexicon, spoken[k])))
    return tuple(named)


def _named(
    feature: Feature,
    fired: Mask,
    projected: NDArray[np.float32],
    contexts: TokenContexts,
    names: tuple[Lexicon, list[Candidate]],
) -> Feature:
    lexicon, own = names
    chosen_on = _examples(fired, projected, contexts.in_selection_half)
    scored_on = _examples(fired, projected, ~contexts.in_selection_half)
    if chosen_on is None or scored_on is None:
        return feature
    own = [*own, *_keywords(chosen_on, lexicon, contexts)]
    shared = _balanced(lexicon.masks, chosen_on)
    best = max(
        [lexicon.candidates[int(shared.argmax())], *own],
        key=lambda candidate: float(_balanced(candidate.mask, chosen_on)),
    )
    score = float(_balanced(best.mask, scored_on))
    holds = score >= MIN_LABEL_SCORE and feature.projection_predicts_firing
    if not holds:
        return feature
    return replace(feature, label=best.name, label_score=round(score, 3), keywords=find_keywords(best.name))


def _examples(fired: Mask, projected: NDArray[np.float32], half: Mask) -> Examples | None:
    """Tokens that fire, and as many that do not: half of them those with the highest projection."""
    firing, silent = np.flatnonzero(fired & half), np.flatnonzero(~fired & half)
    if len(firing) < LEAST_FIRINGS or len(silent) < LEAST_FIRINGS:
        return None
    random = np.random.default_rng(0)
    firing = random.permutation(firing)[:MOST_EXAMPLES]
    hardest = np.argsort(-projected[silent])[: len(firing) // 2]
    easy = random.permutation(np.delete(silent, hardest))[: len(firing) - len(hardest)]
    return firing, np.concatenate([silent[hardest], easy])


def _balanced(masks: Mask, examples: Examples) -> NDArray[np.float64]:
    """Balanced accuracy of each mask as a guess of where the latent fires."""
    firing, silent = examples
    guessed: NDArray[np.float64] = (masks[firing].mean(0) + 1 - masks[silent].mean(0)) / 2
    return guessed


def _lexicon(contexts: TokenContexts, text: Text) -> Lexicon:
    ids, place = np.unique(contexts.ids, return_inverse=True)
    texts = text.decode(ids.tolist())
    counts = np.bincount(place[contexts.response_offset >= 0], minlength=len(ids))
    common = [
        i for i in np.argsort(-counts) if counts[i] and ids[i] < COMMON_IDS and WORD.fullmatch(texts[i])
    ]
    common = common[:COMMON_TOKENS]
    word = np.full(len(ids), len(common))
    word[common] = np.arange(len(common))
    candidates = [
        Candidate(
            "the start of the response",
            (contexts.response_offset >= -OPENING) & (contexts.response_offset < OPENING),
        ),
        Candidate("the prompt", contexts.response_offset < -OPENING),
        Candidate("the response", contexts.response_offset >= 0),
    ]
    for named, pattern in compile_concepts().items():
        here = np.array([pattern.fullmatch(one) is not None for one in texts])[place]
        candidates += _scopes(named, here, contexts)
    masks = np.stack([candidate.mask for candidate in candidates], axis=1)
    return Lexicon(candidates, masks, [texts[i].strip() for i in common], word[place])


def _keywords(examples: Examples, lexicon: Lexicon, contexts: TokenContexts) -> list[Candidate]:
    """The words that speak most for firing, by log-odds against tokens that do not fire, at them or after."""
    found: list[Candidate] = []
    for back in (0, 1):
        firing, silent = (
            np.bincount(lexicon.word[np.maximum(side - back, 0)], minlength=len(lexicon.words) + 1)[:-1] + 0.5
            for side in examples
        )
        odds = np.log(firing / (len(examples[0]) + 1 - firing)) - np.log(
            silent / (len(examples[1]) + 1 - silent)
        )
        certain = odds / np.sqrt(1 / firing + 1 / silent)
        best = np.argsort(-certain)[:KEYWORDS]
        named = _quoted([lexicon.words[i] for i in best])
        at, near = _scopes(named, np.isin(lexicon.word, best), contexts)
        found.append(near if back else at)
    return found


def _scopes(named: str, here: Mask, contexts: TokenContexts) -> list[Candidate]:
    """At a token, and shortly after it in the same stretch of text."""
    lately = np.zeros_like(here)
    for back in range(1, NEAR + 1):
        lately[back:] |= here[:-back] & (contexts.text_index[back:] == contexts.text_index[:-back])
    return [Candidate(named, here), Candidate(f"after {named}", lately)]


def _spoken_for(
    directions: Tensor, backbone: Backbone, contexts: TokenContexts, text: Text
) -> list[list[Candidate]]:
    """Before the tokens a direction raises most in the vocabulary, where the model ties its embeddings."""
    logits = backbone.project_to_vocabulary(directions)
    if logits is None:
        return [[] for _ in directions]
    following = np.append(contexts.ids[1:], -1)
    found: list[list[Candidate]] = []
    for spoken in logits.topk(SPOKEN_FOR).indices.cpu().numpy():
        common = [i for i in spoken.tolist() if i < COMMON_IDS]
        words = [one.strip() for one in text.decode(common) if WORD.fullmatch(one)]
        named = _quoted(words[:KEYWORDS])
        found.append([Candidate(f"before {named}", np.isin(following, spoken))] if words else [])
    return found


def _quoted(words: list[str]) -> str:
    return " ".join(f"“{word}”" for word in dict.fromkeys(word.lower() for word in words))


def _auroc(scores: NDArray[np.float32], fired: Mask) -> float | None:
    """How often a firing token scores above a silent one; None if one kind is missing."""
    positives, negatives = int(fired.sum()), int((~fired).sum())
    if not positives or not negatives:
        return None
    above = rankdata(scores)[fired].sum() - positives * (positives + 1) / 2
    return round(float(above / (positives * negatives)), 3)
