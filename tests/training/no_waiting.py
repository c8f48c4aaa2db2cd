"""What makes Python wait for a GPU, refused on a CPU, where nobody would notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__)
OF_UNKNOWN_SIZE = (torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten._unique2)


class _NoReading(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in READING, func
        return func(*args, **(kwargs or {}))


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        assert packet not in (*OF_UNKNOWN_SIZE, torch.ops.aten._local_scalar_dense), func
        assert func is not torch.ops.aten.repeat_interleave.Tensor or (kwargs or {}).get("output_size"), func
        if packet in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), func
        assert func is not torch.ops.aten.index_put_.default or args[2].ndim > 0, func
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Refuse to read a number, to select by a mask, or to assign a number by index."""
    with _NoReading(), _NoWaiting():
        yield
