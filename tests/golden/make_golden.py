"""Makes the golden files: what transformers and torch compute, for tests that then need neither.

    python tests/golden/make_golden.py

rewrites them beside this script, byte for byte the same with the versions that `versions.json` names:

- `bert_<hidden_act>/`: `config.json` and `model.safetensors` of a tiny random BertForPreTraining as transformers'
  `save_pretrained` writes them, and one safetensors file for each case of inputs: the inputs under their argument's
  name, the logits, the losses, and the gradients of the total loss (`gradient.<parameter or inputs_embeds>`).
- `bert_sequence_labels/`, `bert_token_labels/`: the same of a tiny BertForSequenceClassification and
  BertForTokenClassification with three labels, in evaluation mode.
- `saved_names.json`: the names of the tensors that `save_pretrained` writes for each kind of BERT of this size.
- `adamw.safetensors`, `adamw_uncorrected.safetensors`, `lamb.safetensors`: parameters before, gradients and learning
  rates of each step, parameters after each step.
- `clipping.safetensors`: gradients, and what torch's `clip_grad_norm_` makes of them.

Everything is computed in float64 and stored in float32, so that a test against it sees only its own rounding.
"""

import json
import math
import platform
import tempfile
from pathlib import Path

import numpy
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
)

HERE = Path(__file__).parent
SEED = 20240229

B, T, V, C = 3, 14, 120, 32
LENGTHS = 14, 9, 5
MASK_TOKEN_ID = 4
LABELS = "neither", "one", "other"
CASES = {
    "gelu": ("padded", "explicit_positions", "embeddings_as_inputs"),
    "gelu_new": ("padded",),
    "relu": ("padded",),
}

KINDS = (
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
)

