"""BERT for pretraining."""
