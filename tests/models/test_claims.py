"""What a config says is compared with the files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.tiny import save_tiny, save_tiny_gguf, tiny_model, tiny_tokenizer
from potstill.errors import ModelError
from potstill.models import claims, loading
from potstill.students import model as model_student
from potstill.students._built import StudentContext

FP32 = torch.float32


def claiming(folder: Path, **changes: Any) -> loading.Source:
    """A tiny model whose config says something else."""
    save_tiny(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return loading.find_source(str(folder))


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 10**9}, {"num_hidden_layers": 10_000}, {"num_labels": 10**9}, {"vocab_size": 10**9},
     {"hidden_size": 10**12}, {"intermediate_size": 10**9}, {"num_attention_heads": 10**9}, {"n_layer": 10**9},
     {"head_dim": 10**9}, {"text_config": {"num_hidden_layers": 10**9}}],
    ids=str,
)  # fmt: skip
def test_sizes_that_the_files_cannot_have_are_refused_before_anything_is_built(tmp_path, changes):
    source = claiming(tmp_path / "m", **changes)
    for step in (loading.load_config, loading.load_tokenizer, loading.count_parameters):
        with pytest.raises(
            ModelError, match=r"the config of .* says \w+: 10+, and its files hold 21 tensors"
        ):
            step(source)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 20_000}, {"intermediate_size": 1_900_000}, {"vocab_size": 1_900_000}, {"head_dim": 1_000_000}],
    ids=str,
)  # fmt: skip
def test_a_config_of_a_far_larger_model_than_the_files_hold_is_refused_before_it_is_built(tmp_path, changes):
    source = claiming(tmp_path / "m", **changes)
    words = r"describes a model of [\d,]+ parameters, and its files hold 28,832 numbers"
    for step in (loading.count_parameters, partial(loading.load_model, dtype=FP32)):
        with pytest.raises(ModelError, match=words):
            step(source)


@pytest.mark.parametrize("packed", [False, True])
def test_files_may_leave_out_what_a_config_repeats_or_packs(packed):
    claims.require_fitting(2 * 10**9, 10**9, packed, "owner/name")
    if packed:
        claims.require_fitting(32 * 10**9, 10**9, packed, "owner/name")


@pytest.mark.parametrize(
    "changes",
    [{"intermediate_size": -64}, {"hidden_size": -32}, {"num_hidden_layers": -1}, {"vocab_size": 0}, {"head_dim": 0},
     {"num_attention_heads": "two"}, {"hidden_act": "no such"}, {"rope_parameters": 3}, {"layer_types": ["odd", "even"]}],
    ids=str,
)  # fmt: skip
def test_a_config_that_no_model_can_be_built_from_is_refused(tmp_path, changes):
    source = claiming(tmp_path / "m", **changes)
    with pytest.raises(ModelError):
        loading.load_model(source, dtype=FP32)


@pytest.mark.parametrize("value", [-1.0, 1.5, -3, float("nan")])
@pytest.mark.parametrize("key", ["attention_dropout", "resid_pdrop", "dropout"])
def test_a_share_that_is_none_is_refused(tmp_path, key, value):
    """It would fail in the first step of training."""
    with pytest.raises(ModelError, match=f"says {key}: {value}, which is no share"):
        loading.load_config(claiming(tmp_path / "m", **{key: value}))


@pytest.mark.parametrize("value", [3, float("-inf"), [3], {"a": 1}, "x"], ids=str)
def test_architectures_that_are_no_names_are_refused(tmp_path, value):
    with pytest.raises(ModelError):
        loading.load_config(claiming(tmp_path / "m", architectures=value))


@pytest.mark.parametrize(
    ("key", "words"),
    [("block_count", "says num_hidden_layers: 33554434, and its files hold 21 tensors"),
     ("embedding_length", "says hidden_size: 33554464"), ("feed_forward_length", "says intermediate_size: 33554496")],
)  # fmt: skip
def test_a_gguf_file_is_held_to_what_a_folder_is_held_to(tmp_path, monkeypatch, key, words):
    """The fourth byte of a number is changed."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    file = save_tiny_gguf(tmp_path / "x.gguf")
    data = bytearray(file.read_bytes())
    data[data.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4 + 3] = 2
    file.write_bytes(data)
    source = loading.find_source(str(file))
    for step in (loading.load_config, partial(loading.load_model, dtype=FP32)):
        with pytest.raises(ModelError, match=words):
            step(source)


def test_sizes_of_a_model_whose_files_are_not_here_yet_have_bounds_too():
    with pytest.raises(ModelError, match="says num_layers: 1000000000"):
        claims.require_possible({"num_layers": 10**9}, None, "owner/name")
    claims.require_possible({"num_hidden_layers": 200, "max_position_embeddings": 10**7}, None, "owner/name")


def test_a_token_for_unknown_words_that_is_unknown_itself_is_refused(tmp_path):
    """The library would look it up without end."""
    source = claiming(tmp_path / "m")
    file = tmp_path / "m/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"unk_token": ""}))
    with pytest.raises(ModelError, match="writes unknown words as '', which is none of its tokens"):
        loading.load_tokenizer(source)


@pytest.mark.parametrize("place", ["vocab", "added_tokens"])
def test_a_token_id_far_beyond_the_number_of_tokens_is_refused(tmp_path, place):
    source = claiming(tmp_path / "m")
    content = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    if place == "vocab":
        content["model"]["vocab"]["far"] = 10**9
    else:
        content["added_tokens"].append(content["added_tokens"][0] | {"id": 10**9, "content": "<far>"})
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="gives a token the id 1000000000, and it has 133 tokens"):
        loading.load_tokenizer(source)


