"""Makes `sentence_vectors.json`: the vectors that sentence-transformers gives for some texts.

    python tests/golden/make_sentence_vectors.py

rewrites it beside this script. Needs sentence-transformers. The model is that of the oldest checkpoint in this folder.
For each kind of pooling the file holds the `files` that `SentenceTransformer.save` writes besides model and tokenizer,
and the `vectors` of the `texts`.
"""

import json
import shutil
import tempfile
from pathlib import Path

import sentence_transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

HERE = Path(__file__).parent
MODEL = HERE / "run_0.1.0/run/checkpoints/0001-00000004"
LONGEST = 24
TEXTS = ["a bad cab.", "", "Be A BIG cab.", "a " * 40 + "bad cab.", "made of unknown words: \N{OWL}"]
KINDS = {"mean": [Pooling(8, "mean")], "cls, normalized": [Pooling(8, "cls"), Normalize()]}


def made(modules):
    with tempfile.TemporaryDirectory() as name:
        folder, saved = Path(name) / "model", Path(name) / "saved"
        folder.mkdir()
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            shutil.copy(MODEL / file, folder)
        encoder = Transformer(str(folder))
        encoder.max_seq_length = LONGEST
        model = SentenceTransformer(modules=[encoder, *modules], device="cpu").eval()
        model.save(str(saved), create_model_card=False)
        names = ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"]
        names += [str(path.relative_to(saved)) for path in saved.glob("*_*/config.json")]
        files = {file: json.loads((saved / file).read_text()) for file in names}
        vectors = SentenceTransformer(str(saved), device="cpu").encode(TEXTS)
        return {"files": files, "vectors": [[float(f"{number:.8g}") for number in row] for row in vectors.tolist()]}


golden = {
    "version": sentence_transformers.__version__,
    "longest": LONGEST,
    "texts": TEXTS,
    "kinds": {name: made(modules) for name, modules in KINDS.items()},
}
(HERE / "sentence_vectors.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
