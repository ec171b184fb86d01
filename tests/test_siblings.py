"""Both answers of a pair in one row: the same rewards and gradients as one by one."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from app.settings import Settings
from app.train import siblings

PAIRS = {
    "a prompt and two answers": ((5, 6, 7, 8, 9, 10), (5, 6, 7, 11, 12)),
    "nothing in common": ((5, 6, 7), (9, 8)),
    "one is the other's beginning": ((5, 6, 7), (5, 6, 7, 8, 9)),
    "the same twice": ((5, 6, 7), (5, 6, 7)),
}


@pytest.fixture(scope="module")
def scalar(workshop: Settings) -> PreTrainedModel:
    """The tiny backbone with a scalar head."""
    torch.manual_seed(0)
    folder = workshop.models_dir.parent / "backbone"
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_pair_in_one_row_is_two_rows(scalar: PreTrainedModel, name: str, *, turned: bool) -> None:
    chosen, rejected = PAIRS[name][::-1] if turned else PAIRS[name]
    together = siblings.rewards(scalar, siblings.row(chosen, rejected), half=False)
    apart = torch.cat([alone(scalar, ids) for ids in (chosen, rejected)])
    assert torch.allclose(together, apart, atol=1e-5)
    for one, other in zip(slopes(scalar, together), slopes(scalar, apart), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_what_is_shared_stands_once() -> None:
    chosen, rejected = PAIRS["a prompt and two answers"]
    assert siblings.row(chosen, rejected)["input_ids"].shape == (1, 8)


def alone(model: PreTrainedModel, ids: tuple[int, ...]) -> Tensor:
    """The reward of a row by itself, as transformers has it."""
    found: Tensor = model(input_ids=torch.tensor([ids])).logits[:, 0]
    return found


def slopes(model: PreTrainedModel, rewards: Tensor) -> tuple[Tensor, ...]:
    """How the margin moves with every weight."""
    found: tuple[Tensor, ...] = torch.autograd.grad(rewards[0] - rewards[1], [*model.parameters()])
    return found