QUANTISED = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    "without a name": ({"load_in_8bit": True}, "bitsandbytes"),
    "gptq": ({"quant_method": "gptq", "bits": 4}, "gptqmodel"),
    "awq": ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "hqq": ({"quant_method": "hqq"}, "hqq"),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_without_their_package_name_method_and_package(tmp_path, name):
    settings, package = QUANTISED[name]
    source = claiming(tmp_path / "m", quantization_config=settings)
    with pytest.raises(
        ModelError, match=rf"are quantised with .*, and the package {package} is not installed"
    ):
        loading.load_config(source)


def test_an_unknown_quantisation_is_refused_by_name(tmp_path):
    source = claiming(tmp_path / "m", quantization_config={"quant_method": "mine"})
    with pytest.raises(ModelError, match="are quantised with mine, which is not known"):
        loading.load_config(source)


def test_packed_numbers_are_never_trained(tmp_path, monkeypatch):
    """The package may be there; its weights are integers all the same."""
    claiming(tmp_path / "m", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    monkeypatch.setattr(claims, "require_readable_numbers", lambda config, who: None)
    context = StudentContext(None, "t", None, base=tmp_path, device=torch.device("cpu"))
    for step in (model_student.reads, model_student.build):
        with pytest.raises(
            ModelError, match="quantised with bitsandbytes, and packed numbers cannot be trained"
        ):
            step(context, model="m")


@pytest.mark.parametrize("full", [True, False])
def test_an_adapter_is_refused_with_and_without_a_model_beside_it(tmp_path, full):
    source = claiming(tmp_path / "m")
    folder = tmp_path / "m"
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/x"}')
    if not full:
        (folder / "config.json").unlink()
    for step in (loading.load_config, loading.load_tokenizer):
        with pytest.raises(ModelError, match=r"holds an adapter .*merge_and_unload"):
            step(source)


MAPS = [
    {"AutoConfig": "other/code--configuration.Config"},
    {"AutoModelForCausalLM": "other/code--modeling.Model"},
    {"AutoTokenizer": ["other/code--tokenization.Slow", None]},
]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("auto_map", MAPS, ids=str)
def test_code_of_another_repository_is_refused_before_it_is_looked_for(tmp_path, name, auto_map):
    folder = save_tiny(tmp_path / "m")
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | {"auto_map": auto_map}))
    trusted = loading.find_source(str(folder), trust_remote_code=True)
    with pytest.raises(ModelError, match="comes from another repository, other/code"):
        loading.load_tokenizer(trusted)
    if name == "config.json":
        with pytest.raises(ModelError, match="comes from another repository, other/code"):
            loading.load_config(trusted)
        loading.load_config(loading.find_source(str(folder)))  # untrusted code does not run


def test_code_of_the_same_repository_passes():
    claims.require_own_code({"auto_map": {"AutoConfig": "a/b--c.D", "AutoModel": "m.D"}}, "a/b")


def rewritten(folder: Path, change: Any, kind: str = "llama", **options: Any) -> loading.Source:
    """A tiny model whose stored tensors are changed."""
    tiny_model(kind=kind, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return loading.find_source(str(folder))


UNUSED = {
    "a bias": ("model.layers.0.self_attn.q_proj.bias", "llama"),
    "a norm": ("model.layers.1.self_attn.q_norm.weight", "llama"),
    "a layer": ("model.layers.2.mlp.up_proj.weight", "llama"),
    "a head": ("score.weight", "llama"),
    "a projection": ("transformer.h.0.attn.c_q.bias", "gpt2"),
}


@pytest.mark.parametrize("name", UNUSED)
def test_a_stored_tensor_that_the_config_has_no_place_for_is_refused(tmp_path, name):
    key, kind = UNUSED[name]
    source = rewritten(tmp_path / "m", lambda w: w.update({key: torch.ones(32)}), kind)
    with pytest.raises(ModelError, match=rf"has no place for \(1, first {key}\)"):
        loading.load_model(source, dtype=FP32)


@pytest.mark.parametrize(
    ("stored", "said", "words"),
    [({"attention_bias": True}, {"attention_bias": False}, r"no place for \(8, first .*k_proj\.bias\)"),
     ({}, {"attention_bias": True}, r"lacks 8 of its tensors, first .*k_proj\.bias"),
     ({}, {"num_hidden_layers": 1}, r"no place for \(9, first model\.layers\.1"),
     ({}, {"num_hidden_layers": 3}, r"lacks 9 of its tensors, first model\.layers\.2"),
     ({}, {"vocab_size": 64}, r"2 tensors of another shape .*first lm_head\.weight: \[128, 32\].*\[64, 32\]"),
     ({"tie": True}, {"tie_word_embeddings": False}, r"lacks 1 of its tensors, first lm_head\.weight")],
    ids=str,
)  # fmt: skip
def test_config_and_files_must_agree_in_both_directions(tmp_path, stored, said, words):
    rewritten(tmp_path / "m", lambda w: None, **stored)
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | said))
    with pytest.raises(ModelError, match=words):
        loading.load_model(loading.find_source(str(tmp_path / "m")), dtype=FP32)


COMPUTED = {
    "rotary frequencies": ({"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}, "llama"),
    "masks": ({"transformer.h.0.attn.bias": (1, 1, 8, 8), "transformer.h.0.attn.masked_bias": ()}, "gpt2"),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_stored_tensors_that_a_model_computes_itself_do_not_matter(tmp_path, name):
    extra, kind = COMPUTED[name]
    change = {key: torch.ones(shape) for key, shape in extra.items()}
    model = loading.load_model(rewritten(tmp_path / "m", lambda w: w.update(change), kind), dtype=FP32)
    ids = torch.arange(1, 9).unsqueeze(0)
    torch.testing.assert_close(model(ids).logits, tiny_model(kind=kind)(ids).logits)
