"""Write quantised weight files: scaled fp8 as ComfyUI has it, and GGUF."""

from pathlib import Path

import torch

FP8 = torch.float8_e4m3fn
LARGEST = 448  # of fp8 e4m3


def linear_layers(state: dict[str, torch.Tensor]) -> list[str]:
    return [key for key, value in state.items() if key.endswith(".weight") and value.ndim == 2]


def scaled_fp8(state: dict[str, torch.Tensor], layers: list[str]) -> dict[str, torch.Tensor]:
    """A state with the weights of ``layers`` in fp8, each with its scale, and their biases in fp8."""
    quantised = dict(state)
    for key in layers:
        scale = state[key].abs().max() / LARGEST
        quantised[key] = (state[key] / scale).to(FP8)
        quantised[key.replace(".weight", ".scale_weight")] = scale.float()
        bias = key.replace(".weight", ".bias")
        if bias in state:  # as ComfyUI before 0.4 holds them in any case
            quantised[bias] = state[bias].to(FP8)
    return {**quantised, "scaled_fp8": torch.tensor([], dtype=FP8)}


def dequantised(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `scaled_fp8` wrote, in float32."""
    scales = {k.replace("scale_weight", "weight"): v for k, v in state.items() if k.endswith("scale_weight")}
    plain = {k: v for k, v in state.items() if "scale_weight" not in k and k != "scaled_fp8"}
    return {key: value.float() * scales.get(key, 1) for key, value in plain.items()}


def write_gguf(state: dict[str, torch.Tensor], path: Path) -> None:
    """A GGUF file with matrices in Q8_0, tables in BF16 and the rest in float32."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(str(path), "cogvideox")
    for key, value in state.items():
        packed = kinds.BF16 if value.ndim == 3 else kinds.Q8_0  # a learned position table as converters keep it
        kind = packed if value.ndim in (2, 3) and value.shape[-1] % 32 == 0 else kinds.F32
        data = gguf.quants.quantize(value.float().numpy(), kind)
        writer.add_tensor(key, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A GGUF file's tensors in float32, unpacked by the gguf library."""
    import gguf

    found = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = torch.from_numpy(values.copy()).reshape(shape)
    return found
