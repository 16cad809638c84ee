"""Eight CPU devices for every test, so that sharding is tested where there is no accelerator."""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several workers share one GPU, where there is one

import jax

jax.config.update("jax_num_cpu_devices", 8)
