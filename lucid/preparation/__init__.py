"""Prepares a corpus: turns text of any size into the shards that `lucid.data` opens."""

from lucid.preparation.inputs.documents import Document, read_documents
from lucid.preparation.inputs.kinds import PYTHON_DOCS
from lucid.preparation.stages import prepare

__all__ = ["PYTHON_DOCS", "Document", "prepare", "read_documents"]
