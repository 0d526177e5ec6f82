"""Weights and a tokenizer → a GGUF file, one tensor in memory at a time; what was written is read and compared."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, get_tensor_name_map, quants
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fmstune.config.requests import GgufType
from fmstune.errors import UserError
from fmstune.serving.llama_cpp.architectures import ARCHITECTURES, ROPE_FACTORS, moved_rows, rope_factors
from fmstune.serving.llama_cpp.vocabulary import Vocabulary, add_vocabulary

_STORED = {
    GgufType.f16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    GgufType.q8_0: (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_BLOCK = 32
"""Numbers of a row that share a scale in q8_0 (ggml/src/ggml-common.h, QK8_0)."""
_MAY_DIFFER = {GGMLQuantizationType.F32: 0.0, GGMLQuantizationType.F16: 1e-3, GGMLQuantizationType.Q8_0: 2e-2}
"""By how much the numbers of a tensor may differ, as a share of their size (root mean square)."""


class Written(NamedTuple):
    """What a file holds."""

    tensors: int
    difference: float
    """The largest difference of a tensor from the weights, as a share of its size (root mean square)."""


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, path: Path, kind: GgufType
) -> Written:
    """Write the file; raises UserError where numbers do not fit into the type."""
    chosen = ARCHITECTURES[model.config.model_type]
    writer = GGUFWriter(path, chosen.arch.name.lower())
    writer.add_name(Path(model.config.name_or_path).name or model.config.model_type)
    writer.add_file_type(_STORED[kind][1])
    chosen.describe(writer, model.config)
    writer.add_vocab_size(len(vocabulary.tokens))
    add_vocabulary(writer, tokenizer, vocabulary)
    types: dict[str, GGMLQuantizationType] = {}
    for name, tensor in named_tensors(model):
        types[name] = _type_of(name, tensor, kind)
        size = quants.quant_shape_to_byte_shape(tuple(tensor.shape), types[name])
        writer.add_tensor_info(name, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in named_tensors(model):
        writer.write_tensor_data(quants.quantize(tensor.float().contiguous().numpy(), types[name]).view(np.uint8))
    writer.close()
    return Written(len(types), _difference(model, path))


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors with llama.cpp's names, rows in its order; an output that is the embeddings is left out."""
    config = model.config
    names = get_tensor_name_map(ARCHITECTURES[config.model_type].arch, int(config.num_hidden_layers))
    tied = bool(config.tie_word_embeddings)
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError("--export", f"gguf: llama.cpp has no name for {name}; merge without --export")
        yield found, moved_rows(name, tensor, config)
    if (factors := rope_factors(config)) is not None:
        yield ROPE_FACTORS, factors


def _type_of(name: str, tensor: torch.Tensor, kind: GgufType) -> GGMLQuantizationType:
    """Norms, biases and positions stay whole, as llama.cpp asks for; so do rows that no blocks fill."""
    if tensor.ndim == 1 or name.startswith("position_embd"):
        return GGMLQuantizationType.F32
    wanted = _STORED[kind][0]
    if wanted is GGMLQuantizationType.Q8_0 and tensor.shape[-1] % _BLOCK:
        return GGMLQuantizationType.F16
    return wanted


def _difference(model: PreTrainedModel, path: Path) -> float:
    """Compare the file with the weights; raises UserError where a tensor is not what was to be written."""
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    largest = 0.0
    for name, tensor in named_tensors(model):
        one, weights = stored[name], tensor.double().numpy()
        read = quants.dequantize(one.data, one.tensor_type).reshape(weights.shape)
        size = float(np.sqrt(np.mean(weights**2)))
        off = float(np.sqrt(np.mean((read - weights) ** 2))) / max(size, 1e-30)
        # written so that what is not a number is above it
        if not off <= _MAY_DIFFER[one.tensor_type] + 1e-7:
            text = f"gguf: {name} in {one.tensor_type.name} differs by {off:.1e} of its size from the weights"
            raise UserError("--export", f"{text}; merge without --export, and keep its dtype")
        largest = max(largest, off)
    return largest
