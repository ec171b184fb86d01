"""The reading of passages is chosen by what it does to held-out augmented and original pairs."""

import torch

from app.reward.head import Head
from app.reward.passages import PassageWeighting
from app.train.augmentation.pairs import AugmentedPairs
from app.train.features import PairFeatures
from app.train.head.fitting import HeldOutFold
from app.train.head.passage_choice import CANDIDATES, choose_passages
from app.train.passage_features import summarise_passages
from app.train.reward_function import RewardFunction
from app.types import HeadKind, Pooling

LAYER, WIDTH = 2, 4
ONE = torch.ones(1)
HEAD = Head(torch.zeros(1), ONE, torch.ones(1, 1, 1), torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
REWARD_FUNCTION = RewardFunction(
    torch.eye(1, WIDTH),
    Head(HEAD.center, HEAD.scale, HEAD.w1, HEAD.b1, HEAD.w2, HEAD.b2, HeadKind.LINEAR).to(
        torch.device("cpu")
    ),
    LAYER,
    Pooling.MEAN,
)


def make_features(responses: list[torch.Tensor]) -> PairFeatures:
    """Return the features of consecutive pairs of responses, whose first coordinate (T,) is the reward."""
    rows = [torch.nn.functional.pad(values[:, None], (0, WIDTH - 1)) for values in responses]
    pooled = torch.stack([torch.stack([r.mean(0), r[-1], r[-1]]) for r in rows])
    return PairFeatures(
        torch.arange(len(rows)).reshape(-1, 2), torch.tensor([len(r) for r in rows]), {LAYER: pooled}, [], 0,
        [summarise_passages(r, [i % 16 == 15 for i in range(len(r))]) for r in rows],
    )  # fmt: skip


def make_fold(*, hides_bad_passage: bool) -> HeldOutFold:
    """Return pairs in which augmented rejected responses have a good opening before a bad passage.

    If the original pairs hide a good passage in the chosen response, reading the worst one is a mistake.
    """
    good, bad = torch.full((64,), 1.0), torch.full((64,), -1.0)
    opening = torch.cat([torch.full((48,), 8.0), bad])
    chosen = good if hides_bad_passage else torch.cat([bad * 2, good * 5])
    original = make_features([chosen, bad] * 20)
    augmented = make_features([good, opening] * 10)
    indices = list(range(100, 110))
    pairs = AugmentedPairs(indices, [str(i) for i in indices], [False] * 9 + [True], augmented)
    return HeldOutFold(REWARD_FUNCTION, torch.arange(100, 120), original, pairs)


def test_reads_the_worst_passage_if_openings_hide_bad_ones() -> None:
    shares: list[float] = []
    reading, trials = choose_passages([make_fold(hides_bad_passage=True)], shares.append)
    assert reading is not None
    assert reading.weighting is PassageWeighting.WORST
    assert len(trials) == len(CANDIDATES) + 1
    assert (trials[0].reading, trials[0].accuracy, trials[0].overtaken) == (None, 1.0, 1.0)
    assert next(trial for trial in trials if trial.reading == reading).overtaken == 0.0
    assert shares == [1.0]


def test_a_reading_that_costs_accuracy_is_not_chosen() -> None:
    reading, trials = choose_passages([make_fold(hides_bad_passage=False)], lambda _: None)
    worst = [t for t in trials if t.reading and t.reading.weighting is PassageWeighting.WORST]
    assert min(trial.accuracy for trial in worst) == 0.0
    assert reading is None or next(t for t in trials if t.reading == reading).accuracy == 1.0


def test_a_reading_that_costs_more_than_it_gains_is_not_chosen() -> None:
    good, bad = torch.full((64,), 1.0), torch.full((64,), -1.0)
    hidden, opening = torch.cat([bad * 2, good * 5]), torch.cat([torch.full((48,), 8.0), bad])
    original = make_features([good, bad] * 39 + [hidden, bad])
    indices = [row % 39 for row in range(100)]
    augmented = make_features([good, bad] * 99 + [good, opening])
    pairs = AugmentedPairs(indices, [str(i) for i in indices], [False] * 100, augmented)
    fold = HeldOutFold(REWARD_FUNCTION, torch.arange(40), original, pairs)
    reading, (whole, *others) = choose_passages([fold], lambda _: None)
    worst = [t for t in others if t.reading and t.reading.weighting is PassageWeighting.WORST]
    assert (whole.accuracy, whole.overtaken) == (1.0, 0.01)
    assert min(trial.accuracy for trial in worst) == 0.975
    assert min(trial.overtaken for trial in worst) == 0.0
    assert reading is None or next(t for t in others if t.reading == reading).accuracy == 1.0


def test_without_augmented_pairs_no_passages_are_read() -> None:
    fold = make_fold(hides_bad_passage=True)
    alone = HeldOutFold(fold.reward_function, fold.rows, fold.original, None)
    assert choose_passages([alone], lambda _: None) == (None, [])


def test_control_pairs_and_pairs_ranked_wrongly_do_not_count_as_overtaken() -> None:
    fold = make_fold(hides_bad_passage=True)
    assert fold.augmented
    only_controls = AugmentedPairs(
        fold.augmented.pair_indices, fold.augmented.groups, [True] * 9 + [False], fold.augmented.features
    )
    original = make_features(
        [torch.full((64,), -2.0), torch.full((64,), -1.0)] * 9
        + [torch.full((64,), 9.0), torch.full((64,), -1.0)] * 11
    )
    _, trials = choose_passages(
        [HeldOutFold(fold.reward_function, fold.rows, original, only_controls)], lambda _: None
    )
    assert trials[0].accuracy == 11 / 20
    assert all(0 <= trial.overtaken <= 1 for trial in trials)
