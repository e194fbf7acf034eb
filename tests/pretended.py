"""An accelerator that is not there: tensors on the meta device; operators, bytes and memory are counted.

PyTorch's autocast, attention and generators do not know that device: what those of CUDA make of the
operators of this package is repeated here.
"""

import contextlib
import sys
import weakref
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

DEVICE = torch.device("meta")
SEED = 2**40 + 20  # by which the device's generator is known
FLASH = torch.ops.aten._scaled_dot_product_flash_attention
LOWERED = ("conv1d", "conv2d", "linear", "scaled_dot_product_attention")  # to autocast's type
RAISED = ("group_norm", "layer_norm")  # to fp32
FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
}
FLOP_PER_S, BYTES_PER_S = 400e12, 4e12  # what an H200 reaches in half precision
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}


class Draw(torch.Generator):
    device = DEVICE


class Device(contextlib.ExitStack):
    """While it is entered, the device has autocast, of functions that the package calls, and attention."""

    def __enter__(self):
        self.dtype = None
        self.replace(torch, "autocast", self.autocast)
        self.replace(torch, "is_autocast_enabled", lambda device_type: self.dtype is not None)
        self.replace(torch, "get_autocast_dtype", lambda device_type: self.dtype or torch.bfloat16)
        self.replace(torch.nn.utils.clip_grad, "_has_foreach_support", lambda tensors, device: True)
        self.replace(
            sys.modules[torch.optim.RAdam.__module__],
            "_default_to_fused_or_foreach",
            lambda *_, **__: (False, True),
        )
        self.replace(torch.fx.experimental._config, "meta_nonzero_assume_all_nonzero", True)
        self.replace(F, "scaled_dot_product_attention", lambda *qkv: FLASH(*qkv[:3])[0])
        for name in LOWERED:
            self.replace(F, name, self.cast(getattr(F, name), lambda: self.dtype))
        for name in RAISED:
            self.replace(F, name, self.cast(getattr(F, name), lambda: self.dtype and torch.float32))
        return super().__enter__()

    def replace(self, module, name, stand_in):
        self.enter_context(mock.patch.object(module, name, stand_in))

    @contextlib.contextmanager
    def autocast(self, device_type, dtype=torch.bfloat16, enabled=True):
        before = self.dtype
        self.dtype = dtype if enabled else None
        yield
        self.dtype = before

    def cast(self, function, wanted):
        def called(*args, **kwargs):
            if wanted():
                args = [x.to(wanted()) if isinstance(x, Tensor) else x for x in args]
            return function(*args, **kwargs)

        return called


class Counted(TorchDispatchMode):
    """Launches, bytes moved, the peak of live memory (bytes) and the least time of what runs inside, on the
    pretended device: an operator computes or moves bytes, whichever takes longer. `held` tensors are there
    before. `waits`: what would make the processor wait for the device. Raises
    AssertionError for operators of two devices and for numbers drawn by another generator than `draw`'s."""

    def __init__(self, *held: Tensor, drawn_by_any: bool = False):
        super().__init__()
        self.drawn_by_any = drawn_by_any
        self.launches = self.moved = self.live = self.peak = 0
        self.roofline_s = 0.0
        self.waits, self.dtypes, self.stores = [], set(), weakref.WeakSet()
        self.device = Device()
        self.hold(held)

    def __enter__(self):
        self.device.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.device.__exit__(*error)

    def hold(self, tensors):
        for store in (t.untyped_storage() for t in tensors if t.device == DEVICE):
            if store not in self.stores:
                self.stores.add(store)
                self.live += store.nbytes()
                weakref.finalize(store, self.free, store.nbytes())
        self.peak = max(self.peak, self.live)

    def free(self, n_bytes):
        self.live -= n_bytes

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        inputs = {key: value for key, value in (kwargs or {}).items() if key != "out"}
        given = [x for x in tree_leaves((args, inputs)) if isinstance(x, Tensor)]
        by_mask = name == "index" and any(x.dtype == torch.bool for x in given)
        if (name in WAITING or by_mask) and given[0].device == DEVICE:
            self.waits.append(name)
            if name == "_local_scalar_dense":
                return 1
        made = operator(*args, **(kwargs or {}))
        both = given + [x for x in tree_leaves(made) if isinstance(x, Tensor)]
        here = [x for x in both if x.device == DEVICE]
        if not here or operator.is_view or name in FREE:
            self.hold(here)
            return made
        if others := [x for x in given if x.device != DEVICE and x.dim()]:
            assert name in ("_to_copy", "copy_"), f"{operator} on two devices"
            self.waits.append(f"{tuple(others[0].shape)} from the processor's memory")
        if "generator" in str(operator._schema) and not self.drawn_by_any:
            drawn_by = (kwargs or {}).get("generator")
            assert drawn_by is not None, f"{operator} without a generator"
            assert drawn_by.initial_seed() == SEED, f"{operator} with another generator"
        self.launches += 1
        self.dtypes |= {x.dtype for x in here}
        n_bytes = sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in here)
        count = flop_registry.get(operator.overloadpacket, lambda *_, **__: 0)
        n_flop = count(*args, **(kwargs or {}), out_val=made)
        self.moved += n_bytes
        self.roofline_s += max(n_bytes / BYTES_PER_S, n_flop / FLOP_PER_S)
        self.hold(here)
        return made


def training_step(objective, batch, half=True, at=0.5):
    """The second step of a training, the first with gradients and the optimisers' state there, counted."""
    objective.to(DEVICE)
    objective.begin("pretended")
    optimisers = objective.optimisers().values()
    draw = Draw()
    draw.manual_seed(SEED)
    step = round(at * objective.config.steps)
    for _ in range(2):
        models = [
            x for module in objective.parts().values() for x in (*module.parameters(), *module.buffers())
        ]
        states = [x for o in optimisers for state in o.state.values() for x in state.values()]
        counted = Counted(*models, *(x for x in tree_leaves((batch, states)) if isinstance(x, Tensor)))
        with counted:
            for optimiser in optimisers:
                optimiser.zero_grad()
            prepared = objective.prepare(batch, step, draw)
            with torch.autocast(DEVICE.type, enabled=half):
                loss = objective.minimised(objective(prepared, step, draw))
                torch.autograd.backward(loss)
            gradients = [p.grad for p in objective.trained() if p.grad is not None]
            torch.nn.utils.get_total_norm(gradients)
            for optimiser in optimisers:
                optimiser.step()
            objective.follow(objective.config.steps)
            del prepared, loss, gradients
    return counted


def window(model, which, n_items=1):
    """ "encode" or "decode" of the second window, counted."""
    model = model.to(DEVICE).eval()
    config = model.config
    shape = (config.window_frames * config.hop,)
    if which == "decode":
        shape = (config.network.latent_channels, config.window_frames)
    given = torch.empty(n_items, *shape, device=DEVICE)
    for _ in range(2):
        with torch.no_grad(), Counted(*model.parameters()) as counted:
            getattr(model, which)(given)
    return counted
