"""Both answers of a pair in one row: the same rewards and gradients as one by one."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.research import shared_prompt_rows
from tests.support import tiny

PROMPT = tuple(range(5, 17)) * 2
PAIRS = {
    "a prompt and two answers": ((*PROMPT, 8, 9, 10), (*PROMPT, 11, 12)),
    "nothing in common": ((5, 6, 7), (9, 8)),
    "one is the other's beginning": (PROMPT[:3], PROMPT),
    "the same twice": (PROMPT, PROMPT),
}


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def scalar(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """A tiny backbone of every kind with a scalar head; prompts are longer than their windows."""
    folder = tiny.save_backbone(
        tmp_path_factory.mktemp(request.param) / "backbone", architecture=request.param
    )
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_pair_in_one_row_is_two_rows(scalar: PreTrainedModel, name: str, *, turned: bool) -> None:
    chosen, rejected = PAIRS[name][::-1] if turned else PAIRS[name]
    together = shared_prompt_rows.score_row(
        scalar, shared_prompt_rows.build_row(chosen, rejected), half=False
    )
    apart = torch.cat([alone(scalar, ids) for ids in (chosen, rejected)])
    assert torch.allclose(together, apart, atol=1e-5)
    for one, other in zip(slopes(scalar, together), slopes(scalar, apart), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_what_is_shared_stands_once() -> None:
    chosen, rejected = PAIRS["a prompt and two answers"]
    assert len(shared_prompt_rows.build_row(chosen, rejected)["ids"]) == len(PROMPT) + 5


def alone(model: PreTrainedModel, ids: tuple[int, ...]) -> Tensor:
    """The reward of a row by itself, as transformers has it."""
    found: Tensor = model(input_ids=torch.tensor([ids])).logits[:, 0]
    return found


def slopes(model: PreTrainedModel, rewards: Tensor) -> tuple[Tensor, ...]:
    """How the margin moves with every weight."""
    found: tuple[Tensor, ...] = torch.autograd.grad(rewards[0] - rewards[1], [*model.parameters()])
    return found
