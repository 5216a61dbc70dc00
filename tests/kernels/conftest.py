"""What the tests of kernels on disk share."""

import pytest

from tvm_orient.kernels.cache import KernelCache


@pytest.fixture
def store(tmp_path):
    """An empty cache."""
    return KernelCache(tmp_path / "kernels")
