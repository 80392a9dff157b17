"""Output layers in other people's training loops; `huggingface` and `lightning` need the package they are for."""

from haste.integrations.collator import Collator as Collator
from haste.integrations.collator import csr_positives as csr_positives
from haste.integrations.rewiring import Rewiring as Rewiring
