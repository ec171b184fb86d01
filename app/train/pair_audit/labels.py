"""Labels that look wrong: pairs on which models that were trained on the other prompts disagree most."""

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from app.errors import DataError
from app.scores import DoubleArray
from app.train.features import PairFeatures
from app.types import Pooling

FOLDS = 5
INVERSE_REGULARISATION = (1e-5, 1e-4, 1e-3)
"""Strong regularisation, so that wrong labels are not learnt; the best by held-out log loss is used."""
MAX_ITERATIONS = 300


def compute_heldout_margins(
    features: PairFeatures, layer: int, groups: list[str], progress: Callable[[float], None]
) -> DoubleArray:
    """Return for each pair the margin of the chosen response, by a linear probe trained on other prompts.

    The lowest margins belong to the pairs whose labels disagree most with the others.
    """
    if len(set(groups)) < FOLDS:
        raise DataError(f"labels are checked by cross-validation, which needs at least {FOLDS} prompts")
    vectors = features.pooled_residuals(layer, Pooling.MEAN).double()
    scale = vectors.flatten(0, 1).std(0).clamp(min=1e-6)
    x = ((vectors[:, 0] - vectors[:, 1]) / scale).numpy()
    candidates = []
    folds = list(GroupKFold(FOLDS).split(x, groups=groups))
    for done, strength in enumerate(INVERSE_REGULARISATION):
        margins = np.zeros(len(x))
        for train, test in folds:
            both = np.concatenate([x[train], -x[train]])
            labels = np.repeat([1, 0], len(train))
            probe = LogisticRegression(C=strength, fit_intercept=False, max_iter=MAX_ITERATIONS)
            margins[test] = x[test] @ probe.fit(both, labels).coef_[0]
        candidates.append(margins)
        progress((done + 1) / len(INVERSE_REGULARISATION))
    return min(candidates, key=lambda margins: float(np.logaddexp(0, -margins).mean()))
