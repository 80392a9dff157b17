"""The low-level operators, for people who bring their own module.

Functional, device-agnostic, under ``torch.ops.haste``. `haste.nn` wraps them in modules.
"""

from haste.ops._fan_in import fan_in as fan_in
from haste.ops._library import kernels_in_force as kernels_in_force
from haste.ops._rewire import link_scores as link_scores
from haste.ops._rewire import regrow_gradient as regrow_gradient
from haste.ops._rewire import regrow_random as regrow_random
from haste.ops._step import loss as loss
from haste.ops._step import step as step
from haste.ops._topk import pack_keys as pack_keys
from haste.ops._topk import topk as topk
from haste.ops._topk import unpack_keys as unpack_keys
from haste.ops._update import update as update
