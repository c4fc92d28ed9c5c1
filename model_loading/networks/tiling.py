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
    ramp = ((torch.arange(size, device=device) + 1) / (overlap + 1)).clamp(max=1)
    weight = torch.ones_like(ramp) if at_start else ramp
    return weight if at_end else torch.minimum(weight, ramp.flip(0))


def tile_axis(size: int, factor: float, tile: int, overlap: int, device) -> list[tuple[slice, slice, torch.Tensor]]:
    """The tiles of one axis: where each is in the source and in the output, and the weights of its output's pixels.

    Args:
        factor: the output's size over the source's.
        tile, overlap: in the source's units; tile 0 is the whole axis.
    """
    found = []
    for span in tile_spans(size, tile or size, overlap, max(int(1 / factor), 1)):
        target = slice(int(span.start * factor), int(span.stop * factor))
        ends = span.start == 0, span.stop == size
        weight = tile_weight(target.stop - target.start, int(overlap * factor), *ends, device)
        found.append((span, target, weight))
    return found


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


def tiles_of(size: tuple[int, int], output: torch.Tensor, tile: int, overlap: int) -> tuple[list[tuple], torch.Tensor]:
    """The tiles of an input of ``size``, H W, and the sum of their weights, [H, W] of the output.

    Returns:
        Of each tile its rows and columns in the input, those in the output, and its weight there, [h, w].
    """
    factor = output.shape[3] / size[0]
    rows, columns = (tile_axis(pixels, factor, tile, overlap, output.device) for pixels in size)
    tiles = [
        (row, column, ys, xs, (down[:, None] * across).to(output))
        for row, ys, down in rows
        for column, xs, across in columns
    ]
    coverage = torch.zeros_like(output[0, 0, 0])
    for _, _, ys, xs, weight in tiles:
        coverage[ys, xs] += weight
    return tiles, coverage


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
    device, dtype = torch.device(device or source.device), dtype or source.dtype
    output = torch.zeros(shape, device=output_device or source.device, dtype=output_dtype or torch.float32)
    tiles, coverage = tiles_of(source.shape[3:], output, tile, overlap)

    def made() -> Iterator[tuple]:
        for index in range(shape[0]):  # one video at a time: batches gain nothing and would raise the peak
            for row, column, ys, xs, weight in tiles:
                start = 0
                for chunk in run(source[index : index + 1, :, :, row, column], lambda x: upload(x, device, dtype)):
                    target = output[index : index + 1, :, start : start + chunk.shape[2], ys, xs]
                    start += chunk.shape[2]
                    chunk = (chunk if finish is None else finish(chunk.float())).to(output.dtype)
                    yield download(chunk, output.device), target, weight
                    del chunk  # or it would stay on the device while the next one is computed

    total = shape[0] * len(tiles) * chunks
    finished = one_ahead(made()) if copies_aside(device) else made()
    for done, (downloaded, target, weight) in enumerate(finished, 1):
        if len(tiles) == 1:
            target.copy_(downloaded())
        else:
            target.add_(downloaded() * weight)
        if on_progress is not None:
            on_progress(done, total)
    return output if len(tiles) == 1 else output.div_(coverage)
