"""Splits: disjoint, complete, reproducible from the seed, exact through a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hipnn_pyg.data.splits import PARTS, QM9_SIZES, Split, random_split


def indices(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**32), st.data())
def test_parts_are_disjoint_and_complete(num: int, seed: int, data: st.DataObject) -> None:
    num_train = data.draw(st.integers(1, num))
    num_validation = data.draw(st.integers(0, num - num_train))
    split = random_split(num, num_train, num_validation, seed)
    everything = torch.cat([split.train, split.validation, split.test]).sort().values
    assert torch.equal(everything, torch.arange(num))
    assert split.sizes == {
        "train": num_train,
        "validation": num_validation,
        "test": num - num_train - num_validation,
    }


def test_seed_decides() -> None:
    split, again, other = (random_split(1000, 800, 100, seed) for seed in (3, 3, 4))
    for part in PARTS:
        assert torch.equal(getattr(split, part), getattr(again, part))
        assert not torch.equal(getattr(split, part), getattr(other, part))
    assert split.checksum == again.checksum != other.checksum


def test_stream_is_pinned() -> None:
    """A seed must mean the same split in years: these numbers may never change."""
    split = random_split(20, 5, 3, seed=0, name="pinned")
    assert split.train.tolist() == [1, 2, 15, 18, 19]
    assert split.validation.tolist() == [3, 11, 13]


def test_larger_training_set_contains_the_smaller() -> None:
    small, large = random_split(1000, 100, 50, 1), random_split(1000, 400, 50, 1)
    assert torch.equal(small.validation, large.validation)
    assert torch.isin(small.train, large.train).all()
    # control: with another seed it does not
    assert not torch.isin(small.train, random_split(1000, 400, 50, 2).train).all()


def test_draw_is_uniform() -> None:
    counts = torch.zeros(50)
    for seed in range(400):
        counts[random_split(50, 10, 5, seed).train] += 1
    # binomial: 400 draws at 1/5 have mean 80 and standard deviation 8
    assert counts.sum() == 4000 and (counts - 80).abs().max() < 5 * 8


def test_candidates_restrict_and_their_order_does_not_matter() -> None:
    allowed = torch.tensor([i for i in range(100) if i % 10])
    split = random_split(100, 60, 10, 0, candidates=allowed)
    used = torch.cat([getattr(split, part) for part in PARTS])
    assert torch.equal(used.sort().values, allowed)
    assert split.checksum == random_split(100, 60, 10, 0, candidates=allowed.flip(0)).checksum


def test_qm9_sizes_of_the_paper_fit() -> None:
    candidates = torch.arange(130_831)[8:]  # without the molecules that were hard to converge
    for total, (num_train, num_validation) in QM9_SIZES.items():
        assert total == num_train + num_validation and num_validation == 1_000
        split = random_split(130_831, num_train, num_validation, 0, candidates)
        assert split.sizes["test"] == 130_823 - total


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 8, 3, 0), r"num_train = 8 and num_validation = 3 do not fit.*the 10 candidates"),
        ((10, 0, 3, 0), "num_train >= 1"),
        ((10, 3, -1, 0), "num_validation >= 0"),
        ((10, 2, 2, 0, indices(1, 2, 3)), r"the 3 candidates \(of 10 graphs\)"),
        ((10, 1, 1, 0, indices(1, 10)), "candidate 10 is not among the graphs 0 to 9"),
        ((10, 1, 1, 0, indices(-1, 3)), "negative index -1"),
        ((10, 1, 1, 0, indices(3, 3)), "index twice"),
        ((10, 1, 1, 0, torch.ones(10, dtype=torch.bool)), "must be int64"),
    ],
)
def test_sizes_that_do_not_fit(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_split(*arguments)


def test_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="train and test share 1 indices, the first being 2"):
        Split(indices(1, 2), indices(3), indices(2, 4), seed=0)
    assert Split(indices(1, 2), indices(3), indices(5, 4), seed=0).sizes["test"] == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (indices(3, 3), "{} holds an index twice"),
        (indices(3, -1), "{} holds the negative index -1"),
        (torch.tensor([True]), r"{} must be int64 of shape \[n\], not torch.bool"),
    ],
)
def test_hand_made_indices_that_are_refused(bad: torch.Tensor, message: str) -> None:
    for number, part in enumerate(PARTS):
        parts = [indices(0, 4), indices(5), indices(6)]
        Split(*parts, seed=0)  # control
        parts[number] = bad
        with pytest.raises(ValueError, match=message.format(part)):
            Split(*parts, seed=0)


def test_file_round_trip(tmp_path: Path) -> None:
    split = random_split(130_831, 109_426, 1_000, 2**40, name="qm9 U0")
    path = tmp_path / "split.file"  # the name is kept as given
    split.save(path)
    again = Split.load(path)
    for part in PARTS:
        assert torch.equal(getattr(split, part), getattr(again, part))
        assert getattr(again, part).dtype == torch.int64
    assert (again.seed, again.name, again.checksum) == (2**40, "qm9 U0", split.checksum)
    assert path.stat().st_size < 2 * 130_831  # under two bytes per molecule


def test_hand_made_order_survives_the_file(tmp_path: Path) -> None:
    Split(indices(9, 2), indices(), indices(4), seed=0).save(tmp_path / "s.npz")
    again = Split.load(tmp_path / "s.npz")
    assert again.train.tolist() == [9, 2] and again.validation.numel() == 0


def altered(path: Path, **changes: object) -> Path:
    with np.load(path) as file:
        contents = dict(file)
    np.savez(path, **(contents | changes))  # type: ignore[arg-type]
    return path


def test_altered_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    random_split(10, 5, 2, 0).save(path)
    assert Split.load(altered(path)).seed == 0  # control: rewritten without a change
    with pytest.raises(ValueError, match="checksum does not match"):
        Split.load(altered(path, seed=1))
    train = random_split(10, 5, 2, 0).train.numpy()
    with pytest.raises(ValueError, match="train and test share 5 indices"):
        Split.load(altered(path, test=train))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Split.load(tmp_path / "missing.npz")
    for name, content in {"empty": b"", "text": b"train: 1 2 3", "zip": b"PK\x03\x04"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no file written by Split.save"):
            Split.load(tmp_path / name)
    np.savez(tmp_path / "other.npz", train_idx=np.arange(3))
    with pytest.raises(ValueError, match=r"no file written by Split\.save"):
        Split.load(tmp_path / "other.npz")


def test_no_damage_passes_for_a_split(tmp_path: Path) -> None:
    """Whichever byte is turned: the same split, or one kind of error."""
    path = tmp_path / "s.npz"
    split = random_split(40, 20, 5, 0)
    split.save(path)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            assert Split.load(path).checksum == split.checksum
        except ValueError:
            refused += 1
    assert refused > 50
