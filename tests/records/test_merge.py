"""Merging and pruning: laws that hold whatever is merged, and ties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import KEY, put, record
from tvm_orient.errors import LogFileError
from tvm_orient.records.merge import merge, prune
from tvm_orient.records.store import read, write

records = st.builds(
    lambda angle, template, version, device, median, date, tile, extra: record(
        spec=KEY.replace("22.5", angle),
        template=template,
        template_version=version,
        device=device,
        median_us=median,
        decisions={"tile": tile},
        provenance=date,
        **extra,
    ),
    st.sampled_from(["0", "45"]),
    st.sampled_from(["patch", "rows"]),
    st.integers(1, 2),
    st.sampled_from(["nvidia-h200", "nvidia-h100"]),
    st.sampled_from([10.0, 11.0]),
    st.sampled_from([{}, {"date": "2026-11-21"}, {"date": "2026-11-21T10:00:00"}, {"date": 20261121}]),
    st.integers(1, 3),
    st.sampled_from([{}, {"note": "again"}]),
)
record_lists = st.lists(records, max_size=8)


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    """merge of lists of records, through files."""
    folder = tmp_path_factory.mktemp("merge")

    def run(*lists):
        return merge([put(folder / f"{n}.jsonl", *rows) for n, rows in enumerate(lists)])

    return run


@given(record_lists, record_lists)
def test_merge_is_commutative_and_idempotent(fold, one, other):
    both = fold(one, other)
    assert fold(other, one) == both
    assert fold([*one, *other]) == both
    assert fold(both) == both
    assert fold(both, one) == both


@given(record_lists, record_lists, record_lists)
def test_merge_is_associative(fold, a, b, c):
    assert fold(fold(a, b), c) == fold(a, fold(b, c)) == fold(a, b, c)


@given(record_lists)
def test_merge_keeps_the_best_of_each_identity(fold, rows):
    merged = fold(rows)
    assert [r.identity for r in merged] == sorted({r.identity for r in rows})
    for kept in merged:
        rivals = [r for r in rows if r.identity == kept.identity]
        assert kept in rivals
        assert kept.median_us == min(r.median_us for r in rivals)
        assert kept.date == max(r.date for r in rivals if r.median_us == kept.median_us)


@given(record_lists, st.randoms())
def test_prune_keeps_one_record_for_a_spec_and_device(rows, rng):
    pruned = prune(rows)
    assert [r.identity for r in pruned] == sorted(r.identity for r in pruned)
    assert {(r.spec, r.device): r.median_us for r in pruned} == {
        place: min(r.median_us for r in rows if (r.spec, r.device) == place) for place in {(r.spec, r.device) for r in rows}
    }
    assert len(pruned) == len({(r.spec, r.device) for r in rows})
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert prune(shuffled) == pruned == prune(pruned)


def test_ties_go_to_the_newest():
    old, new = (record(provenance={"date": date}) for date in ("2026-11-20", "2026-11-21"))
    assert prune([old, new]) == prune([new, old]) == [new]


def test_merge_needs_its_files(tmp_path):
    with pytest.raises(LogFileError, match=r"missing\.jsonl"):
        merge([tmp_path / "missing.jsonl"])


def test_merge_then_write_is_allowed(tmp_path):
    path = put(tmp_path / "conv.jsonl", record(), record(median_us=17.0), record(template="rows"))
    write(merge([path]), path)
    assert len(read(path).records) == 2
    write(prune(read(path).records), path)
    assert [r.median_us for r in read(path).records] == [17.0]
