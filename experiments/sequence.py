"""Tasks that want a memory, by an LSTM, a GRU, a vanilla RNN or a state-space model, gradients written by hand.

    python3 scripts/run.py sequence                                  (the adding problem, 200 steps, an LSTM)
    python3 scripts/run.py sequence --cell rnn                       (which does not learn it: the gradient vanishes)
    python3 scripts/run.py sequence --task copy --cell state_space   (ten symbols, a long blank, and again)
    python3 scripts/run.py sequence --task markov --truncate 16      (text of known entropy; the gradient goes back 16)

What the best model costs is known of each task, and what the best one without a memory. How far the gradient reaches
is in every row, from |∂C/∂hₜ| at every step t, C what the last step costs. At the end our backward pass is held against
jax.grad of an independent copy of the model.

    python3 scripts/run.py sequence --cell rnn --beside RUN RUN RUN  (four cells in one picture: why one of them fails)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

import manual_backprop as mb
from manual_backprop.errors import choose
from manual_backprop.inspection import hidden_sensitivities
from manual_backprop.layers import Apply
from manual_backprop.models.recurrent import recurrent
from manual_backprop.testing import Program, compare, gradient_difference
from manual_backprop.training import config, hosts, placing, run, sequence_pictures, tasks
from manual_backprop.training.devices import describe
from manual_backprop.training.environment import place
from manual_backprop.training.flow import layer_norms
from manual_backprop.training.loop import Step, Training
from manual_backprop.training.optimizers import averages, averaging
from manual_backprop.training.progress import Speed
from manual_backprop.training.weights import save_params

HELD_OUT, LISTENED = 1024, 64  # fresh examples to judge by, and so many of them to look back from
LENGTHS = {"adding": 200, "copy": 60, "markov": 64}


class Size(NamedTuple):
    hidden: int
    depth: int
    learning_rate: float


CELLS = {
    "lstm": Size(64, 1, 1e-2),
    "gru": Size(64, 1, 1e-2),
    "rnn": Size(64, 1, 1e-3),
    "state_space": Size(32, 2, 1e-2),  # it is the next block's gate that makes something of a memory
}


@dataclass(frozen=True)
class Config(config.Config):
    """Train a model with a memory on tasks of known difficulty, with gradients written by hand."""

    task: str = "adding"
    """adding (the sum of two marked numbers), copy (ten symbols after a blank) or markov (text of known entropy)."""
    cell: str = "lstm"
    """lstm, gru, rnn or state_space."""
    length: int | None = None
    """Steps of an example; by default 200 of adding, 60 of copy, 64 of markov."""
    hidden: int | None = None
    """Numbers in a state; by default 64, of a state-space model 32 complex ones."""
    depth: int | None = None
    """How many cells, one on another; by default 1, of a state-space model 2."""
    truncate: int = 0
    """The gradient goes back so many steps, and values on; wants a divisor of the length. 0: through all."""
    learning_rate: float | None = None
    """The largest; it rises for the first twentieth of the steps, and falls along a cosine to a tenth. By default 0.01,
    of an rnn 0.001."""
    clip: float = 1.0
    """The gradient's length, at most; 0 leaves it as it is."""
    beside: tuple[Path, ...] = ()
    """Runs of this task, of other cells perhaps, to be drawn beside this one."""
    steps: int = 1500
    """Steps of Adam."""

    @property
    def size(self) -> Size:
        given = Size(self.hidden, self.depth, self.learning_rate)
        usual = CELLS[self.cell]
        return Size(*(b if a is None else a for a, b in zip(given, usual, strict=True)))

    @property
    def time(self) -> int:
        return LENGTHS[self.task] if self.length is None else self.length


def check(config: Config) -> None:
    """Raises InputError for a value that no part of the program would catch in time."""
    config.check()
    choose("--cell", config.cell, CELLS)
    choose("--task", config.task, LENGTHS)
    for name in ("hidden", "depth"):
        if getattr(config.size, name) < 1:
            raise mb.InputError(f"--{name} {getattr(config, name)} is out of range; wants at least 1")
    if not 0 < config.size.learning_rate < math.inf:
        raise mb.InputError(f"--learning-rate {config.learning_rate} is out of range; wants a positive number")
    if not 0 <= config.clip < math.inf:
        raise mb.InputError(f"--clip {config.clip} is out of range; wants 0, or a positive number")
    if config.truncate < 0:
        raise mb.InputError(f"--truncate {config.truncate} is out of range; wants 0, or a number of steps")
    task = tasks.load(config.task, config.time, config.seed)
    for path in config.beside:
        sequence_pictures.read(path, task)
    if config.truncate > config.time:
        raise mb.InputError(f"--truncate {config.truncate}: a sequence has {config.time} steps; wants at most so many")
    if config.truncate and config.time % config.truncate:
        raise mb.InputError(
            f"--truncate {config.truncate} does not divide the {config.time} steps of a sequence; wants a divisor"
        )


