"""Run an encoder or decoder over a video: chunk by chunk in time, tile by tile in space, collected elsewhere."""

from collections.abc import Callable

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
    out_h, out_w = shape[3:]
    if tile and not 0 <= overlap < tile:
        raise ValueError(f"the tiles' overlap is {overlap}, expected less than their size, {tile}")
    rows, columns = ([slice(0, n)] if not tile else tile_spans(n, tile, overlap) for n in (in_h, in_w))

    def to(x: torch.Tensor) -> torch.Tensor:
        return x.to(device=device or source.device, dtype=dtype or source.dtype)

    def scaled(span: slice) -> slice:  # to the output's units
        return slice(span.start * out_h // in_h, span.stop * out_h // in_h)

    out_device = output_device or source.device
    output = torch.zeros(shape, device=out_device, dtype=output_dtype or torch.float32)
    plain = len(rows) == len(columns) == 1
    ramp = overlap * out_h // in_h
    coverage = None if plain else torch.zeros(out_h, out_w)
    done, total = 0, shape[0] * len(rows) * len(columns) * chunks
    for index in range(shape[0]):  # one video at a time: batches gain nothing and would raise the peak
        for row in rows:
            for column in columns:
                ys, xs = scaled(row), scaled(column)
                if plain:
                    weight = None
                else:
                    weight = (
                        tile_weight(ys.stop - ys.start, ramp, row.start == 0, row.stop == in_h)[:, None]
                        * tile_weight(xs.stop - xs.start, ramp, column.start == 0, column.stop == in_w)[None]
                    )
                    if index == 0:
                        coverage[ys, xs] += weight
                    weight = weight.to(output)
                start = 0
                for chunk in run(source[index : index + 1, :, :, row, column], to):
                    chunk = chunk.to(device=out_device, dtype=output.dtype)
                    target = output[index : index + 1, :, start : start + chunk.shape[2], ys, xs]
                    if weight is None:
                        target.copy_(chunk)
                    else:
                        target.add_(chunk * weight)
                    start += chunk.shape[2]
                    done += 1
                    if tick is not None:
                        tick(done, total)
    if coverage is not None:
        output /= coverage.to(output)
    return output
