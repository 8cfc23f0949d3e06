"""Top-k rows of others become a cache where ids and positions fit, and are named where they do not."""

from __future__ import annotations

import json
import math
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from builders.chats import write_lines
from builders.jobs import Memory, context
from builders.tiny import save_tiny, tiny_model, tiny_tokenizer
from potstill.cache.reader import Cache
from potstill.data.batch import collate
from potstill.divergences import forward_kl
from potstill.errors import DataError
from potstill.objectives.token import Divergence, TokenLoss
from potstill.runs.caches import verify
from potstill.runs.importing import REJECTED, import_rows
from potstill.teachers.cached import SIGNALS, CachedTeacher, read_about
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example

LENGTH, SCORED, K = 12, 6, 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def rows(count: int = 6, seed: int = 0, k: int = K) -> list[dict]:
    """Text of the teacher's own with its likeliest ids at the scored positions: half drawn, half the likeliest."""
    model, dice = tiny_model(seed=1), torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        ids = torch.randint(4, 128, (LENGTH - SCORED,), generator=dice).tolist()
        tops, lps = [], []
        for _ in range(SCORED):
            lp = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            top = lp.topk(k)
            tops.append(top.indices.tolist())
            lps.append(top.values.tolist())
            ids.append(tops[-1][int(torch.randint(0, 2, (1,), generator=dice))])
        made.append(
            {
                "id": f"r{index}",
                "input_ids": ids,
                "prompt_length": LENGTH - SCORED,
                "topk_ids": tops,
                "topk_logprobs": lps,
            }
        )
    return made


def imported(tmp_path, tokenizer, lines):
    write_lines(tmp_path / "rows.jsonl", *lines)
    return import_rows(tmp_path / "rows.jsonl", tmp_path / "cache", tokenizer=tokenizer, teacher="other")


def test_an_imported_row_has_the_ids_and_log_probabilities_of_its_file(tmp_path, tokenizer):
    lines = rows()
    done = imported(tmp_path, tokenizer, lines)
    assert (done.rows, done.tokens, done.shift, done.rejected) == (6, 36, 0, {})
    cache = Cache.open(tmp_path / "cache" / SIGNALS)
    scored = [False] * (LENGTH - SCORED) + [True] * SCORED
    for line in lines:
        signal = cache.signal(line["input_ids"], scored).whole()
        for place in range(SCORED):
            got = dict(zip(signal.ids[place].tolist(), signal.lp[place].tolist(), strict=True))
            wanted = dict(zip(line["topk_ids"][place], line["topk_logprobs"][place], strict=True))
            assert got == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("before", "behind", "shift"), [(LENGTH - SCORED, 0, 0), (LENGTH - SCORED - 1, 1, -1)]
)
def test_entries_of_all_tokens_are_read_by_either_numbering(tmp_path, tokenizer, before, behind, shift):
    """Numbered by the token that they are about, with none for the first; or by the one before it."""
    names = ("topk_ids", "topk_logprobs")
    lines = [line | {name: [[]] * before + line[name] + [[]] * behind for name in names} for line in rows()]
    (tmp_path / "all").mkdir()
    made = imported(tmp_path / "all", tokenizer, lines), imported(tmp_path, tokenizer, rows())
    assert [done.shift for done in made] == [shift, 0]
    one, other = (Cache.open(done.folder / SIGNALS) for done in made)
    assert sorted(one.keys()) == sorted(other.keys())
    for key in sorted(one.keys()):
        assert torch.equal(one.batch([key]).whole().ids, other.batch([key]).whole().ids)


def test_served_log_probabilities_of_a_prompt_are_read_by_their_ids(tmp_path, tokenizer):
    """The first position has none, ids are text, and the row's own token stands beside the likeliest two."""
    entry = {
        "5": {"logprob": -0.2, "rank": 1},
        "6": {"logprob": -2.5, "rank": 2},
        "9": {"logprob": -3.1, "rank": 7},
    }
    for order in (list(entry), list(reversed(entry))):
        line = {"input_ids": [1, 9], "prompt_logprobs": [None, {key: entry[key] for key in order}]}
        place = tmp_path / order[0]
        place.mkdir()
        done = imported(place, tokenizer, [line])
        signal = Cache.open(done.folder / SIGNALS).signal([1, 9], [False, True]).whole()
        assert signal.rows == 1
        got = dict(zip(signal.ids[0].tolist(), signal.lp[0].tolist(), strict=True))
        assert got == pytest.approx({5: -0.2, 6: -2.5, 9: -3.1})


