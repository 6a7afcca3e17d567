"""Packing a batch into one tensor, and unpacking it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicseg.data.packing import pack, unpack

TYPES = [torch.uint8, torch.bool, torch.int32, torch.int64, torch.float16, torch.float32]


@given(
    st.lists(st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 5), max_size=4)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_unpacking_returns_the_packed_tensors(parts, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = tuple(torch.randint(0, 2, shape, generator=generator).to(dtype) for dtype, shape in parts)
    packed = pack(batch)
    assert packed.data.dtype == torch.uint8
    for before, after in zip(batch, unpack(packed), strict=True):
        assert after.dtype == before.dtype
        assert torch.equal(after, before)
        assert after.is_contiguous()


def test_views_and_strided_tensors_are_packed_correctly():
    whole = torch.arange(24, dtype=torch.int64).view(4, 6)
    (after,) = unpack(pack((whole.T[1:],)))
    assert torch.equal(after, whole.T[1:])


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_is_one_tensor_that_others_share(count):
    packed = pack(tuple(torch.ones(5) for _ in range(count)))
    assert len({tensor.untyped_storage().data_ptr() for tensor in unpack(packed)}) == 1
    assert packed.data.untyped_storage().data_ptr() == unpack(packed)[0].untyped_storage().data_ptr()
