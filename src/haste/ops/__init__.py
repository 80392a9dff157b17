"""The low-level operators, for people who bring their own module.

Functional, device-agnostic, under ``torch.ops.haste``. `haste.nn` wraps them in modules.
"""

from haste.ops._library import kernels_in_force as kernels_in_force
from haste.ops.fan_in import fan_in as fan_in
from haste.ops.rewire import link_scores as link_scores
from haste.ops.rewire import regrow_gradient as regrow_gradient
from haste.ops.rewire import regrow_random as regrow_random
from haste.ops.step import loss as loss
from haste.ops.step import step as step
from haste.ops.topk import pack_keys as pack_keys
from haste.ops.topk import topk as topk
from haste.ops.topk import unpack_keys as unpack_keys
from haste.ops.update import update as update
