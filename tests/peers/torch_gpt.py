"""GPT-2 as a PyTorch user writes it, trained step by step in a process of its own; wants torch and numpy alone.

    PYTHON tests/peers/torch_gpt.py START.npz eager|compile THREADS

START.npz holds ids, labels, heads, and the parameters as `flax_gpt.to_flax` names them, joined by dots.
Each line on stdin is a request, and one on stdout its answer:

    a number    {"seconds": …, "cost": …}                             of so many steps; the cost of the last
    report      {"version": …, "temp_bytes": …, "peak_bytes": …}      the memory of one more step
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        q, k, v = (h.unflatten(2, (self.heads, -1)).transpose(1, 2) for h in self.qkv(self.norm1(x)).chunk(3, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, length: int, depth: int, width: int, hidden: int, heads: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(vocabulary, width))
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(Block(width, hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids, labels):
        x = F.embedding(ids, self.table) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(F.linear(self.norm(x), self.table).flatten(0, 1), labels.flatten())


def from_flax(params: dict[str, np.ndarray], heads: int) -> GPT:
    """The model with these parameters: of a dense layer flax keeps the transpose, and calls every weight otherwise."""
    vocabulary, width = params["table"].shape
    depth = len({name.split(".")[0] for name in params if name.startswith("block")})
    model = GPT(vocabulary, len(params["positions"]), depth, width, len(params["block0.up.bias"]), heads)
    weights = {}
    for name, value in params.items():
        name = re.sub(r"^block(\d+)", r"blocks.\1", name)
        value = value.T.copy() if name.endswith("kernel") else value
        weights[re.sub(r"(kernel|scale)$", "weight", name)] = torch.from_numpy(value)
    model.load_state_dict(weights)
    return model


class Training:
    def __init__(self, start: dict[str, np.ndarray], compiled: bool):
        params = dict(start)
        ids, labels, heads = (params.pop(name) for name in ("ids", "labels", "heads"))
        self.batch = torch.from_numpy(ids).long(), torch.from_numpy(labels).long()
        self.model = from_flax(params, int(heads))
        self.cost = torch.compile(self.model) if compiled else self.model
        # The decay is that of optax.adamw; fused is the fastest that torch has.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, weight_decay=1e-4, fused=True)

    def steps(self, n: int) -> dict:
        start = time.perf_counter()
        for _ in range(n):
            cost = self.cost(*self.batch)
            cost.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        cost = cost.item()
        return {"seconds": time.perf_counter() - start, "cost": cost}

    def report(self) -> dict:
        """What torch's allocator holds at most, without and with what stays from step to step.

        As in the plan of XLA, gradients are temporary, and what a matrix product packs its factors into is not counted.
        """
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.steps(1)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "trace.json")
            profiled.export_chrome_trace(str(file))
            events = [event for event in json.loads(file.read_text())["traceEvents"] if event["name"] == "[memory]"]
        held = np.cumsum([event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])])
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        staying = sum(value.nbytes for value in (*self.model.parameters(), *moments, *self.batch))
        temp = int(max(0, held.max(initial=0)))
        return {"version": torch.__version__, "temp_bytes": temp, "peak_bytes": staying + temp}


def main() -> None:
    file, mode, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    torch.set_num_threads(int(threads))
    with np.load(file) as start:
        training = Training(start, compiled=mode == "compile")
    for request in sys.stdin:
        answer = training.report() if request.strip() == "report" else training.steps(int(request))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
