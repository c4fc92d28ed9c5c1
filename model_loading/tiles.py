"""Run an encoder or decoder over a video: chunk by chunk in time, tile by tile in space, collected elsewhere."""

from collections.abc import Callable, Iterator

import torch


def tile_spans(size: int, tile: int, overlap: int) -> list[slice]:
    """Tiles of ``tile`` (or less, at most ``size``) that cover ``size`` and overlap by at least ``overlap``."""
    if tile >= size:
        return [slice(0, size)]
    stride = tile - overlap
    starts = list(range(0, size - tile, stride)) + [size - tile]
    return [slice(start, start + tile) for start in starts]


def tile_weight(size: int, overlap: int, at_start: bool, at_end: bool) -> torch.Tensor:
    """A linear ramp over ``overlap`` at each side that borders on another tile, [size]."""
    weight = torch.ones(size)
    ramp = (torch.arange(overlap) + 1) / (overlap + 1)
    if not at_start and overlap:
        weight[:overlap] = ramp
    if not at_end and overlap:
        weight[size - overlap :] = torch.minimum(weight[size - overlap :], ramp.flip(0))
    return weight


class Canvas:
    """Where finished chunks are put, and where overlapping tiles are blended.

    Args:
        shape: of the whole output, B C T H W.
        source_size: height and width of the input, in whose units tiles are given.
        overlap: of the tiles, in the input's units.
        plain: there is one tile only, so chunks are copied as they are.
    """

    def __init__(self, shape: tuple[int, ...], source_size: tuple[int, int], overlap: int, plain: bool, device, dtype):
        self.output = torch.zeros(shape, device=device, dtype=dtype)
        self.source_h, self.source_w = source_size
        self.factor = shape[3] / self.source_h
        self.ramp = int(overlap * self.factor)
        self.coverage = None if plain else torch.zeros(shape[3:], device=device, dtype=dtype)

    def scaled(self, span: slice) -> slice:
        return slice(int(span.start * self.factor), int(span.stop * self.factor))

    def weight(self, row: slice, column: slice) -> torch.Tensor:
        """The weight of a tile's pixels, [H, W]: 1 inside, falling towards neighbours."""
        ys, xs = self.scaled(row), self.scaled(column)
        down = tile_weight(ys.stop - ys.start, self.ramp, row.start == 0, row.stop == self.source_h)
        across = tile_weight(xs.stop - xs.start, self.ramp, column.start == 0, column.stop == self.source_w)
        return (down[:, None] * across[None]).to(self.output)

    def put(self, index: int, chunks: Iterator[torch.Tensor], row: slice, column: slice) -> Iterator[None]:
        """Add one tile of one video, chunk by chunk; yields after each."""
        ys, xs = self.scaled(row), self.scaled(column)
        weight = None
        if self.coverage is not None:
            weight = self.weight(row, column)
            if index == 0:
                self.coverage[ys, xs] += weight
        start = 0
        for chunk in chunks:
            chunk = chunk.to(self.output)
            target = self.output[index : index + 1, :, start : start + chunk.shape[2], ys, xs]
            if weight is None:
                target.copy_(chunk)
            else:
                target.add_(chunk * weight)
            start += chunk.shape[2]
            yield

    def finish(self) -> torch.Tensor:
        if self.coverage is not None:
            self.output /= self.coverage
        return self.output


def stream(
    run: Callable,
    source: torch.Tensor,
    shape: tuple[int, ...],
    chunks: int,
    *,
    # where
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    output_device: torch.device | None = None,
    output_dtype: torch.dtype | None = None,
    # how
    tile: int = 0,
    overlap: int = 0,
    tick: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Run an encoder or decoder over a video, chunk by chunk and, if asked, tile by tile.

    A finished chunk leaves the device at once, so the device's memory does not grow with the length.

    Args:
        run: (source, to) -> iterator of chunks along time.
        source, shape: the input, B C T H W, and the shape of the whole output.
        chunks: how many chunks ``run`` yields per tile.
        device, dtype: where and in what to compute; default: as the source.
        output_device, output_dtype: where and in what to collect; default: the source's device, float32.
        tile, overlap: spatial tile size and overlap in the source's units, 0 = whole frames.
        tick: called with (done, total) after each chunk.
    """
    in_h, in_w = source.shape[3:]
    if tile and not 0 <= overlap < tile:
        raise ValueError(f"the tiles' overlap is {overlap}, expected less than their size, {tile}")
    rows, columns = ([slice(0, n)] if not tile else tile_spans(n, tile, overlap) for n in (in_h, in_w))
    tiles = [(row, column) for row in rows for column in columns]

    def to(x: torch.Tensor) -> torch.Tensor:
        return x.to(device=device or source.device, dtype=dtype or source.dtype)

    where = output_device or source.device
    canvas = Canvas(shape, (in_h, in_w), overlap, len(tiles) == 1, where, output_dtype or torch.float32)
    done, total = 0, shape[0] * len(tiles) * chunks
    for index in range(shape[0]):  # one video at a time: batches gain nothing and would raise the peak
        for row, column in tiles:
            for _ in canvas.put(index, run(source[index : index + 1, :, :, row, column], to), row, column):
                done += 1
                if tick is not None:
                    tick(done, total)
    return canvas.finish()