def network(config: Config, task: tasks.Task, last: bool, cell: str | None = None) -> mb.Objective:
    """The model and its cost; last: of the last step's answer alone, by the same weights."""
    cell = cell or config.cell
    hidden, depth = config.size[:2] if cell == config.cell else CELLS[cell][:2]
    model = recurrent(cell, hidden, task.outputs, depth, task.vocabulary, last, config.truncate or None)
    return mb.Objective(model, Apply(task.cost))


def optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    rate = config.size.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, rate, max(1, config.steps // 20), max(2, config.steps), rate / 10
    )
    adam = optax.adam(schedule)
    clipped = optax.chain(optax.clip_by_global_norm(config.clip), adam) if config.clip else adam
    return averaging(clipped, config.ema) if config.ema else optax.with_extra_args_support(clipped)


# ── the same in plain JAX ────────────────────────────────────────────────────────────────────────────────────────────


def reference(config: Config, task: tasks.Task):
    """The same cost in plain JAX, for jax.grad: `cost(params, (x, target))`."""
    linear_states = config.cell == "state_space"

    def rnn(p, h, x):
        return jnp.tanh(x @ p["wx"] + h @ p["wh"] + p["b"])

    def lstm(p, state, x):
        h, c = state
        i, f, g, o = jnp.split(x @ p["wx"] + h @ p["wh"] + p["b"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(p, h, x):
        a, u = jnp.split(x @ p["wx"] + p["b"], 3, -1), jnp.split(h @ p["wh"], 3, -1)
        r, z = jax.nn.sigmoid(a[0] + u[0]), jax.nn.sigmoid(a[1] + u[1])
        return (1 - z) * jnp.tanh(a[2] + r * (u[2] + p["bh"])) + z * h

    def linear(p, h, u):
        decay = jnp.exp(-jnp.exp(p["nu"]) + 1j * p["theta"])
        return decay * h + jnp.sqrt(1 - jnp.abs(decay) ** 2) * u

    def states(step, p, start, xs):
        """All of them, [batch, time, …]; at the start of each part the one before is a constant."""

        def one(state, here):
            x, cut = here
            state = jax.tree.map(lambda h: jnp.where(cut, lax.stop_gradient(h), h), state)
            state = step(p, state, x)
            return state, state

        cuts = jnp.arange(task.length) % (config.truncate or task.length) == 0
        _, found = lax.scan(one, start, (jnp.moveaxis(xs, 1, 0), cuts))
        return jax.tree.map(lambda h: jnp.moveaxis(h, 0, 1), found)

    def gated(p, x):
        zero = jnp.zeros((len(x), p["wh"].shape[0]), x.dtype)
        if config.cell == "lstm":
            return states(lstm, p, (zero, zero), x)[0]
        return states(gru if config.cell == "gru" else rnn, p, zero, x)

    def block(p, x):
        norm, first, _, unit, second = p
        centred = x - jnp.mean(x, -1, keepdims=True)
        x_hat = centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)
        a, b = jnp.split((x_hat * norm["scale"] + norm["bias"]) @ first["w"] + first["b"], 2, -1)
        u = lax.complex(*jnp.split(a * jax.nn.sigmoid(b), 2, -1))
        h = states(linear, unit, jnp.zeros_like(u[:, 0]), u)
        return x + jnp.concatenate([h.real, h.imag], -1) @ second["w"] + second["b"]

    def cost(params, batch):
        x, target = batch
        *layers, output = [p for p in params[0] if p]
        if task.vocabulary:
            x = layers.pop(0)["table"][x]
        elif linear_states:
            first = layers.pop(0)
            x = x @ first["w"] + first["b"]
        memory = layers[0] if config.truncate else layers
        alone, stacks = ([], memory) if linear_states else (memory[:1], memory[1:])
        for p in alone:
            x = gated(p, x)
        for p in stacks:
            for i in range(config.size.depth - len(alone)):
                x = (block if linear_states else gated)(jax.tree.map(lambda leaf, i=i: leaf[i], p), x)
        z = (x[:, -1] if task.last else x) @ output["w"] + output["b"]
        if task.vocabulary:
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), target[..., None], -1))
        return jnp.mean((z - target) ** 2)

    return cost


