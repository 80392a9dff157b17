"""Optimizers whose update rule the fused pass of a `haste.nn` layer applies, and learning-rate schedules."""

from haste.optim.adamw import AdamW as AdamW
from haste.optim.chained import ChainedOptimizer as ChainedOptimizer
from haste.optim.kahan import KahanAdamW as KahanAdamW
from haste.optim.schedule import cosine_schedule as cosine_schedule
from haste.optim.schedule import rarity_rates as rarity_rates
from haste.optim.sgd import SGD as SGD
