"""Fine-tuning on labelled examples, and the comparison of several models on them.

`examples.py` reads the examples, `encoding.py` makes token ids of them, `tuning.py` trains and predicts on all ranks,
`metrics.py` and `bootstrap.py` say how good the predictions are, and how far the models differ. `comparison.py` is the
whole: models in, results out.
"""