@pytest.mark.parametrize("shift", [-1, 1])
def test_entries_that_stand_one_place_off_are_refused(tmp_path, tokenizer, shift):
    lines = [
        line | {name: line[name][-shift:] + line[name][:-shift] for name in ("topk_ids", "topk_logprobs")}
        for line in rows(12)
    ]
    with pytest.raises(DataError, match="not of the tokens that stand there"):
        imported(tmp_path, tokenizer, lines)
    assert not (tmp_path / "cache").exists()


def broken(line: dict, fault: str) -> dict:
    ids, lps = [list(part) for part in line["topk_ids"]], [list(part) for part in line["topk_logprobs"]]
    match fault:
        case "a position too few":
            ids, lps = ids[1:], lps[1:]
        case "a log-probability above 0":
            lps[2][0] = 0.2
            lps[2][1] = -5.0
        case "the id 128":
            return line | {"input_ids": [*line["input_ids"][:-1], 128]}
        case "an id twice":
            ids[1][1] = ids[1][0]
        case "probabilities, not their logarithms":
            lps = [[math.exp(value) for value in part] for part in lps]
        case "the mass":
            lps = [[value / 3 for value in part] for part in lps]
        case "text":
            return line | {"text": "w5 w6"}
        case "likely id 128":
            ids[1][-1] = 128
        case "no list":
            return line | {"topk_ids": 5}
        case "no lists":
            return line | {"topk_ids": [5] * SCORED}
        case "words":
            ids[0][0] = "w5"
        case "NaN":
            lps[3][1] = math.nan
        case "NaN of a server":
            served = [None, *({"5": {"logprob": math.nan, "rank": 1}} for _ in line["input_ids"][1:])]
            return line | {"prompt_logprobs": served}
        case "infinity":
            lps[3][1] = math.inf
        case "a whole number that no float holds":
            lps[3][1] = 10**400
        case "true":
            lps[3][1] = True
        case "text for a number":
            lps[3][1] = "NaN"
        case "no mapping":
            return line | {"prompt_logprobs": [None, [1, 2]]}
        case "no numbers":
            return line | {"prompt_logprobs": [None, {"w5": -0.1}]}
    return line | {"topk_ids": ids, "topk_logprobs": lps}


FAULTS = {
    "a position too few": "5 positions with log-probabilities for 12 ids, of which 6",
    "a log-probability above 0": "a log-probability above 0",
    "the id 128": "holds the id 128",
    "an id twice": "an id twice",
    "probabilities, not their logarithms": "probabilities, not their logarithms",
    "the mass": "the mass",
    "text": "do not spell",
    "likely id 128": "log-probabilities of the id 128, and the tokenizer knows 128",
    "no list": "top-k ids that are no list",
    "no lists": "top-k ids that are no list",
    "words": "top-k ids that are no list of whole numbers",
    "NaN": "nan as a log-probability",
    "NaN of a server": "nan as a log-probability",
    "infinity": "a log-probability above 0",
    "a whole number that no float holds": "a log-probability above 0",
    "true": "True as a log-probability",
    "text for a number": "'NaN' as a log-probability",
    "no mapping": "no mapping by id",
    "no numbers": "no mapping by id",
}  # fmt: skip


def test_rows_that_do_not_fit_are_named_and_left_out(tmp_path, tokenizer):
    lines = rows(len(FAULTS) + 6)
    for index, fault in enumerate(FAULTS):
        lines[index] = broken(lines[index], fault)
    done = imported(tmp_path, tokenizer, lines)
    assert done.rows == 6
    said = [json.loads(line) for line in (done.folder / REJECTED).read_text().splitlines()]
    assert {one["row"].rpartition(":")[2] for one in said} == {str(i + 1) for i in range(len(FAULTS))}
    for index, words in enumerate(FAULTS.values()):
        (reason,) = (one["reason"] for one in said if one["row"].endswith(f":{index + 1}"))
        assert words in reason


