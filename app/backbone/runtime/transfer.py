"""Copies numpy arrays to the device; on a GPU from pinned memory, so that the copy is asynchronous."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def copy_to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return the array as a tensor on the device; on a CPU the tensor shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
