"""Run an encoder or decoder over a video: chunk by chunk in time, tile by tile in space, collected elsewhere."""

from collections.abc import Callable, Iterator

import torch


def tile_spans(size: int, tile: int, overlap: int, unit: int = 1) -> list[slice]:
    """As few tiles as cover ``size``, all of one size and evenly spread, so that little is computed twice.

    Args:
        tile: the largest size of a tile.
        overlap: how far neighbours overlap at least.
        unit: tiles begin and end at its multiples; the others are rounded to them.
    """
    size, tile = size // unit, max(tile // unit, 1)
    overlap = min(-(-overlap // unit), tile - 1)
    if tile >= size:
        return [slice(0, size * unit)]
    count = -(-(size - overlap) // (tile - overlap))
    tile = -(-(size + (count - 1) * overlap) // count)
    starts = [i * (size - tile) // (count - 1) for i in range(count)]
    return [slice(start * unit, (start + tile) * unit) for start in starts]


def tile_weight(size: int, overlap: int, at_start: bool, at_end: bool, device=None) -> torch.Tensor:
    """A linear ramp over ``overlap`` at each side that borders on another tile, [size]."""
    weight = torch.ones(size, device=device)
    ramp = (torch.arange(overlap, device=device) + 1) / (overlap + 1)
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
        device = self.output.device
        down = tile_weight(ys.stop - ys.start, self.ramp, row.start == 0, row.stop == self.source_h, device)
        across = tile_weight(xs.stop - xs.start, self.ramp, column.start == 0, column.stop == self.source_w, device)
        return (down[:, None] * across[None]).to(self.output)

    def put(self, chunk: torch.Tensor, index: int, start: int, row: slice, column: slice) -> None:
        """Add the frames from ``start`` on of one tile of one video."""
        ys, xs = self.scaled(row), self.scaled(column)
        target = self.output[index : index + 1, :, start : start + chunk.shape[2], ys, xs]
        if self.coverage is None:
            target.copy_(chunk)
            return
        weight = self.weight(row, column)
        if index == start == 0:
            self.coverage[ys, xs] += weight
        target.add_(chunk * weight)

    def finish(self) -> torch.Tensor:
        if self.coverage is not None:
            self.output /= self.coverage
        return self.output


def copies_aside(device: torch.device) -> bool:
    """Whether copies from and to a device can run beside its work: on CUDA and ROCm."""
    return torch.empty(0, device=device).is_cuda


def upload(x: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Bring a chunk to a device and a dtype; to a GPU from page-locked memory, which nothing waits for."""
    if x.device.type != "cpu" or not copies_aside(device):
        return x.to(device, dtype)
    locked = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
    return locked.to(device, dtype, non_blocking=True)


def download(chunk: torch.Tensor, device: torch.device) -> Callable[[], torch.Tensor]:
    """Start to bring a chunk to a device; what is returned waits until it is there."""
    if device.type != "cpu" or not copies_aside(chunk.device):
        return lambda: chunk.to(device)
    copied = chunk.to(device, non_blocking=True)  # into page-locked memory
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(chunk.device))

    def wait() -> torch.Tensor:
        arrived.synchronize()
        return copied

    return wait


def one_ahead(items: Iterator) -> Iterator:
    """The items, each handed out when the one after it has been made."""
    waiting = next(items)
    for item in items:
        yield waiting
        waiting = item
    yield waiting


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
    finish: Callable[[torch.Tensor], torch.Tensor] | None = None,
    tile: int = 0,
    overlap: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Run an encoder or decoder over a video, chunk by chunk and, if asked, tile by tile.

    A finished chunk leaves the device at once, so the device's memory does not grow with the length. A GPU computes
    the next one meanwhile.

    Args:
        run: (source, to) -> iterator of chunks along time.
        source, shape: the input, B C T H W, and the shape of the whole output.
        chunks: how many chunks ``run`` yields per tile.
        device, dtype: where and in what to compute; default: as the source.
        output_device, output_dtype: where and in what to collect; default: the source's device, float32.
        finish: what is done to every finished chunk, in float32, before it leaves the device; it may overwrite it.
        tile, overlap: spatial tile size and overlap in the source's units, 0 = whole frames.
        on_progress: called with (done, total) after each chunk.
    """
    in_h, in_w = source.shape[3:]
    unit = max(in_h // shape[3], 1)
    rows, columns = ([slice(0, n)] if not tile else tile_spans(n, tile, overlap, unit) for n in (in_h, in_w))
    tiles = [(row, column) for row in rows for column in columns]
    device, dtype, where = torch.device(device or source.device), dtype or source.dtype, output_device or source.device
    canvas = Canvas(shape, (in_h, in_w), overlap, len(tiles) == 1, where, output_dtype or torch.float32)

    def made() -> Iterator[tuple]:
        for index in range(shape[0]):  # one video at a time: batches gain nothing and would raise the peak
            for row, column in tiles:
                start = 0
                for chunk in run(source[index : index + 1, :, :, row, column], lambda x: upload(x, device, dtype)):
                    frames = chunk.shape[2]
                    chunk = (chunk if finish is None else finish(chunk.float())).to(canvas.output.dtype)
                    yield download(chunk, canvas.output.device), index, start, row, column
                    start += frames
                    del chunk  # or it would stay on the device while the next one is computed

    total = shape[0] * len(tiles) * chunks
    finished = one_ahead(made()) if copies_aside(device) else made()
    for done, (downloaded, *place) in enumerate(finished, 1):
        canvas.put(downloaded(), *place)
        if on_progress is not None:
            on_progress(done, total)
    return canvas.finish()