# ── the experiment ───────────────────────────────────────────────────────────────────────────────────────────────────


def main(stop: run.Stop) -> int:
    options, folder = config.parsed(Config, "sequence")
    check(options)
    with place(options) as mesh:
        return experiment(options, folder, mesh, stop, Console(highlight=False, soft_wrap=True))


def experiment(config: Config, folder: Path | None, mesh: Mesh, stop: run.Stop, console: Console) -> int:
    placing.want_divided(config.batch_size, mesh)
    task = tasks.load(config.task, config.time, config.seed)
    objective = network(config, task, task.last)
    data, drawn = placing.fed(task.data, task.draw, config.batch_size, mesh)
    step = Step(
        placing.arranged(objective, mesh, config),
        optimizer(config),
        config.batch_size,
        config.seed,
        drawn,
        layer_norms(objective),
        config.skip_nonfinite,
        objective,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31)  # of no step: these are below
    held_out = placing.on_devices(jax.jit(lambda: task.draw(key, task.data, HELD_OUT))(), mesh)

    @jax.jit
    def measured(params, state, batch) -> tuple[dict[str, jax.Array], jax.Array]:
        answers = objective.model.apply(params[0], state[0], batch[0])
        row = {"held_out_cost": objective.cost.apply(params[1], state[1], (answers, batch[1]))}
        if task.answers:
            right = jnp.argmax(answers, -1) == batch[1]
            row["accuracy"] = jnp.mean(right[:, -task.answers :])
        return row, through_time(config, task, config.cell, params, batch)

    def judged(training: Training) -> tuple[dict[str, float], np.ndarray]:
        """The cost held out, the share of right answers where there are some, how far the gradient reaches; by step."""
        params = averages(training.optimizer_state, training.params)
        row, lengths = measured(params, training.state, held_out)
        lengths = hosts.gathered(lengths)
        return jax.tree.map(float, row) | reached(lengths), lengths

    speed = Speed("examples", config.batch_size)
    told = f"{task.name} of {task.length} steps"
    with run.opened("sequence", config, folder, mesh, stop, console, speed, told) as here:
        first = placing.started(step, data, mesh)
        size = sum(leaf.size for leaf in jax.tree.leaves(first.params))
        here.print(f"device  {describe(mesh)}")
        here.print(f"model   {objective.model!r}, {size:,} parameters")
        here.print(f"task    {told}: {task.memoryless:.4f} {task.unit} without a memory, at best {task.least:.4f}")
        here.restore(first)
        for training, metrics in here.chunks(step, data, min(max(1, config.steps // 50), 200)):
            row, lengths = judged(training)
            here.record(training, metrics, row, row["held_out_cost"])
            if hosts.is_first() and is_moment(here.step, len(metrics.cost), config.steps):
                sequence_pictures.remember(here.folder, config.cell, here.step, lengths)
        last, results = here.training, {}
        numbers, _ = judged(last)
        batches = hosts.gathered([step.batch(data, training)[0] for training in (first, last)])
        first, last, held_out = hosts.gathered((first, last, held_out))  # on the host, where one process has it all
        if hosts.is_first():
            params = averages(last.optimizer_state, last.params)
            if here.rows:
                for cell, lengths in at_the_start(config, task, first.params, held_out).items():
                    sequence_pictures.remember(here.folder, cell, 0, lengths)
                past = sequence_pictures.read(here.folder, task)
                sequence_pictures.curves(here.rows, task, here.folder / "curves.png")
                sequence_pictures.through_time(past, here.folder / "through_time.png")
                if config.beside:
                    runs = [sequence_pictures.read(path, task) for path in config.beside]
                    sequence_pictures.beside([*runs, past], task, here.folder / "beside.png")
            if here.complete:
                known = {"memoryless": task.memoryless, "least": task.least, "entropy": task.least or None}
                results = numbers | known | {"solved": numbers["held_out_cost"] < task.solved}
                results |= judge(config, task, objective, first, last, batches)
                save_params(here.file("weights.safetensors"), params)
        code = here.finished(results)
        if results:
            here.print(table(task, results))
        return code


# ── how far back ─────────────────────────────────────────────────────────────────────────────────────────────────────


def through_time(config: Config, task: tasks.Task, cell: str, params, batch) -> jax.Array:
    """|∂C/∂hₜ| of the first recurrent layer, for every t, C the cost of the last step alone: [length]."""
    x, target = (leaf[:LISTENED] for leaf in batch)
    if not task.last:  # the same weights in a model of which the last step alone answers
        (*memory, output), cost = params
        params, target = ((*memory, {}, output), cost), target[:, -1]
    objective = network(config, task, True, cell)
    _, state = jax.eval_shape(objective.init, jax.random.key(0), (x, target))  # nothing is carried from batch to batch
    lengths = next(iter(hidden_sensitivities(objective, params, state, (x, target)).values()))
    return lengths.reshape(-1, task.length)[0]


def reached(lengths) -> dict[str, float]:
    """How far back ∂C/∂h is not lost in rounding; and what the first is of the last, which is 0 below all float32."""
    first, last = float(lengths[0]), float(lengths[-1])
    return {"reach": float(sequence_pictures.reach(lengths)), "first_over_last": first / last if last else 0.0}


def at_the_start(config: Config, task: tasks.Task, params, batch) -> dict[str, jax.Array]:
    """The same of every cell before its first step: this run's has its own weights, the others some of the seed."""

    @jax.jit
    def run(params, batch):
        key = jax.random.key(config.seed)
        start = {cell: network(config, task, task.last, cell).init(key, batch)[0] for cell in CELLS}
        start[config.cell] = params
        return {cell: through_time(config, task, cell, start[cell], batch) for cell in CELLS}

    return run(params, batch)


def is_moment(step: int, taken: int, steps: int) -> bool:
    """Whether a tenth, a half or all of the steps are among those just taken."""
    return any(step - taken < max(1, steps * part // 10) <= step for part in (1, 5, 10))


# ── at the end ───────────────────────────────────────────────────────────────────────────────────────────────────────


def judge(
    config: Config, task: tasks.Task, objective: mb.Objective, first: Training, last: Training, batches
) -> dict[str, float]:
    """Our backward pass against jax.grad's of the reference: how equal, how fast, how large."""
    cost = reference(config, task)
    differences = [
        gradient_difference(objective, cost, training.params, training.state, batch)
        for training, batch in zip((first, last), batches, strict=True)
    ]
    gradient = mb.value_and_grad(objective)
    ours = Program(lambda params, batch: gradient(params, last.state, batch), (last.params, batches[1]))
    result = compare(ours, Program(jax.value_and_grad(cost), (last.params, batches[1])), rounds=21)
    return {
        "gradient_difference_first": differences[0],
        "gradient_difference_last": differences[1],
        "step_ms": result.ours.step_s * 1e3,
        "step_ms_jax_grad": result.peer.step_s * 1e3,
        "temp_bytes": result.ours.temp_bytes,
        "temp_bytes_jax_grad": result.peer.temp_bytes,
    }


def table(task: tasks.Task, results: dict[str, Any]) -> Table:
    rows = Table("", "by hand", "jax.grad", "ratio", box=None, pad_edge=False)
    r = results
    rows.add_row(f"cost held out, {task.unit}{': solved' * r['solved']}", f"{r['held_out_cost']:.5f}")
    rows.add_row("    without a memory it would be", f"{r['memoryless']:.5f}")
    rows.add_row("    at best", f"{r['least']:.5f}")
    if "accuracy" in r:
        rows.add_row(f"right answers among the last {task.answers}", f"{r['accuracy']:.4f}")
    rows.add_row("steps back until rounding loses ∂C/∂h", f"{r['reach']:.0f} of {task.length}")
    rows.add_row("|∂C/∂h| at the first step, over that at the last", f"{r['first_over_last']:.1e}")
    rows.add_row("largest gradient difference, first step (float64)", f"{r['gradient_difference_first']:.1e}")
    rows.add_row("largest gradient difference, last step (float64)", f"{r['gradient_difference_last']:.1e}")
    ms = [r["step_ms"], r["step_ms_jax_grad"]]
    rows.add_row("cost and gradient of a batch, ms", f"{ms[0]:.3f}", f"{ms[1]:.3f}", f"{ms[0] / ms[1]:.2f}")
    mb_ = [r["temp_bytes"] / 1e6, r["temp_bytes_jax_grad"] / 1e6]
    rows.add_row("temporary memory, MB", f"{mb_[0]:.1f}", f"{mb_[1]:.1f}", f"{mb_[0] / mb_[1]:.2f}" if mb_[1] else "")
    return rows


if __name__ == "__main__":
    run.main(main)
