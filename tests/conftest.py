"""One thread: small tensors are faster without a pool, and runs side by side do not fight for cores."""

import torch

torch.set_num_threads(1)
