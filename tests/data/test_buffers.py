"""Batch memory that is used again, but never while somebody looks at it."""

from __future__ import annotations

import gc

import numpy as np
import torch

from imprint.data.buffers import BufferPool


def test_memory_comes_back_when_the_last_tensor_over_it_dies() -> None:
    pool = BufferPool(keep=2)
    tensor = torch.from_numpy(pool.take((4, 8), np.uint8))
    address = tensor.data_ptr()
    part = tensor[1:3].view(-1)[5:]
    del tensor
    gc.collect()
    assert pool.idle() == 0  # the slice still holds the storage
    del part
    gc.collect()
    assert pool.idle() == 1
    again = torch.from_numpy(pool.take((8, 4), np.uint8))
    assert again.data_ptr() == address and pool.idle() == 0


def test_a_kept_batch_is_never_written_over() -> None:
    pool = BufferPool(keep=4)
    kept = []
    for k in range(20):
        tensor = torch.from_numpy(pool.take((16,), np.uint16))
        tensor.numpy()[:] = k
        if k % 3 == 0:
            kept.append((k, tensor[2:5]))
        del tensor
    for k, part in kept:
        assert (part.numpy() == k).all()


def test_numpy_views_and_tensors_made_from_them_hold_it_too() -> None:
    pool = BufferPool(keep=4)
    rows = torch.from_numpy(pool.take((4, 4), np.uint8)).numpy()[1]
    gc.collect()
    assert pool.idle() == 0
    del rows
    gc.collect()
    assert pool.idle() == 1


def test_no_more_than_asked_stay() -> None:
    pool = BufferPool(keep=2)
    taken = [pool.take((10,), np.uint8) for _ in range(5)]
    del taken
    gc.collect()
    assert pool.idle() == 2
    assert pool.take((11,), np.uint8).shape == (11,)
    gc.collect()
    assert pool.idle() == 3
