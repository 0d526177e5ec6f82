"""`fmstune merge --export gguf` and `ollama` in the runner: a run, its adapters merged, becomes one file."""

from pathlib import Path

from transformers import PreTrainedModel

from fmstune.config.requests import Export, Merge
from fmstune.errors import raise_if_any
from fmstune.files import real_path, sha256_of, user_path
from fmstune.models import merge, tuned
from fmstune.models.load import Tokenizer
from fmstune.serving.llama_cpp.architectures import gguf_problems
from fmstune.serving.llama_cpp.gguf_file import write_gguf
from fmstune.serving.llama_cpp.modelfile import write_modelfile
from fmstune.serving.llama_cpp.vocabulary import read_vocabulary
from fmstune.serving.parity.prove import prove_merged
from fmstune.tables import count_of, show_bytes

MODELFILE = "Modelfile"


def write_export(request: Merge) -> int:
    """Write the file into a new folder, whole or not at all; what cannot be written is said before weights are read."""
    asked = merge.check_merge(request, whole_models=True)
    place, tokenizer = asked.places[0], asked.tokenizers[0]
    config = asked.config
    raise_if_any(gguf_problems(config))
    vocabulary = read_vocabulary(tokenizer, max(config.vocab_size, len(tokenizer)), request.format)
    with merge.new_folder(real_path(user_path(request.out))) as aside:
        model: PreTrainedModel
        if place.base is None:
            model = tuned.whole(place, Tokenizer(tokenizer), dtype=asked.dtype, attention="sdpa")
        else:
            _, model = merge.merge_adapters(asked)
        rows = model.get_input_embeddings().weight.shape[0]
        if rows != len(vocabulary.tokens):
            vocabulary = read_vocabulary(tokenizer, rows, request.format)
        file = aside / f"model-{request.gguf_type}.gguf"
        written = write_gguf(model, tokenizer, vocabulary, file, request.gguf_type)
        # two models at once would take twice the memory
        del model
        size, digest = file.stat().st_size, sha256_of(file)
        lines = [f"wrote {request.out}/{file.name}: {count_of(written.tensors, 'tensor')}, {show_bytes(size)}"]
        lines += [f"sha256 {digest}; weights differ by at most {written.difference:.1e} of their size"]
        if request.export is Export.ollama:
            positions = int(getattr(config, "max_position_embeddings", 0) or 2048)
            text, note = write_modelfile(file.name, tokenizer, request.format, positions)
            (aside / MODELFILE).write_text(text, encoding="utf-8")
            name = Path(request.out).name.lower()
            lines += [f"wrote {request.out}/{MODELFILE}; ollama create {name} -f {request.out}/{MODELFILE}"]
            lines += [f"note: {note}"] if note is not None else []
        proven = prove_merged(request, file)
        lines += [proven] if proven is not None else []
    print("\n".join(lines))
    return 0
