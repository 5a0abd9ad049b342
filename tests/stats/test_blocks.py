"""Blocks are all rows once, few at a time; of the widest rows one for each thread."""

import pytest
import torch

from secateur.stats.blocks import at_once, blocks, in_cache


@pytest.mark.parametrize(("count", "width"), [(1, 1), (7, 2**17), (9, 2**18), (5, 2**20), (0, 3)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_blocks_are_every_row_once_and_bounded(count: int, width: int, device: str) -> None:
    found = list(blocks(count, width, device))
    assert [row for rows in found for row in range(count)[rows]] == list(range(count))
    most = max(at_once(device), (torch.get_num_threads() if device == "cpu" else 1) * width)
    assert all((rows.stop - rows.start) * width <= most for rows in found)


@pytest.mark.parametrize("threads", [1, 3])
def test_of_wide_rows_every_thread_has_one(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sizes = [len(rows) for rows in in_cache(torch.zeros(7, 2**18))]
    finally:
        torch.set_num_threads(before)
    assert sizes == {1: [1] * 7, 3: [3, 3, 1]}[threads]
