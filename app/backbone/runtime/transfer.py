"""Arrays on their way to a device: a GPU takes them from pinned memory, and nobody waits while they go."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def copy_to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor there; on a CPU it stays where it is."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