STEPS = 20
BETAS = 0.9, 0.999
EPS = 1e-6
WEIGHT_DECAY = 0.01
# Matrices are decayed, vectors are not.
OPTIMIZER_SHAPES = {"first.weight": (5, 7), "first.bias": (5,), "second.weight": (3, 5), "second.bias": (3,)}


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for hidden_act, cases in CASES.items():
        make_model(HERE / f"bert_{hidden_act}", hidden_act, cases)
    make_classifiers()
    make_saved_names()
    make_adamw()
    make_plain("adamw_uncorrected", adam_without_bias_correction)
    make_plain("lamb", lamb)
    make_clipping()
    versions = {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "safetensors": safetensors.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


def tiny_config(hidden_act: str) -> BertConfig:
    config = BertConfig(
        vocab_size=V,
        hidden_size=C,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        hidden_act=hidden_act,
    )
    config._attn_implementation = "eager"
    return config


def make_saved_names() -> None:
    names = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            getattr(transformers, kind)(tiny_config("gelu")).save_pretrained(folder)
            names[kind] = sorted(load_file(Path(folder) / "model.safetensors"))
    (HERE / "saved_names.json").write_text(json.dumps(names, indent=0) + "\n")


def make_model(folder: Path, hidden_act: str, cases: tuple[str, ...]) -> None:
    config = tiny_config(hidden_act)
    model = BertForPreTraining(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    model = model.double()
    for case in cases:
        save(folder / f"{case}.safetensors", model_case(model, case))


def make_classifiers() -> None:
    generator = torch.Generator().manual_seed(SEED + 3)
    for kind, name in (
        (BertForSequenceClassification, "bert_sequence_labels"),
        (BertForTokenClassification, "bert_token_labels"),
    ):
        config = BertConfig(
            vocab_size=40,
            hidden_size=C,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=16,
            classifier_dropout=0.3,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
        )
        config._attn_implementation = "eager"
        model = kind(config).eval()
        randomise(model)
        model.save_pretrained(HERE / name)
        model = model.double()
        mask = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
        inputs = {
            "input_ids": torch.randint(5, 40, (B, T), generator=generator) * mask,
            "attention_mask": mask,
            "token_type_ids": (torch.arange(T) >= torch.tensor(LENGTHS)[:, None] // 2).long() * mask,
        }
        labels = torch.tensor([2, 0, 1])
        if kind is BertForTokenClassification:
            labels = torch.randint(0, len(LABELS), (B, T), generator=generator).masked_fill(mask == 0, -100)
        output = model(**inputs, labels=labels)
        output.loss.backward()
        gradients = {f"gradient.{name}": parameter.grad for name, parameter in model.named_parameters()}
        tensors = {**inputs, "labels": labels, "logits": output.logits, "loss": output.loss, **gradients}
        save(HERE / name / "outputs.safetensors", tensors)


def randomise(model: torch.nn.Module) -> None:
    """Draw weights ten times wider than BERT's, and biases and LayerNorms too: a mistake in any of them shows."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2, generator=generator)
            if name.endswith("LayerNorm.weight"):
                parameter += 1.0


def model_case(model: BertForPreTraining, case: str) -> dict[str, torch.Tensor]:
    inputs, labels = make_inputs(case)
    model.zero_grad()
    output = model(**inputs, labels=labels["mlm_labels"], next_sentence_label=labels["nsp_labels"])
    output.loss.backward()
    mlm_loss = cross_entropy(output.prediction_logits.flatten(0, 1), labels["mlm_labels"].flatten())
    nsp_loss = cross_entropy(output.seq_relationship_logits, labels["nsp_labels"])
    torch.testing.assert_close(mlm_loss + nsp_loss, output.loss)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    if "inputs_embeds" in inputs:
        gradients["inputs_embeds"] = inputs["inputs_embeds"].grad
    return {
        **inputs,
        **labels,
        "prediction_scores": output.prediction_logits,
        "seq_relationship_scores": output.seq_relationship_logits,
        "mlm_loss": mlm_loss,
        "nsp_loss": nsp_loss,
        "loss": output.loss,
        **{f"gradient.{name}": gradient for name, gradient in gradients.items()},
    }


def make_inputs(case: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the arguments of the model and the two arrays of labels."""
    generator = torch.Generator().manual_seed(SEED + 1)
    attention_mask = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
    token_type_ids = (torch.arange(T) >= torch.tensor(LENGTHS)[:, None] // 2).long() * attention_mask
    original_ids = torch.randint(5, V, (B, T), generator=generator) * attention_mask
    # The padding's id within the text: its embedding gets no gradient from there, only from the decoder.
    original_ids[0, 5] = original_ids[1, 2] = 0
    masked = (torch.rand(B, T, generator=generator) < 0.25) & (attention_mask == 1)
    masked[0, 5], masked[1, 2] = True, False
    inputs = {
        "input_ids": original_ids.masked_fill(masked, MASK_TOKEN_ID),
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
    }
    if case == "explicit_positions":
        inputs["position_ids"] = torch.randint(0, 48, (B, T), generator=generator)
    if case == "embeddings_as_inputs":
        del inputs["input_ids"]
        inputs["inputs_embeds"] = torch.randn(B, T, C, generator=generator).double().requires_grad_()
    labels = {
        "mlm_labels": original_ids.masked_fill(~masked, -100),
        "nsp_labels": torch.tensor([0, 1, 1]),
    }
    return inputs, labels


def make_adamw() -> None:
    parameters, gradients, learning_rates = make_optimizer_run()
    trainable = {name: torch.nn.Parameter(value.double()) for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trainable.values() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in trainable.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=BETAS,
        eps=EPS,
        foreach=False,
    )
    after: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
    for step, learning_rate in enumerate(learning_rates.tolist()):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for name, parameter in trainable.items():
            parameter.grad = gradients[name][step].double()
        optimizer.step()
        for name, parameter in trainable.items():
            after[name].append(parameter.detach().clone())
    save_run("adamw", parameters, gradients, learning_rates, after)


def make_optimizer_run() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Return parameters, [STEPS, ...] of gradients for each, and the learning rate of each step."""
    generator = torch.Generator().manual_seed(SEED + 2)
    parameters = {name: torch.randn(shape, generator=generator) for name, shape in OPTIMIZER_SHAPES.items()}
    gradients = {name: torch.randn(STEPS, *shape, generator=generator) for name, shape in OPTIMIZER_SHAPES.items()}
    gradients["first.weight"][:, 0] *= 1e-6  # about epsilon: its place in the formula matters here
    gradients["first.bias"][:, 0] = 0.0
    parameters["second.weight"][:] *= 0.1
    learning_rates = torch.tensor([0.01 * min((step + 1) / 5, (STEPS - step) / 15) for step in range(STEPS)])
    return parameters, gradients, learning_rates.double()


def make_plain(name: str, update) -> None:
    """Run an update that torch does not have, written out below parameter by parameter."""
    parameters, gradients, learning_rates = make_optimizer_run()
    after: dict[str, list[torch.Tensor]] = {}
    for parameter_name, value in parameters.items():
        decay = WEIGHT_DECAY if value.ndim >= 2 else 0.0
        weight, first, second = value.double(), torch.zeros(value.shape).double(), torch.zeros(value.shape).double()
        after[parameter_name] = []
        for step, learning_rate in enumerate(learning_rates.tolist()):
            gradient = gradients[parameter_name][step].double()
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
            weight = weight - learning_rate * update(weight, first, second, decay, step + 1)
            after[parameter_name].append(weight)
    save_run(name, parameters, gradients, learning_rates, after)


def adam_without_bias_correction(weight, first, second, decay, step):
    """The update of google-research/bert `optimization.py`."""
    return first / (second.sqrt() + EPS) + decay * weight


def lamb(weight, first, second, decay, step):
    """You et al. 2019, algorithm 2, with phi the identity; no trust ratio for what is not decayed."""
    first, second = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
    update = first / (second.sqrt() + EPS) + decay * weight
    weight_norm, update_norm = math.sqrt((weight**2).sum()), math.sqrt((update**2).sum())
    if decay == 0 or weight_norm == 0 or update_norm == 0:
        return update
    return weight_norm / update_norm * update


def save_run(name, parameters, gradients, learning_rates, after) -> None:
    tensors = {"learning_rates": learning_rates}
    for parameter_name in parameters:
        tensors[f"before.{parameter_name}"] = parameters[parameter_name]
        tensors[f"gradients.{parameter_name}"] = gradients[parameter_name]
        tensors[f"after.{parameter_name}"] = torch.stack(after[parameter_name])
    save(HERE / f"{name}.safetensors", tensors)


def make_clipping() -> None:
    _, gradients, _ = make_optimizer_run()
    tensors = {}
    for case, max_norm in (("above", 1.0), ("below", 1000.0)):
        trainable = {name: torch.nn.Parameter(torch.zeros(shape).double()) for name, shape in OPTIMIZER_SHAPES.items()}
        for name, parameter in trainable.items():
            parameter.grad = gradients[name][0].double()
        tensors[f"{case}.max_norm"] = torch.tensor(max_norm)
        tensors[f"{case}.norm"] = torch.nn.utils.clip_grad_norm_(trainable.values(), max_norm)
        for name, parameter in trainable.items():
            tensors[f"gradient.{name}"] = gradients[name][0]
            tensors[f"{case}.clipped.{name}"] = parameter.grad
    save(HERE / "clipping.safetensors", tensors)


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    float32 = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().contiguous().clone()
        for name, tensor in tensors.items()
    }
    save_file(float32, path)


if __name__ == "__main__":
    main()
