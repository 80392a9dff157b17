"""Modules: the fan-in output layer, head and tail, encoders, the auxiliary objective, and the text model."""

from haste.nn.auxiliary import Auxiliary as Auxiliary
from haste.nn.encoders import Bag as Bag
from haste.nn.encoders import Features as Features
from haste.nn.linear import FanInLinear as FanInLinear
from haste.nn.model import Model as Model
from haste.nn.model import build_encoder as build_encoder
from haste.nn.model import build_model as build_model
from haste.nn.model import check_encoder as check_encoder
from haste.nn.model import initialize_output as initialize_output
from haste.nn.output import HeadTail as HeadTail
from haste.nn.transformer import Transformer as Transformer
