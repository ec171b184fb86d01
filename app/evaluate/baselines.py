"""What a reward model has to beat: looking at words, looking at length, and linear probes."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from torch import Tensor

from app.types import Pair

STRENGTHS = 10.0 ** np.arange(-5, 1.5, 0.5)


def longer(tokens: Tensor) -> Tensor:
    """The longer response wins."""
    return (tokens[:, 0] - tokens[:, 1]).double()


def words(train: Sequence[Pair], test: Sequence[Pair]) -> Tensor:
    """Margins of a logistic regression on TF-IDF differences of the responses."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectorizer.fit([text for pair in train for text in (pair.chosen, pair.rejected)])

    def apart(pairs: Sequence[Pair]) -> csr_matrix:
        sides = ([p.chosen for p in pairs], [p.rejected for p in pairs])
        chosen, rejected = (vectorizer.transform(side) for side in sides)
        return csr_matrix(chosen - rejected)

    x = apart(train)
    both, labels = vstack([x, -x]), np.repeat([1, 0], x.shape[0])
    model = LogisticRegression(C=10.0, fit_intercept=False, max_iter=1000).fit(both, labels)
    return torch.from_numpy(apart(test) @ model.coef_[0])


def probe(train: Tensor, groups: list[str], test: Tensor) -> Tensor:
    """Margins of a linear probe on (N, 2, D) vectors; its strength is cross-validated over prompts."""
    scale = train.flatten(0, 1).std(0).clamp(min=1e-6)
    x, unseen = (((side[:, 0] - side[:, 1]) / scale).double().numpy() for side in (train, test))
    both, labels = np.concatenate([x, -x]), np.repeat([1, 0], len(x))
    folds = list(GroupKFold(3).split(both, labels, groups * 2))
    model = LogisticRegressionCV(
        Cs=STRENGTHS, cv=folds, fit_intercept=False, scoring="neg_log_loss", max_iter=500,
        l1_ratios=(0.0,), use_legacy_attributes=False,
    )  # fmt: skip
    model.fit(both, labels)
    return torch.from_numpy(unseen @ model.coef_[0])