def test_other_log_probabilities_of_the_same_ids_are_another_teacher(tmp_path, tokenizer):
    """A student's key names its teacher by this; what a killed import has left is no part of either."""
    lines = rows()
    other = [
        line | {"topk_logprobs": [[lp - 0.5 for lp in one] for one in line["topk_logprobs"]]}
        for line in lines
    ]
    names = []
    for number, each in enumerate((lines, other, lines)):
        place = tmp_path / str(number)
        (place / ".cache.importing" / SIGNALS).mkdir(parents=True)
        (place / ".cache.importing" / SIGNALS / "header.json").write_text("{}")
        done = imported(place, tokenizer, each)
        names.append(read_about(done.folder)["fingerprint"])
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize("least", [-9999.0, -math.inf, "-Infinity", None])
def test_an_id_without_a_number_or_with_a_servers_least_one_has_no_probability(tmp_path, tokenizer, least):
    lines = rows(4)
    for line in lines:
        own = line["input_ids"][-1]
        line["topk_ids"][-1] = [own, *(i for i in range(5, 12) if i != own)][:3]
        line["topk_logprobs"][-1] = [-0.1, least, None]
    done = imported(tmp_path, tokenizer, lines)
    assert done.rows == 4
    for line in lines:
        scored = [False] * (LENGTH - SCORED) + [True] * SCORED
        signal = Cache.open(done.folder / SIGNALS).signal(line["input_ids"], scored).whole()
        assert not signal.lp.isnan().any()
        assert float(signal.lp[-1].exp().sum()) == pytest.approx(0.904837, abs=1e-5)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_a_row_with_a_bare_nan_is_set_aside_whatever_the_file(tmp_path, tokenizer, name):
    """Python's json reads and writes it; as null it would be an id without probability."""
    lines = rows(7)
    lines[2]["topk_logprobs"][3][1] = math.nan
    file = tmp_path / name
    if name == "rows.jsonl":
        write_lines(file, *lines)
    elif name == "rows.json":
        file.write_text(json.dumps(lines))
    else:
        pq.write_table(pa.Table.from_pylist(lines), file)
    assert name == "rows.parquet" or "NaN" in file.read_text()
    done = import_rows(file, tmp_path / "cache", tokenizer=tokenizer, teacher="other")
    assert done.rows == 6
    (said,) = [json.loads(line) for line in (done.folder / REJECTED).read_text().splitlines()]
    assert re.search(r"(:| row )3$", said["row"])
    assert "nan as a log-probability" in said["reason"]


def test_a_live_teacher_is_compared_with_the_first_rows_of_an_import(tmp_path, tokenizer):
    done = imported(tmp_path, tokenizer, [broken(rows(1)[0], "the mass"), *rows(10)])
    for seed, passed in ((1, True), (9, False)):
        save_tiny(tmp_path / str(seed), seed=seed)
        verified = verify(done.folder, str(tmp_path / str(seed)), "float32")
        assert verified.probes == 8
        assert verified.passed is passed, verified.text()
    assert "another teacher" in verified.text()


def test_the_loss_from_imported_whole_distributions_is_that_of_the_live_teacher(tmp_path, tokenizer):
    """As many ids as there are, so that nothing is left out: to 1e-5 for a student of its own."""
    lines = rows(k=128)
    folder = imported(tmp_path, tokenizer, lines).folder
    reader = context(tmp_path, Memory(tiny_model(seed=1))).setup.readers.teacher_reader
    scored = (False,) * (LENGTH - SCORED) + (True,) * SCORED
    batch = collate([Example(line["id"], tuple(line["input_ids"]), scored) for line in lines], pad_id=0)
    loss = TokenLoss(Divergence.from_module(forward_kl))
    values = []
    for teacher in (Memory(tiny_model(seed=1)), CachedTeacher(folder, reader, torch.device("cpu"))):
        result = accumulate(StudentModule(tiny_model(seed=5), 128), teacher, [batch], loss)
        values.append(result.loss / result.weight)
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert values[0] > 0.1
