"""lucid: distributed data-parallel pretraining of BERT."""
