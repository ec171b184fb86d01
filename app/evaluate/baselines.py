"""Baselines of a reward model: response length, TF-IDF of the words, and a linear probe."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from torch import Tensor

from app.types import Pair

INVERSE_REGULARIZATION = 10.0 ** np.arange(-5, 1.5, 0.5)


def length_margins(tokens: Tensor) -> Tensor:
    """Return margins that prefer the longer response; `tokens` are the counts (chosen, rejected), (N, 2)."""
    return (tokens[:, 0] - tokens[:, 1]).double()


def tfidf_margins(train: Sequence[Pair], test: Sequence[Pair]) -> Tensor:
    """Return margins of a logistic regression on the TF-IDF differences of the two responses."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectorizer.fit([text for pair in train for text in (pair.chosen, pair.rejected)])

    def compute_differences(pairs: Sequence[Pair]) -> csr_matrix:
        sides = ([p.chosen for p in pairs], [p.rejected for p in pairs])
        chosen, rejected = (vectorizer.transform(side) for side in sides)
        return csr_matrix(chosen - rejected)

    x = compute_differences(train)
    both, labels = vstack([x, -x]), np.repeat([1, 0], x.shape[0])
    model = LogisticRegression(C=10.0, fit_intercept=False, max_iter=1000).fit(both, labels)
    return torch.from_numpy(compute_differences(test) @ model.coef_[0])


def linear_probe_margins(train: Tensor, groups: list[str], test: Tensor) -> Tensor:
    """Return margins of a linear probe on (N, 2, D) vectors.

    The regularization strength is chosen by cross-validation over prompt groups.
    """
    scale = train.flatten(0, 1).std(0).clamp(min=1e-6)
    x, x_test = (((side[:, 0] - side[:, 1]) / scale).double().numpy() for side in (train, test))
    both, labels = np.concatenate([x, -x]), np.repeat([1, 0], len(x))
    folds = list(GroupKFold(3).split(both, labels, groups * 2))
    model = LogisticRegressionCV(
        Cs=INVERSE_REGULARIZATION, cv=folds, fit_intercept=False, scoring="neg_log_loss", max_iter=500,
        l1_ratios=(0.0,), use_legacy_attributes=False,
    )  # fmt: skip
    model.fit(both, labels)
    return torch.from_numpy(x_test @ model.coef_[0])
