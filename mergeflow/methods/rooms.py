"""How much memory kernels over whole tensors take besides operands and result, for plans to count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Room = Callable[[Sequence[int]], int]  # bytes, for a shape

_rooms: dict[str, Room] = {}


def declare_room(kernel: str, room: Room) -> None:
    _rooms[kernel] = room


def room_of(kernel: str, shape: Sequence[int]) -> int:
    """Bytes for a tensor of the shape; planning has imported the kernel's module."""
    return _rooms[kernel](shape)
