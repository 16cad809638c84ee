"""What GPT-2 and LLaMA of Hugging Face compute, with small random weights: the samples of tests/test_weights.py.

    python tests/peers/transformers_gpt.py      writes tests/peers/samples/; wants torch, transformers and safetensors

They are no dependencies, so the samples are kept; these were made with transformers 5.23 and torch 2.15. Of each model:

    NAME.safetensors            the weights in float32, as `save_pretrained` writes them
    NAME_gradient.safetensors   the cost's gradient of each, in float64
    NAME_values.safetensors     ids, labels, logits and cost, in float64
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors.torch import save

FOLDER = Path(__file__).with_name("samples")
MODELS = {
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            vocab_size=17, n_positions=11, n_embd=12, n_layer=2, n_head=3,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
            bos_token_id=None, eos_token_id=None,
        ),
    ),
    "modern": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            vocab_size=17, max_position_embeddings=11, hidden_size=24, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, intermediate_size=20, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attn_implementation="eager",
            bos_token_id=None, eos_token_id=None,
        ),
    ),
}  # fmt: skip


@contextmanager
def in_float64():
    """LLaMA's code names float32 for its norms, angles and softmax; here that means float64."""
    before = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = before


def make(name: str) -> None:
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)  # biases and scales too, so that none hides
        model.save_pretrained(folder)
        (FOLDER / f"{name}.safetensors").write_bytes((Path(folder) / "model.safetensors").read_bytes())
    weights = {key: value.double() for key, value in model.state_dict().items()}
    with in_float64():
        model = kind(config).double()
        model.load_state_dict(weights)
        ids, labels = torch.randint(17, (2, 2, 7))
        logits = model(input_ids=ids).logits
        cost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        cost.backward()
    gradient = {key: parameter.grad for key, parameter in model.named_parameters()}
    values = {"ids": ids, "labels": labels, "logits": logits.detach(), "cost": cost.detach()}
    assert {value.dtype for value in (*gradient.values(), logits, cost)} == {torch.float64}
    (FOLDER / f"{name}_gradient.safetensors").write_bytes(save(gradient))
    (FOLDER / f"{name}_values.safetensors").write_bytes(save(values))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in MODELS:
        make(name)
