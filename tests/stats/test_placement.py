"""Where hidden states are: on the device as long as there is room, in memory, in files."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur import device_memory
from secateur.checkpoint import Store
from secateur.device_memory import Room, product_precision
from secateur.models import open_model
from secateur.stats import Activations, Walk
from secateur.stats.pool import Pool

SHAPE, SIZE = (4, 8, 16), 4 * 8 * 16 * 4
META = torch.device("meta")  # a device that is not the CPU, and is everywhere


def made(room: Room | None, limit: int = 2**20) -> Activations:
    return Activations(SHAPE, torch.float32, limit=limit, room=room)


def of(sets: float) -> Room:
    """Room for so many of them."""
    return Room(META, sets * SIZE / 2**30)


def places(states: list[Activations]) -> list[str]:
    return [
        "device" if one.tensor.is_meta else "file" if one.mapped else "memory" for one in states
    ]


def test_first_the_device_then_memory() -> None:
    room = of(2.5)
    states = [made(room) for _ in range(4)]
    assert places(states) == ["device", "device", "memory", "memory"]
    assert room.left == SIZE // 2


def test_then_files() -> None:
    room = of(1)
    two = [made(room, 0) for _ in range(2)]
    assert places(two) == ["device", "file"]
    several = [made(of(1), 0), made(of(0.9), 0), made(None, 0), made(None, SIZE)]
    assert places(several) == ["device", "file", "file", "memory"]


def test_what_is_gone_leaves_its_room() -> None:
    room = of(1)
    first = made(room)
    assert made(room).tensor.is_cpu
    del first
    gc.collect()
    assert made(room).tensor.is_meta


def test_a_student_shares_the_room_of_its_teacher() -> None:
    room = of(2)
    room.empty(SHAPE, torch.float32, room)
    teacher = Activations.of(torch.ones(SHAPE))
    teacher._room = room
    assert places([teacher, teacher.clone(limit=0)]) == ["memory", "device"]
    other = Activations.of(torch.ones(SHAPE), limit=0)
    other._room = Room(torch.device("cpu"), 9.0)
    assert torch.equal(other.clone(limit=0).tensor, other.tensor)


def test_a_cpu_has_no_room() -> None:
    room = Room(torch.device("cpu"), 100.0)
    assert places([made(room), made(room, 0)]) == ["memory", "file"]
    assert not made(room)._pinned


def test_by_default_the_room_is_what_is_free_less_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: 100)
    monkeypatch.setattr(device_memory, "margin_bytes", lambda device: 30)
    room = Room(META)
    assert room.left == 70
    room.promise(room, 50)  # weights that are to stay
    assert room.left == 20


def test_the_margin_is_a_quarter_and_four_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    for total, margin in ((80, 20), (24, 6), (8, 4)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, t=total: (0, t * 2**30))
        assert device_memory.margin_bytes(torch.device("cuda")) == margin * 2**30


def test_what_is_free_counts_what_torch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    assert device_memory.free_bytes(torch.device("cuda")) == 40


def test_all_ways_of_a_run_share_the_room(tokens: Tensor) -> None:
    source = open_model(tiny_model()).streamed(device="cpu")
    source.room = Room(META, 2.5 * SIZE / 2**30)
    walk = Walk(source, tokens, batch=4, limit=2**20)
    other = walk.like(batch=1, parts=4)
    states = [one.states(SHAPE, torch.float32) for one in (walk, other, walk, other)]
    assert places(states) == ["device", "device", "memory", "memory"]
    assert other.limit == 2**18


def test_states_of_a_pass_that_is_kept_lie_in_its_folder(tokens: Tensor, tmp_path: Any) -> None:
    opened = open_model(tiny_model())
    source = opened.streamed(device="cpu")
    source.room = of(9)
    with Store(tmp_path / "store") as store:
        walk = Walk(source, tokens, batch=4, store=store)
        states = walk.kept_states(walk.kept("some"), "input-0", SHAPE, torch.float32)
        assert states.mapped
        assert states.tensor.is_cpu


def test_memory_that_cannot_be_pinned_is_plain() -> None:
    from secateur.stats.activations import _in_memory

    tensor = _in_memory(SHAPE, torch.float32, SIZE, pinned=True)
    assert tensor.shape == SHAPE
    # pinned memory comes in powers of two: here the next is over the limit
    assert not _in_memory((3, 8, 16), torch.float32, SIZE - 1, pinned=True).is_pinned()


def test_what_all_layers_get_is_compared_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda *two: (compared.append(two), equal(*two))[1])
    pool, first = Pool(), torch.arange(4)
    for batch in range(3):
        table = first.clone()
        shared = [pool.share({"position": (table, None)}) for _ in range(9)]
        pool.end_batch()
        assert len(compared) == batch
        assert len({one["position"][0].data_ptr() for one in shared}) == 1
    assert pool.share(first).data_ptr() == shared[0]["position"][0].data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
class TestOnCuda:
    """What only a GPU does."""

    cuda = torch.device("cuda")

    def test_pinned_states_arrive(self) -> None:
        states = Activations((64, 64, 256), torch.float32, limit=2**30, room=Room(self.cuda, 0.0))
        assert states._pinned
        for start in range(64):
            states[start : start + 1] = torch.full((1, 64, 256), float(start), device=self.cuda)
        assert states[3:4].device.type == "cuda"
        states[0:1] = states[63:64]  # no copy waits, and each comes after those before it
        found = states.tensor[:, 0, 0].tolist()
        assert found == [63.0, *map(float, range(1, 64))]

    def test_a_walk_gives_the_same_wherever_states_are(self, tokens: Tensor) -> None:
        opened = open_model(tiny_model())
        found = []
        for gib, limit in ((1.0, 0), (0.0, 2**30), (0.0, 0)):
            source = opened.streamed(device="cuda", device_gib=gib)
            walk = Walk(source, tokens, batch=4, limit=limit)
            states = walk.embed()
            for step in walk.layers():
                step.run(states)
            found.append(states.tensor.cpu())
            assert states.mapped is (not gib and not limit)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])

    @pytest.mark.parametrize("resident", ["yes", "no"])
    def test_what_comes_ahead_is_what_is_read(self, resident: str, tokens: Tensor) -> None:
        opened = open_model(tiny_model())
        source = opened.streamed(device="cuda", resident=resident)
        for _ in range(2):
            walk = Walk(source, tokens, batch=4).prepared()
            for step in walk.layers():
                for name, parameter in step.module.named_parameters():
                    stored = f"{source._path}.{step.index}.{name}"
                    assert torch.equal(parameter.cpu(), opened.weights.tensor(stored)), stored

    def test_a_walk_does_not_wait_for_the_device(self, tokens: Tensor) -> None:
        """As often for many batches as for one: once a layer, to see that all is finite."""
        opened = open_model(tiny_model())
        source = opened.streamed(device="cuda", device_gib=1.0)
        waits = {}
        for batch in (len(tokens), 1):
            walk = Walk(source, tokens, batch=batch)
            states = walk.embed()
            for step in walk.layers():
                with counted_waits() as count:
                    step.run(states)
                waits[step.index, batch] = sum("called a sync" in str(one.message) for one in count)
        assert set(waits.values()) == {1}


@contextmanager
def counted_waits() -> Iterator[list[warnings.WarningMessage]]:
    """What torch says of operations that wait for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_how_products_are_rounded_is_known_by_old_and_new_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch refuses to be asked by the old name where it was told by the new ones."""
    assert product_precision() == "highest"
    try:
        torch.set_float32_matmul_precision("high")
        assert product_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")

    def mixed() -> str:
        raise RuntimeError("a mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    assert product_precision() == "highest"
    for told, precision in (("tf32", "high"), ("bf16", "medium"), ("ieee", "highest")):
        backend = SimpleNamespace(matmul=SimpleNamespace(fp32_precision=told))
        monkeypatch.setattr(torch.backends, "cuda", backend)
        assert product_precision() == precision
